"""The lag between pictures and rows: found where it is known, not claimed where nothing tells."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from components.ingestion import lag, motion
from components.ingestion.measure import Effort, measure
from components.ingestion.raw import Layout, RawEpisode
from components.packets import Span, cut

FPS, T = 20, 160
LAYOUT = Layout("arm", FPS, ("x", "y"), ("x", "y"), ("observation.images.front",))
BOTH = Effort(sampled=4, in_a_row=120)


def path(seed: int, steps: int = T + 20) -> np.ndarray:
    """Reaching from place to place with pauses: (steps, 2) in 0 to 1."""
    random = np.random.default_rng(seed)
    found, place = [], random.uniform(0, 1, 2)
    while len(found) < steps:
        goal, length = random.uniform(0, 1, 2), int(random.integers(8, 25))
        phase = (1 - np.cos(np.pi * np.arange(length) / length)) / 2
        found += [place + (goal - place) * p for p in phase] + [goal] * int(random.integers(1, 9))
        place = goal
    return np.array(found[:steps])


def picture(place: np.ndarray) -> np.ndarray:
    """A bright disc before a textured wall, (48, 64)."""
    rows, columns = np.mgrid[:48, :64]
    wall = 60 + 40 * np.sin(rows / 3) * np.cos(columns / 4)
    disc = (rows - 6 - 36 * place[1]) ** 2 + (columns - 6 - 52 * place[0]) ** 2 < 30
    return np.where(disc, 230.0, wall)


def film(file: Path, places: np.ndarray, gop: int = 10) -> Span:
    """An H.264 video of a disc at each place."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "23", "g": str(gop), "threads": "1"}
        for place in places:
            image = np.repeat(picture(place)[:, :, None].astype(np.uint8), 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return Span(file)


def recording(folder: Path, seed: int, late: int, gop: int = 10) -> RawEpisode:
    """Pictures show the state of `late` steps before."""
    places = path(seed)
    return RawEpisode(
        0,
        "here",
        "",
        "reach",
        timestamps_s=np.arange(T) / FPS,
        state=places[10 : T + 10].astype(np.float32),
        action=places[12 : T + 12].astype(np.float32),
        videos={
            LAYOUT.cameras[0]: film(folder / "film.mp4", places[10 - late : T + 10 - late], gop)
        },
    )


@pytest.mark.parametrize(("late", "gop"), [(0, 10), (4, 10), (-3, 2), (5, 250)])
def test_the_lag_of_a_film_is_found(late: int, gop: int, tmp_path: Path) -> None:
    facts = measure(0, recording(tmp_path, 7 + gop, late, gop), LAYOUT, effort=BOTH)
    assert facts.numbers["video_lag_steps"] == pytest.approx(late, abs=1)
    assert facts.numbers["video_lag_s"] == pytest.approx(late / FPS, abs=1 / FPS)
    assert facts.numbers["action_lag_s"] == pytest.approx(2 / FPS, abs=1 / FPS)


def test_where_nothing_is_decoded_or_moves_nothing_is_claimed(tmp_path: Path) -> None:
    raw = recording(tmp_path, 0, 2)
    none = measure(0, raw, LAYOUT, effort=Effort(0, 0))
    assert not {"video_lag_steps", "video_lag_clarity"} & none.numbers.keys()
    assert none.episode_id == measure(0, raw, LAYOUT, effort=BOTH).episode_id
    still, moving = np.zeros((99, 1)), np.random.default_rng(0).normal(size=(99, 2))
    assert lag.of([[(still, moving)]]) is None and lag.of([[(moving, still)]]) is None
    assert lag.of([[(path(0)[:30, :1], path(0)[:30])]]) is None, "too short to tell"


def test_noise_follows_nothing() -> None:
    random = np.random.default_rng(0)
    found = [
        lag.of([[(random.normal(size=(300, 1)), random.normal(size=(300, 3)))] for _ in range(3)])
        for _ in range(30)
    ]
    assert sum(f is not None and f.known for f in found) <= 2


def test_a_film_of_something_else_is_seldom_believed() -> None:
    films = [
        np.stack([picture(place) for place in path(seed, T)]).astype(np.float32)
        for seed in range(6)
    ]
    seen = [motion.seen(pictures, np.zeros(T, np.bool_)) for pictures in films]
    own = [motion.late([seen[n]], path(n, T)) for n in range(6)]
    other = [motion.late([seen[n]], path(n + 100, T)) for n in range(6)]
    assert all(late is not None and late.known and abs(late.steps) <= 1 for late in own)
    assert sum(late is not None and late.known for late in other) <= 2


@pytest.mark.parametrize("late", range(-5, 6))
def test_series_that_follow_others_with_noise(late: int) -> None:
    random = np.random.default_rng(late + 50)
    cause = lag.speeds(path(late + 50, 240))
    seen = cause[10 - late : 228 - late] @ [[1.0], [0.4]] + random.normal(0, 0.1, (218, 1))
    found = lag.of([[(seen, cause[10:228])]])
    assert found is not None and found.steps == pytest.approx(late, abs=1)
    assert abs(found.steps - late) <= 4 * found.spread + 0.2


def test_one_view_that_errs_is_outvoted_and_makes_the_lag_unsure() -> None:
    random = np.random.default_rng(3)
    cause = lag.velocities(path(3, 240))
    right = [(cause[10:228] + random.normal(0, 0.2, (218, 2)), cause[12:230])]
    wrong = [(cause[4:222] + random.normal(0, 0.8, (218, 2)), cause[12:230])]
    agreed, outvoted = lag.of([right, right, right]), lag.of([right, right, wrong])
    assert agreed is not None and outvoted is not None
    assert agreed.steps == pytest.approx(2, abs=0.5) == outvoted.steps
    assert agreed.spread < outvoted.spread


def test_the_busiest_rows() -> None:
    still = np.zeros((300, 2))
    still[200:240] = path(1, 40)
    still[240:] = still[239]
    first = lag.busiest(still, 60)
    assert 175 <= first <= 202
    assert lag.busiest(still, 300) == 0


def test_a_bit_that_the_decoder_notices_is_noticed_between_key_pictures(tmp_path: Path) -> None:
    """No structure tells of it, and the decoder shows a picture all the same."""
    raw = recording(tmp_path, 5, 0, gop=40)
    span = raw.videos[LAYOUT.cameras[0]]
    data, random = span.path.read_bytes(), np.random.default_rng(0)
    with cut(span) as found:
        track = found.track
    inner = np.flatnonzero(~track.key & (track.size > 40))
    noticed = 0
    for number in random.choice(inner, 24, replace=False):
        flipped = bytearray(data)
        flipped[track.offset[number] + int(random.integers(16, track.size[number]))] ^= 8
        span.path.write_bytes(flipped)
        facts = measure(0, raw, LAYOUT, effort=Effort(0, T))
        assert facts.videos_unreadable or decodes(span.path)  # it may conceal what no fault ends
        noticed += facts.videos_unreadable
        assert measure(0, raw, LAYOUT, effort=Effort(0, 0)).videos_unreadable == 0
    assert noticed >= 3


def decodes(file: Path) -> bool:
    """All of it, by a decoder that stops at the first fault."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1
        try:
            return sum(1 for _ in container.decode(stream)) == T
        except av.FFmpegError:
            return False
