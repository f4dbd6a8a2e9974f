"""Lineage against pandas over the runs' own files, and against records that were tampered with.

The history is made once by real `dvc repro` (`past_runs.py`); every test reads a clone of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from components.errors import DataError, UserError
from flows import cli
from flows.lineage import ancestry, history
from flows.lineage import events as event_lineage
from flows.lineage import trace as lineage
from flows.lineage import tree as lineage_tree
from flows.lineage.cache import TABLES
from tests import past_runs
from tests.past_runs import IDENTITY, command, commit

RUNS = {"wam@v0.0.1": "first", "wam@v0.0.2": "second", "wam@v0.0.3": "third"}
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository; its runs' worktrees lie beside it."""
    return past_runs.history(tmp_path_factory.mktemp("past"))


@pytest.fixture
def clone(past: Path, tmp_path: Path) -> Path:
    """A clone with a cache of its own, to break."""
    copied = tmp_path / "clone"
    command(past, "git", "clone", "-q", str(past), str(copied))
    shutil.copytree(past / ".dvc" / "cache", copied / ".dvc" / "cache")
    return copied


def drawn(past: Path, tag: str) -> pd.DataFrame:
    """One row for each episode of a run, from the files in its worktree."""
    data = past.parent / RUNS[tag] / "data"
    manifest = pd.read_parquet(data / "episodes/manifest.parquet")
    plan = pd.read_parquet(data / "plan/plan.parquet")
    real = pd.read_parquet(data / "checkpoint/exposure.parquet").set_index("event_id")["draws"]
    plan["real"] = plan["event_id"].map(real).fillna(0).astype(int)
    plan["held"] = plan["split"] == "validation"
    sums = plan.groupby("episode_id").agg(
        events=("event_id", "size"),
        held=("held", "sum"),
        planned=("draws", "sum"),
        real=("real", "sum"),
    )
    return manifest.set_index("episode_id").join(sums)


def word(row: pd.Series) -> str:
    """What an episode's numbers mean, said again."""
    if row.real > 0:
        return "trained on"
    if row.held == row.events:
        return "validation only"
    return "planned, never drawn" if row.planned > 0 else "in the data, drawn 0 times"


@pytest.mark.parametrize("tag", RUNS)
def test_a_models_episodes_and_draws_are_what_pandas_counts(past: Path, tag: str) -> None:
    trace, expected = lineage.trace_model(past, tag), drawn(past, tag)
    total = expected.real.sum()
    assert trace.findings.broken == []
    assert trace.findings.unchecked == []
    assert {e["episode_id"] for e in trace.episodes} == set(expected.index)
    for e in trace.episodes:
        row = expected.loc[e["episode_id"]]
        assert (e["events"], e["planned"], e["draws"]) == (row.events, row.planned, row.real)
        assert e["share"] == pytest.approx(row.real / total)
        assert (e["source_uri"], e["source_version"]) == (row.source_uri, row.source_version)
        assert e["status"] == word(row)
        assert sum(v["draws"] for v in e["event_list"]) == row.real
        assert len(e["event_list"]) == row.events
    assert trace.draws["planned"] == expected.planned.sum()
    assert trace.draws["draws"] == total
    assert [(s["uri"], s["episodes"], s["draws"]) for s in trace.sources] == [
        ("/robots/demo", len(expected), total)
    ]


def test_a_model_leads_to_its_commit_run_and_stages(past: Path) -> None:
    trace, worktree = lineage.trace_model(past, "wam@v0.0.2"), past.parent / "second"
    assert trace.model.commit == command(worktree, "git", "rev-parse", "HEAD").strip()
    assert trace.model.run == "run/second"
    lock = yaml.safe_load((worktree / "dvc.lock").read_text())["stages"]
    assert [s["name"] for s in trace.stages] == list(lock)
    project = command(past, "git", "rev-parse", "main").strip()
    for stage in trace.stages:
        entry = lock[stage["name"]]
        for key in ("deps", "outs"):
            assert stage[key] == {e["path"]: e["md5"] for e in entry[key]}
        assert stage["code"] == project
    assert trace.stages[4]["params"] == {"params.yaml": {"sampling": {"seed": 1}}}
    assert trace.stages[1]["params"]["params.yaml"]["segmentation"] == {"min_event_s": 1e-5}
    counted = {t["policy"]: (t["trials"], t["successes"]) for t in trace.trials}
    assert counted == {"model": (2, 1), "random": (2, 0)}


