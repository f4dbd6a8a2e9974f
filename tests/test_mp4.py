"""Sample tables of MP4 against PyAV, on recordings of others, every codec at hand and damage."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import mp4
from components.episodes import Clip
from components.ingestion import bitstream
from components.ingestion.measure import _walk
from components.mp4 import NotPlainError
from components.packets import Joiner, Shape, Span, cut, frame_ticks, opened, walk
from tests.test_ingestion import shared

FOLDERS = ("cr5-banana", "gr1-pick-place", "franka-pick-place", "so101-still")
CODECS = ("libx264", "libx265", "mpeg4", "mjpeg", "libsvtav1")
PICTURES = 30


def film(
    path: Path,
    codec: str = "libx264",
    *,
    sound: bool = False,
    pictures: int = PICTURES,
    **options: str,
) -> Path:
    """Moving noise, with groups of 12 and the codec's usual reordering; `options` of the file."""
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 3), np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1
        quiet = {"libx265": {"x265-params": "log-level=none:pools=none"}}
        stream.options = quiet.get(codec, {})
        voice = container.add_stream("aac", rate=16_000) if sound else None
        for number in range(pictures):
            image = np.roll(noise, number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if voice is not None:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
                frame.sample_rate = 16_000
                container.mux(voice.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            container.mux(voice.encode())
    return path


Packet = tuple[bytes, int, bool]


def demuxed(path: Path) -> list[Packet]:
    """Bytes, presentation time and key flag as FFmpeg gives them."""
    with av.open(str(path)) as container:
        found = [p for p in container.demux(video=0) if p.size]
        steps = [b.dts - a.dts for a, b in pairwise(found)]
        assert min(steps, default=1) > 0 and all(p.dts <= p.pts for p in found)
        return [(bytes(p), p.pts, p.is_keyframe) for p in found]


def agrees(path: Path) -> None:
    """All that PyAV says of a file's first video."""
    track = mp4.read(path)
    with opened(path) as container, cut(Span(path)) as found:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        assert [p.pts for p in packets] == track.pts.tolist()
        assert [p.is_keyframe for p in packets] == track.key.tolist()
        assert [p.duration for p in packets] == track.duration.tolist()
        assert float(stream.time_base) == pytest.approx(float(found.time_base))
        assert frame_ticks(stream) == pytest.approx(found.frame_ticks)
        assert Shape.of(stream)._replace(pix_fmt="") == found.shape()._replace(pix_fmt="")
        data = b"".join(block.tobytes() for _, _, block in found.blocks())
        assert data == b"".join(map(bytes, packets))


def joined(target: Path, *spans: Span) -> Path:
    joiner = Joiner(lambda _: target, 2**62)
    for span in spans:
        joiner.append(span)
    joiner.close()
    assert joiner.number == 0
    return target


def same_stream(target: Path, *sources: Path) -> None:
    """All packets of the sources, one source after the other, at their distances."""
    got = demuxed(target)
    for source in sources:
        want, track = demuxed(source), mp4.read(source)
        part, got = got[: len(want)], got[len(want) :]
        assert [(p[0], p[2]) for p in part] == [(p[0], p[2]) for p in want]
        shown, own = (np.array([p[1] for p in packets]) for packets in (part, want))
        scaled = (own - own.min()) * 90_000 / track.timescale
        assert shown - shown.min() == pytest.approx(scaled, abs=1)
    assert not got
    with av.open(str(target)) as container:
        whole = sum(float(mp4.read(s).duration.sum()) / mp4.read(s).timescale for s in sources)
        assert container.duration / 1e6 == pytest.approx(whole, abs=1e-3)
        assert float(container.streams.video[0].time_base) == pytest.approx(1 / 90_000)


@pytest.mark.parametrize("name", FOLDERS)
def test_recordings_of_others_are_read_and_joined_as_ffmpeg_reads_them(
    tmp_path: Path, name: str
) -> None:
    videos = sorted(shared(name).rglob("*.mp4"))[:3]
    for video in videos:
        agrees(video)
    same_stream(joined(tmp_path / "a.mp4", *map(Span, videos)), *videos)
    assert (
        joined(tmp_path / "b.mp4", *map(Span, videos)).read_bytes()
        == (tmp_path / "a.mp4").read_bytes()
    )
    same_stream(joined(tmp_path / "c.mp4", Span(tmp_path / "a.mp4")), tmp_path / "a.mp4")


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read_and_joined_and_found_by_seeking(
    tmp_path: Path, codec: str, sound: bool
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    source = film(tmp_path / "a.mp4", codec, sound=sound)
    agrees(source)
    target = joined(tmp_path / "two.mp4", Span(source), Span(source))
    same_stream(target, source, source)
    want = list(pictures(source))
    assert np.array_equal(list(pictures(target)), want * 2)
    rows = np.array([17, 3, 25]) / 10
    assert np.array_equal(
        Clip(target, 3.0, 6.0).frames(np.sort(rows)), [want[3], want[17], want[25]]
    )


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_single_picture_is_a_video(tmp_path: Path, suffix: str) -> None:
    """Its tables name one size for all."""
    plain = film(tmp_path / "a.mp4", pictures=1)
    agrees(plain)
    other = film(tmp_path / f"b.{suffix}", pictures=1)
    assert demuxed(joined(tmp_path / "c.mp4", Span(other)))[0][0] == demuxed(plain)[0][0]


def pictures(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("start_s", [0.0, 0.5, 1.2, 2.0])
def test_a_span_holds_what_a_walk_through_the_packets_finds(tmp_path: Path, start_s: float) -> None:
    span = Span(film(tmp_path / "a.mp4"), start_s, start_s + 0.9)
    with opened(span.path) as container:
        steps = [(bytes(p), p.pts, p.is_keyframe, inside) for p, inside in walk(container, span)]
    with cut(span) as found:
        track, data = found.track, b"".join(b.tobytes() for _, _, b in found.blocks())
        assert data == b"".join(step[0] for step in steps)
        assert list(zip(track.pts, track.key, found.inside, strict=True)) == [s[1:] for s in steps]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        ("mkv", {}),
    ],
)
def test_other_files_give_the_same_digest_and_the_same_stream(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    """By way of PyAV and a scratch file, which is gone afterwards."""
    plain, other = film(tmp_path / "a.mp4"), film(tmp_path / f"b.{suffix}", **options)
    with pytest.raises(NotPlainError):
        mp4.read(other)
    digests = []
    for path in (plain, other):
        digest = hashlib.sha256()
        packets, _, encoded = _walk(Span(path), digest)
        digests.append((digest.hexdigest(), len(packets.shown), encoded.size))
    assert digests[0] == digests[1]
    with cut(Span(other)) as found:
        scratch = found.path
        assert scratch.is_file()
    assert not scratch.exists()
    same_stream(joined(tmp_path / "c.mp4", Span(other)), plain)


def test_more_than_four_gigabytes_take_wide_offsets(tmp_path: Path) -> None:
    """A sparse file stands for the bytes."""
    source, target = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    track = mp4.read(source)
    writer = mp4.Writer(target, track, track.timescale)
    writer.append(source, track, track.pts, track.pts.min() + np.arange(len(track.pts)) - 100)
    writer._end += 1 << 32
    writer.append(source, track, track.pts + 10**6, track.pts.min() + 10**5 + np.arange(PICTURES))
    writer.close(2 * 10**6)
    got, want = demuxed(target), demuxed(source)
    assert target.stat().st_size > 1 << 32 and [p[0] for p in got] == [p[0] for p in want] * 2
    assert mp4.read(target).offset[-1] > 1 << 32


def test_another_description_opens_a_new_file(tmp_path: Path) -> None:
    paths = [film(tmp_path / f"{codec}.mp4", codec) for codec in ("libx264", "mpeg4", "mpeg4")]
    joiner = Joiner(lambda number: tmp_path / f"{number}.mp4", 2**62)
    assert [joiner.append(Span(path)).file for path in paths] == [0, 1, 1]
    joiner.close()
    same_stream(tmp_path / "1.mp4", paths[1], paths[2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("small") / "a.mp4").read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_refused_and_costs_no_memory(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is read lies within the file."""
    path = tmp_path_factory.getbasetemp() / "damaged.mp4"
    moov, broken = small.rindex(b"moov") - 4, bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(moov, len(small) - 8))
        value = data.draw(
            st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)
        )
        struct.pack_into(">I", broken, at, value)
    path.write_bytes(broken[: data.draw(st.integers(moov, len(broken)))])
    tracemalloc.start()
    try:
        track = mp4.read(path)
        assert (track.size > 0).all() and (track.offset >= 0).all()
        assert (track.offset + track.size).max() <= path.stat().st_size
        assert len(track.pts) == len(track.key) == len(track.size)
    except NotPlainError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100 * len(small) + 10_000_000


def huge(kind: bytes, count: int) -> bytes:
    """A file whose one table claims many entries and holds none."""
    return struct.pack(">I4sII", 16, kind, 0, count)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"not a video at all",
        struct.pack(">I4sQ", 1, b"moov", 2**63),
        struct.pack(">I4s", 0, b"moov") * 3000,
        struct.pack(">I4s", 8, b"free") * 100_000,
        struct.pack(">I4s", 24, b"moov") + huge(b"stsz", 2**32 - 1),
    ],
)
def test_what_is_no_mp4_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(NotPlainError):
        mp4.read(tmp_path / "a.mp4")


@pytest.mark.parametrize("seed", range(20))
def test_units_are_judged_together_as_one_by_one(tmp_path: Path, seed: int) -> None:
    path, random = film(tmp_path / "a.mp4"), np.random.default_rng(seed)
    with cut(Span(path)) as found:
        ((_, _, data),) = list(found.blocks())
        size, shape = found.track.size, found.shape()
    for _ in range(seed % 4):
        data[random.integers(len(data))] = random.choice([0, 1, 65, 255, random.integers(256)])
    ends = np.cumsum(size)
    one_by_one = [
        number
        for number, (start, end) in enumerate(zip(ends - size, ends, strict=True))
        if not bitstream.is_whole(data[start:end].tobytes(), shape.codec, shape.extradata)
    ]
    assert bitstream.damaged(data, size, *shape[:1], shape.extradata) == min(
        one_by_one, default=None
    )
