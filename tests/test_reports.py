"""Pages of a run's report: linked from its artifact, served on loopback, nothing else is."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from components.outputs import write_json
from flows import pictures, reports

PAGE = "ingestion/index.html"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for path in (tmp_path / "first/report" / PAGE, tmp_path / "first/secret.html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<h1>{path.name}</h1>")
    (tmp_path / "first/report/out.html").symlink_to(tmp_path / "first/secret.html")
    (tmp_path / "outside.html").write_text("outside")
    return tmp_path


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    with reports.server(0, runs) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://{reports.HOST}:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def test_a_page_is_served_and_may_load_nothing_from_elsewhere(address: str) -> None:
    with urllib.request.urlopen(f"{address}/first/{PAGE}") as answer:
        assert answer.read() == b"<h1>index.html</h1>"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/first",
        "/first/",
        "/first/other/",
        "/first/../secret.html",
        "/first/%2e%2e/secret.html",
        "/first/..%2fsecret.html",
        "/../outside.html",
        "/first/out.html",
        "/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_nothing_else_is_served_or_listed(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address + path)
    assert refused.value.code == 404
    refused.value.close()


def test_the_artifact_links_the_pages(runs: Path) -> None:
    run = runs / "first"
    linked = reports.links("ingestion", run, "http://127.0.0.1:4200/api")
    assert linked == f"[How the checks went, with Data Docs](http://127.0.0.1:4201/first/{PAGE})"
    assert linked in pictures.markdown("ingestion", "read", run, "ran", linked)
    assert str(run / "report" / PAGE) in reports.links("ingestion", run, None)
    assert reports.links("sampling", run, None) == "" == reports.links("ingestion", runs, None)


def test_words_of_recordings_stay_words_in_a_table(tmp_path: Path) -> None:
    task = "a|b\n![c](http://elsewhere/d.png) <img src=x>"
    write_json(tmp_path / "metrics/segmentation.json", {"same_kinds": {task: 0.5}, "said": [task]})
    text = pictures.markdown("segmentation", "cut", tmp_path, "ran")
    told = "a\\|b !\\[c](http://elsewhere/d.png) &lt;img src=x>"
    assert text.endswith(f"| said | {told} |\n| same kinds | {told}: 0.5 |"), text


def test_the_evaluations_artifact_shows_what_the_model_expected(tmp_path: Path) -> None:
    (tmp_path / "data/evaluation").mkdir(parents=True)
    (tmp_path / "report/trials/pictures").mkdir(parents=True)
    Image.new("RGB", (50, 10), "red").save(tmp_path / "data/evaluation/results.png")
    assert "data:image/png;base64," in pictures.markdown("evaluation", "tried", tmp_path, "ran")
    Image.new("RGB", (80, 20), "lime").save(tmp_path / "report/trials/expected.png")
    Image.new("RGB", (60, 30), "blue").save(tmp_path / "report/trials/pictures/0.png")
    pictures.markdown("evaluation", "tried", tmp_path, "ran")
    with Image.open(tmp_path / "report/evaluation/picture.png") as page:
        assert page.size == (80, 60)
        rows = [page.convert("RGB").getpixel((5, y)) for y in (5, 20, 40)]
    assert rows == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