def test_a_name_means_the_latest_version(past: Path) -> None:
    assert lineage.trace_model(past, "wam").model.tag == "wam@v0.0.3"
    with pytest.raises(UserError, match=r"'wam@v0\.0\.9' is no registered model.*wam@v0\.0\.3"):
        lineage.trace_model(past, "wam@v0.0.9")


def test_every_episode_leads_to_every_version_that_it_reached(past: Path) -> None:
    tables = {tag: drawn(past, tag) for tag in RUNS}
    words = set()
    for episode in tables["wam@v0.0.1"].index:
        (found,) = lineage.trace_episode(past, episode).episodes
        having = [tag for tag, table in tables.items() if episode in table.index]
        assert [v["tag"] for v in found["versions"]] == having
        assert found["absent_from"] == [tag for tag in RUNS if tag not in having]
        for v in found["versions"]:
            row = tables[v["tag"]].loc[episode]
            assert (v["planned"], v["draws"]) == (row.planned, row.real)
            assert v["share"] == pytest.approx(row.real / tables[v["tag"]].real.sum())
            assert v["status"] == word(row)
            words.add(v["status"])
    assert words == {  # or the history shows too little
        "trained on",
        "validation only",
        "in the data, drawn 0 times",
        "planned, never drawn",
    }


def test_an_episode_is_found_by_its_beginning_and_by_its_address(past: Path) -> None:
    ids = sorted(drawn(past, "wam@v0.0.1").index)
    asked = drawn(past, "wam@v0.0.1").loc[ids[0]]
    for query in (ids[0], ids[0][:8], asked.source_uri):
        assert [e["episode_id"] for e in lineage.trace_episode(past, query).episodes] == [ids[0]]
    everything = lineage.trace_episode(past, "/robots/demo/")
    assert [e["episode_id"] for e in everything.episodes] == ids


def test_an_ambiguous_beginning_and_an_unknown_id_are_refused(tmp_path: Path) -> None:
    repo = past_runs.wide(tmp_path, versions=2, episodes=30)
    with pytest.raises(UserError, match=r"begins 31 episode ids; give more of one: 0000"):
        lineage.trace_episode(repo, "000000")
    for unknown in ("ffff", "000", "/robots/dem", "s3://bucket/demo"):
        with pytest.raises(UserError, match="none of 2 registered versions"):
            lineage.trace_episode(repo, unknown)


def test_a_rejected_recording_is_named_with_its_reason(past: Path) -> None:
    trace = lineage.trace_episode(past, "/robots/demo#episode=10")
    assert trace.episodes == []
    told = [(row["tag"], row["reason"], row["detail"]) for row in trace.quarantined]
    assert told == [(tag, "nan", "action[3]") for tag in ("wam@v0.0.1", "wam@v0.0.2")]
    kept_out_later = lineage.trace_episode(past, "/robots/demo#episode=7")
    assert kept_out_later.episodes[0]["absent_from"] == ["wam@v0.0.3"]
    assert [row["tag"] for row in kept_out_later.quarantined] == ["wam@v0.0.3"]


def test_without_any_version_it_says_so(tmp_path: Path) -> None:
    command(tmp_path, "git", "init", "-q")
    for ask in (lineage.trace_model, lineage.trace_episode):
        with pytest.raises(UserError, match="git fetch --tags"):
            ask(tmp_path, "wam")


