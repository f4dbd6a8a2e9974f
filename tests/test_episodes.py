"""episodes: a clip shows what linear decoding shows, decodes little for it, and never hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import episodes
from components.episodes import Clip, Episodes
from components.errors import DataError
from tests import made_training

FPS, LENGTH = 20, 120
H264 = {"g": "12", "bf": "3", "crf": "20", "threads": "1", "preset": "veryfast"}
AV1 = {"crf": "40", "preset": "12", "svtav1-params": "lp=1"}
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", H264),
    "h264 open groups": ("libx264", {**H264, "x264-params": "open-gop=1"}),
    "h264 one group": ("libx264", {**H264, "g": "999"}),
    "av1": ("libsvtav1", {**AV1, "g": "8"}),
    "av1 short groups": ("libsvtav1", {**AV1, "g": "2"}),
}
REQUESTS = {
    "a few": np.array([0.0, 2.95, 5.9]),
    "just before and at key frames": np.array([0.55, 0.5999, 0.6, 1.19, 1.2, 3.0]),
    "between frames": np.array([0.52, 0.576, 1.174, 1.176, 4.77, 4.78]),
    "unsorted and twice": np.array([5.0, 0.1, 5.0, 2.2, 0.1]),
    "outside": np.array([-3.0, -0.01, 5.99, 60.0]),
    "every frame": np.arange(LENGTH) / FPS,
    "anything": np.random.default_rng(1).uniform(-0.2, 6.2, 40),
}


@pytest.fixture(scope="module", params=CODECS)
def video(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square that moves over noise: every frame differs from every other."""
    codec, options = CODECS[request.param]
    return encode(tmp_path_factory.mktemp("video") / "clip.mp4", codec, options)


def encode(path: Path, codec: str, options: dict[str, str]) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = options
        for number in range(LENGTH):
            image = noise.copy()
            image[8:40, number % 64 : number % 64 + 32] = (number * 2, 255 - number, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def linear(path: Path, times_s: np.ndarray) -> np.ndarray:
    """Decode everything, then choose: the nearest, the earlier of two as near."""
    with av.open(str(path)) as container:
        frames = [(float(f.pts * f.time_base), f) for f in container.decode(video=0)]
    shown_s = np.array([shown for shown, _ in frames])
    nearest = [int(np.argmin(np.round(abs(shown_s - time), 9))) for time in times_s]
    return np.stack([frames[i][1].to_ndarray(format="rgb24") for i in nearest])


@pytest.mark.parametrize("request_", REQUESTS)
def test_seeking_shows_what_linear_decoding_shows(video: Path, request_: str) -> None:
    times_s = REQUESTS[request_]
    assert np.array_equal(Clip(video, 0.0).frames(times_s), linear(video, times_s))
    assert np.array_equal(Clip(video, 1.3).frames(times_s), linear(video, times_s + 1.3))


def test_an_episode_ends_where_the_next_begins(video: Path) -> None:
    """Its last frame is held; the same frames as before are shown within it."""
    inside, outside = np.array([0.0, 0.5, 0.95]), np.array([0.974, 1.0, 1.2, 4.0])
    clip = Clip(video, 2.0, 3.0)
    assert np.array_equal(clip.frames(inside), linear(video, inside + 2.0))
    assert np.array_equal(clip.frames(outside), linear(video, np.full(4, 2.95)))


def test_few_frames_of_a_long_clip_are_few_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 12; all frames take one walk, each decoded once."""
    path = encode(tmp_path / "clip.mp4", *CODECS["h264"])
    decoded = count(monkeypatch)
    Clip(path, 0.0).frames(np.array([0.0, 3.0, 5.4]))
    assert len(decoded) <= 3 * 4
    decoded.clear()
    Clip(path, 0.0).frames(np.arange(LENGTH) / FPS + 1e-7)
    assert len(decoded) == LENGTH


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the time of every frame that is decoded."""
    decoded: list[int] = []
    real = episodes._decoded

    def counted(*args: Any) -> Iterator[Any]:
        for frame in real(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(episodes, "_decoded", counted)
    return decoded


def test_no_times_give_no_frames_and_sizes_are_kept(video: Path) -> None:
    assert Clip(video, 0.0).frames(np.array([])).shape == (0, 64, 96, 3)
    assert Clip(video, 0.0).frames(np.array([0.0, 1.0]), (24, 32)).shape == (2, 24, 32, 3)


def test_a_video_without_presentation_times_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare stream has no clock: it cannot be sought, and its frames have no times."""
    clip = Clip(encode(tmp_path / "clip.h264", "libx264", H264), 0.0)
    with pytest.raises(DataError, match=r"clip\.h264: not a readable video"):
        clip.frames(np.array([0.0, 1.0, 5.0]))
    monkeypatch.setattr(episodes, "_packets", lambda container, stream, _: container.demux(stream))
    with pytest.raises(DataError, match=r"clip\.h264.*without presentation time"):
        clip.frames(np.array([0.0, 1.0, 5.0]))


@pytest.mark.parametrize("content", [b"", b"no video\n" * 99])
def test_what_is_no_video_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable video"):
        Clip(path, 0.0).frames(np.array([0.0]))


@pytest.mark.timeout(60)
def test_damaged_videos_end_in_frames_or_in_one_clear_error(video: Path, tmp_path: Path) -> None:
    whole, random = video.read_bytes(), np.random.default_rng(2)
    refused = 0
    for number in range(30):
        data = bytearray(whole)
        at = random.integers(0, len(data), 40)
        for position in at:
            data[position] = random.integers(0, 256)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data[: len(data) - int(random.integers(0, 2)) * len(data) // 3])
        try:
            assert Clip(path, 0.0).frames(np.array([0.0, 2.0, 5.5])).shape == (3, 64, 96, 3)
        except DataError:
            refused += 1
    assert refused > 0


def test_rows_out_of_order_are_one_clear_error(tmp_path: Path) -> None:
    made_training.write(tmp_path)
    (path,) = (tmp_path / "episodes/arm/data").rglob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(30), table.slice(0, 30)]), path)
    whole = Episodes(tmp_path / "episodes")
    with pytest.raises(DataError, match=r"file-000\.parquet: row \d+: expected episode_index"):
        whole[whole.ids[0]]