def test_a_clone_without_a_cache_asks_the_remote(past: Path, clone: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    command(clone, "dvc", "remote", "add", "--local", "-q", "-d", "store", str(remote))
    command(clone, "dvc", "push", "-q", "--all-tags")
    shutil.rmtree(clone / ".dvc" / "cache")
    trace = lineage.trace_model(clone, "wam@v0.0.1")
    assert trace.draws == lineage.trace_model(past, "wam@v0.0.1").draws
    assert trace.findings.broken == []
    missing = "data/checkpoint/model.safetensors is not in the local cache"
    assert any(missing in row["why"] for row in trace.findings.unchecked)  # weights stay there


def test_what_is_nowhere_is_named_with_the_command(clone: Path) -> None:
    shutil.rmtree(clone / ".dvc" / "cache")
    with pytest.raises(UserError) as raised:
        lineage.trace_model(clone, "wam@v0.0.1")
    run = history.run(clone, history.versions(clone)[0].commit)
    said = str(raised.value)
    assert run.outs["data/episodes"] in said
    assert "no remote" in said.lower()
    assert "`dvc remote add --local -d NAME URL`" in said


@pytest.mark.parametrize("path", TABLES)
def test_a_flipped_byte_in_any_table_is_noticed(clone: Path, path: str) -> None:
    found = cached(clone, path)
    content = bytearray(found.read_bytes())
    content[len(content) // 2] ^= 1
    found.chmod(stat.S_IRUSR | stat.S_IWUSR)
    found.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is corrupted: expected md5") as raised:
        lineage.trace_model(clone, "wam")
    assert str(found) in str(raised.value)
    assert hashlib.md5(bytes(content)).hexdigest() in str(raised.value)


def cached(repo: Path, path: str) -> Path:
    """Where a file of the latest version lies in the cache."""
    run = history.run(repo, history.versions(repo)[-1].commit)
    out = next(o for o in run.outs if path.startswith(f"{o}/"))
    listing = json.loads(object_at(repo, run.outs[out]).read_bytes())
    (md5,) = (row["md5"] for row in listing if f"{out}/{row['relpath']}" == path)
    return object_at(repo, md5)


def object_at(repo: Path, md5: str) -> Path:
    return repo / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def store(repo: Path, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest() + suffix
    object_at(repo, md5).parent.mkdir(exist_ok=True)
    object_at(repo, md5).write_bytes(content)
    return md5


def forge(repo: Path, path: str, change: Change) -> None:
    """Change a file of the latest version as a careful forger would: with all its digests."""
    version = history.versions(repo)[-1]
    command(repo, "git", "checkout", "-q", version.commit)
    run = history.run(repo, version.commit)
    out = next(o for o in run.outs if path.startswith(f"{o}/"))
    listing = json.loads(object_at(repo, run.outs[out]).read_bytes())
    for row in listing:
        if f"{out}/{row['relpath']}" == path:
            row["md5"] = store(repo, change(object_at(repo, row["md5"]).read_bytes()))
    forged = store(repo, json.dumps(listing).encode(), ".dir")
    for name in ("dvc.lock", "data/trials.dvc"):
        text = (repo / name).read_text()
        (repo / name).write_text(text.replace(run.outs[out], forged))
    publish(repo)


def publish(repo: Path) -> None:
    commit(repo, "forged")
    command(repo, "git", *IDENTITY, "tag", "-a", "wam@v0.0.4", "-m", "forged")


def json_with(**values: Any) -> Change:
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


def table_with(column: str, value: Any) -> Change:
    """Another value in the first row."""

    def change(content: bytes) -> bytes:
        import io

        table = pd.read_parquet(io.BytesIO(content))
        table.loc[0, column] = value
        return bytes(table.to_parquet())

    return change


FORGED = {
    "echoed plan": (
        "data/checkpoint/receipt.json",
        json_with(plan_sha256="0" * 64),
        "data/checkpoint/receipt.json: plan_sha256",
    ),
    "echoed draws": (
        "data/checkpoint/receipt.json",
        json_with(draws=999_999),
        "data/checkpoint/receipt.json: draws",
    ),
    "signed plan": (
        "data/plan/receipt.json",
        json_with(plan_sha256="0" * 64),
        "data/plan/receipt.json: plan_sha256",
    ),
    "plan": (
        "data/plan/plan.parquet",
        table_with("weight", 0.5),
        "data/checkpoint/receipt.json: plan_sha256",
    ),
    "planned draws": (
        "data/checkpoint/exposure.parquet",
        table_with("planned_draws", 77),
        "planned draws that the plan does not say",
    ),
    "drawn event": (
        "data/checkpoint/exposure.parquet",
        table_with("event_id", "f" * 20),
        "events that the plan does not have",
    ),
    "events": (
        "data/events/events.parquet",
        table_with("event_id", "f" * 20),
        "events that data/events/events.parquet does not have",
    ),
    "captions": (
        "data/captions/captions.parquet",
        table_with("text", "other words"),
        "data/plan/receipt.json: inputs: captions",
    ),
    "episode": (
        "data/episodes/manifest.parquet",
        table_with("episode_id", "f" * 64),
        "episodes that data/episodes/manifest.parquet does not have",
    ),
    "source": (
        "data/episodes/manifest.parquet",
        table_with("source_uri", "/robots/demolition#3"),
        "episodes of no source in inputs/sources.json",
    ),
    "trials": (
        "data/trials/trials.parquet",
        table_with("checkpoint_digest", "0" * 64),
        "data/trials/trials.parquet: checkpoint_digest",
    ),
    "results": (
        "data/evaluation/results.json",
        json_with(checkpoint_digest="0" * 64),
        "data/evaluation/results.json: checkpoint_digest",
    ),
    "weights": (
        "data/passport/model.safetensors",
        lambda content: content + b"!",
        "data/passport/digests.json: data/passport/model.safetensors",
    ),
    "list of digests": (
        "data/passport/digests.json",
        json_with(files={}),
        "data/passport/digests.json: data/passport/config.json",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_record_that_was_changed_with_all_its_digests_is_broken(clone: Path, what: str) -> None:
    path, change, where = FORGED[what]
    forge(clone, path, change)
    findings = lineage.trace_model(clone, "wam@v0.0.4").findings
    broken = [row for row in findings.broken if row["where"].endswith(where)]
    assert broken, findings.broken
    assert broken[0]["expected"] != broken[0]["got"]
    assert findings.exit_code == DataError.exit_code
    assert lineage.trace_model(clone, "wam@v0.0.3").findings.broken == []  # and only that one


@pytest.mark.parametrize(
    ("file", "old", "new", "where"),
    [
        (
            "components/sampling/code.txt",
            "code",
            "other code",
            "sampling: input components/sampling",
        ),
        ("params.yaml", "seed: 0", "seed: 5", "sampling: params.yaml:sampling"),
        ("inputs/sources.json", "demo", "demos", "ingestion: input inputs/sources.json"),
        ("metrics/sampling.json", "true", "false", "output metrics/sampling.json"),
        ("dvc.yaml", "make.py sampling", "make.py sampled", "sampling: cmd"),
    ],
)
def test_what_the_commit_holds_is_what_ran(
    clone: Path, file: str, old: str, new: str, where: str
) -> None:
    command(clone, "git", "checkout", "-q", history.versions(clone)[-1].commit)
    text = (clone / file).read_text()
    assert old in text
    (clone / file).write_text(text.replace(old, new))
    publish(clone)
    broken = [r["where"] for r in lineage.trace_model(clone, "wam@v0.0.4").findings.broken]
    assert f"dvc.lock: {where}" in broken


def test_a_stage_that_read_something_else_is_broken_in_both_directions(clone: Path) -> None:
    command(clone, "git", "checkout", "-q", history.versions(clone)[-1].commit)
    lock = yaml.safe_load((clone / "dvc.lock").read_text())
    read = next(d for d in lock["stages"]["pretraining"]["deps"] if d["path"] == "data/plan")
    real, read["md5"] = read["md5"], "0" * 32 + ".dir"
    (clone / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    publish(clone)
    where = "dvc.lock: pretraining: input data/plan"
    expected = {"where": where, "expected": real, "got": read["md5"]}
    trace = lineage.trace_model(clone, "wam@v0.0.4")
    assert trace.findings.broken == [expected]
    back = lineage.trace_episode(clone, trace.episodes[0]["episode_id"])
    assert back.findings.broken == [{**expected, "where": f"wam@v0.0.4: {where}"}]


def test_people_get_a_short_tree_and_programs_everything(past: Path) -> None:
    trace = lineage.trace_model(past, "wam@v0.0.1")
    short = shown(lineage_tree.render_model(trace))
    long = shown(lineage_tree.render_model(trace, everything=True))
    assert "… and 5 more episodes (--all)" in short
    assert "more episodes" not in long
    ids = [e["episode_id"] for e in trace.episodes]
    assert sum(i[:12] in short for i in ids) == lineage_tree.SHOWN
    assert all(i in long for i in ids)
    assert "0 broken" in short
    assert [e["episode_id"] for e in json.loads(lineage.to_json(trace))["episodes"]] == ids
    backwards = lineage.trace_episode(past, ids[0])
    told = shown(lineage_tree.render_episode(backwards))
    for v in backwards.episodes[0]["versions"]:
        assert f"{v['tag']}  {v['status']}" in told
    assert json.loads(lineage.to_json(backwards))["versions_searched"] == list(RUNS)


def test_a_foreign_tag_is_no_model_and_stops_nothing(clone: Path) -> None:
    command(clone, "git", *IDENTITY, "tag", "-a", "dataset@v1.0.0", "-m", "by GTO", "origin/main")
    with pytest.raises(DataError, match="has no finished run"):
        lineage.trace_model(clone, "dataset")
    trace = lineage.trace_episode(clone, "/robots/demo#episode=0")
    assert trace.versions_searched == list(RUNS)
    assert trace.findings.unchecked == [{"where": "dataset@v1.0.0", "why": "no finished run"}]


def test_a_pipe_gets_whole_lines(past: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lineage_tree.show(lineage_tree.render_model(lineage.trace_model(past, "wam"), True))
    lines = capsys.readouterr().out.splitlines()
    assert any(len(line) > 200 for line in lines)
    assert all(line == line.rstrip() and "…" not in line for line in lines)


def shown(what: RenderableType) -> str:
    console = Console(width=400)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_fifty_versions_of_a_thousand_episodes_are_traced_within_three_seconds(
    tmp_path: Path,
) -> None:
    repo = past_runs.wide(tmp_path, versions=50, episodes=1000)
    start_s = time.perf_counter()
    trace = lineage.trace_episode(repo, f"{60:016x}")
    assert time.perf_counter() - start_s < 3
    assert len(trace.episodes[0]["versions"]) == 50
    plan = pd.read_parquet(repo / "scratch/data/plan/plan.parquet")  # of the last version
    expected = plan[plan.episode_id == f"{60:016x}"].draws.sum()
    assert trace.episodes[0]["versions"][-1]["draws"] == expected
    start_s = time.perf_counter()
    assert len(lineage.trace_model(repo, "wam").episodes) == 1000
    assert time.perf_counter() - start_s < 3


# --- one event -----------------------------------------------------------------------------------


def rows_of(past: Path, run: str, path: str, event: str) -> list[dict[str, Any]]:
    table = pd.read_parquet(past.parent / run / "data" / path)
    return table[table["event_id"] == event].to_dict("records")


def test_an_event_leads_to_its_recording_its_words_and_its_models(past: Path) -> None:
    events = pd.read_parquet(past.parent / "third" / "data/events/events.parquet")
    manifest = pd.read_parquet(past.parent / "third" / "data/episodes/manifest.parquet")
    for event in events["event_id"][:5]:
        found = event_lineage.show(past, event, name="third")
        (row,) = rows_of(past, "third", "events/events.parquet", event)
        assert found.event["episode_id"] == row["episode_id"]
        assert (found.event["start_s"], found.event["end_s"]) == (row["start_s"], row["end_s"])
        of = manifest.set_index("episode_id").loc[row["episode_id"]]
        assert found.recording["source_uri"] == of["source_uri"]
        assert [c["level"] for c in found.captions] == ["task", "action"]
        assert {c["captioner"] for c in found.captions} == {"test"}
        assert found.clusters["action_cluster"] == 1
        (planned,) = rows_of(past, "third", "plan/plan.parquet", event)
        assert found.plan["draws"] == planned["draws"]
        assert {s["name"] for s in found.stages} == {"segmentation", "captioning"}
        for model in found.models:
            (planned,) = rows_of(past, RUNS[model["tag"]], "plan/plan.parquet", event)
            (real,) = rows_of(past, RUNS[model["tag"]], "checkpoint/exposure.parquet", event)
            assert (model["planned"], model["draws"]) == (planned["draws"], real["draws"])
        assert [m["tag"] for m in found.models] == [
            tag for tag, run in RUNS.items() if rows_of(past, run, "plan/plan.parquet", event)
        ]
        assert found.findings.exit_code == 0 and found.findings.hold > 0
        assert event_lineage.show(past, event[:12], revision="wam@v0.0.3").event == found.event


def test_the_latest_run_is_asked_unless_one_stands_in_another(past: Path) -> None:
    events = pd.read_parquet(past.parent / "third" / "data/events/events.parquet")
    event = events["event_id"][0]
    latest = event_lineage.show(past, event)
    assert latest.run == "run/third"
    assert event_lineage.show(past, event, revision="wam").commit == latest.commit
    assert event_lineage.show(past.parent / "first", event).run == "run/first"
    assert event_lineage.show(past, event, name="second").run == "run/second"


def test_what_names_no_event_is_refused_with_what_to_do(past: Path) -> None:
    ids = {
        run: set(pd.read_parquet(past.parent / run / "data/events/events.parquet")["event_id"])
        for run in ("first", "third")
    }
    only_first = sorted(ids["first"] - ids["third"])[0]
    for query, values, said in (
        (only_first, {}, "--revision wam@v0.0.2"),
        ("ffff" * 5, {}, "other runs are asked with --run"),
        ("ab", {}, "too short"),
        (only_first, {"name": "nobody"}, "there are run/third"),
        (only_first, {"revision": "main"}, "no events and captions"),
        (only_first, {"revision": "nothing"}, "no commit 'nothing'"),
        (only_first, {"revision": "main", "name": "first"}, "not both"),
    ):
        with pytest.raises(UserError, match=said):
            event_lineage.show(past, query, **values)


def test_an_ambiguous_beginning_of_an_event_is_refused(tmp_path: Path) -> None:
    repo = past_runs.wide(tmp_path, versions=1, episodes=3)
    with pytest.raises(UserError, match="begins 15 event ids; give more"):
        event_lineage.show(repo, "0000", revision="wam@v0.0.1")


def test_an_event_is_printed_for_people_and_programs(
    past: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = pd.read_parquet(past.parent / "third" / "data/events/events.parquet")["event_id"][0]
    monkeypatch.chdir(past)
    assert CliRunner().invoke(cli.app, ["show", event[:10]]).exit_code == 0
    found = event_lineage.show(past, event)
    shown = lineage_tree.render_event(found)
    lineage_tree.show(shown)
    said = capsys.readouterr().out
    for words in (event, found.recording["source_uri"], "action words", "by test", "run/third"):
        assert words in said
    printed = CliRunner().invoke(cli.app, ["show", event, "--json"])
    document = json.loads(printed.stdout)
    assert document["event"]["event_id"] == event
    assert document["captions"][0]["checks"] == {}


def test_a_refined_boundary_shows_who_said_what(
    past: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = pd.read_parquet(past.parent / "third" / "data/events/events.parquet")
    looks = pd.read_parquet(past.parent / "third" / "data/events/refinement.parquet")
    for start_s in (0.0, 1.0):
        event = events[events["start_s"] == start_s].iloc[0]
        found = event_lineage.show(past, event["event_id"])
        (row,) = looks[looks["episode_id"] == event["episode_id"]].to_dict("records")
        assert found.refinement["reply"] == row["reply"]
        lineage_tree.show(lineage_tree.render_event(found))
        said = capsys.readouterr().out
        assert "by openai, model mmmmmmmmmmmm, prompt pppppppppppp, seed 7" in said
        assert 'it answered: {"changes": [2J []}' in said, "what a model says moves no cursor"
        confirmed = "confirmed at 1.000 s: it says 1.100 s, it turns" in said
        assert (confirmed, "it sees no change at the start" in said) == (start_s == 1, start_s == 0)


def test_people_and_models_are_named_in_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    person = {"author": "ann", "time": "2026-11-22T10:00:00+00:00", "did": "move", "of": "event"}
    event = {
        "event_id": "e" * 20, "episode_id": "f" * 20, "start_s": 0.5, "end_s": 1.25, "score": 0.75,
        "start_frame": 40, "end_frame": 100, "kind": "grasp",
        "evidence": {"gripper_command": 1.0, "person": person},
    }  # fmt: skip
    machine = {
        "level": "action", "text": "grasp it", "captioner": "openai", "model_digest": "a" * 64,
        "prompt_digest": "b" * 64, "decoding": {"seed": 7}, "checks": {"length": "ok"},
    }  # fmt: skip
    human = {
        "level": "segment", "text": "takes the cup", "captioner": "person", "model_digest": "",
        "prompt_digest": "", "decoding": {}, "checks": {"length": "ok"}, "author": "bob",
        "time": "2026-11-22T11:00:00+00:00", "machine_text": "moves",
    }  # fmt: skip
    trace = event_lineage.EventTrace(event, "c" * 40, "", {}, [], [machine, human], {}, {}, [])
    lineage_tree.show(lineage_tree.render_event(trace))
    said = capsys.readouterr().out
    for words in (
        "corrected: event: move by ann", "score 0.75; gripper_command 1.0", "by openai, model aaaa",
        "prompt bbbb", "seed 7", "bob at 2026-11-22", "the machine said: moves", "40 to 100",
    ):  # fmt: skip
        assert words in said, words


# --- what a changed prompt makes stale -----------------------------------------------------------


def test_a_changed_prompt_makes_captioning_stale_and_nothing_before_it(past: Path) -> None:
    worktree = past.parent / "second"
    prompts = worktree / "components" / "captioning" / "prompts"

    def stale() -> list[str]:
        said = command(worktree, sys.executable, "-m", "dvc", "status", "--json")
        return sorted(json.loads(said))

    assert stale() == []
    try:
        prompts.mkdir()
        (prompts / "mine.md").write_text("what a user wrote")
        assert stale() == ["captioning"]
    finally:
        shutil.rmtree(prompts)
    assert stale() == []


def test_a_changed_prompt_runs_captioning_and_what_follows_only_where_words_change(
    clone: Path,
) -> None:
    command(clone, "git", "checkout", "-q", "run/second")
    command(clone, sys.executable, "-m", "dvc", "checkout", "-q")
    prompts = clone / "components" / "captioning" / "prompts"
    prompts.mkdir()

    def ran(file: str, text: str) -> list[str]:
        (prompts / file).write_text(text)
        said = command(clone, sys.executable, "-m", "dvc", "repro", "pretraining")
        return re.findall(r"Running stage '(\w+)'", said)

    assert ran("unused.md", "a prompt that changes no words") == ["captioning"]
    assert ran("said.md", "other words")[:2] == ["captioning", "clustering"]


def test_lineage_reaches_initial_weights(past: Path, tmp_path: Path) -> None:
    """A run that starts from a registered version's weights names them, and that version."""
    assert lineage.trace_model(past, "wam@v0.0.1").initial == []
    weights = past.parent / "first/data/checkpoint/model.safetensors"
    files = {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    path, declared = tmp_path / "init.json", {"model": {"from": "/models/wam", "sha256": files}}
    path.write_text(json.dumps(declared))
    repo = tmp_path / "repo"
    command(past, "git", "clone", "-q", str(past), str(repo))
    shutil.copytree(past / ".dvc" / "cache", repo / ".dvc" / "cache")
    command(repo, "git", "checkout", "-q", "wam@v0.0.3")
    shutil.copy(path, repo / "inputs" / "init.json")
    commit(repo, "initial weights")
    command(repo, "git", *IDENTITY, "tag", "-a", "wam@v0.0.9", "-m", "wam\n\nRun: run/third\n")
    trace = lineage.trace_model(repo, "wam@v0.0.9")
    assert [(row["part"], row["version"], row["files"]) for row in trace.initial] == [
        ("model", "wam@v0.0.1", files)
    ]
    learned = drawn(past, "wam@v0.0.1").real
    for episode in learned.index:
        (found,) = lineage.trace_episode(repo, episode).episodes
        rows = {v["tag"]: v for v in found["versions"]}
        own = drawn(past, "wam@v0.0.3").real.get(episode)  # None: not in its data
        if learned[episode] and not own:
            assert rows["wam@v0.0.9"]["status"].endswith("through initial weights of wam@v0.0.1")
            assert "wam@v0.0.9" not in found["absent_from"]
        elif own is None:
            assert "wam@v0.0.9" in found["absent_from"]
    kept_out = [e for e in learned[learned > 0].index if e not in drawn(past, "wam@v0.0.3").index]
    assert kept_out, "or the history shows too little"
    assert ancestry._line("c", {"c": "b", "b": "a", "d": "c"}) == ["b", "a"]
    told = {row["where"] for row in trace.findings.broken}
    where = "data/checkpoint/config.json: initial: model"
    assert where in told, "its checkpoint was made without them"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(lineage_tree.render_model(trace))
    assert "model  wam@v0.0.1  /models/wam" in shown.get()
