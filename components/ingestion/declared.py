"""What the metadata of a LeRobot data set declare and its files do not keep: one sentence each.

Seen in published recordings: `video/` for `videos/`, another codec or size than declared, templates
of paths that lead nowhere, totals of a larger data set, names in nested lists, metadata of v2 and
v3 side by side, spans of video that are one frame short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import av
import pyarrow as pa

from components.ingestion.source import Source
from components.packets import opened

VARIABLES = {"episode_chunk", "episode_index", "video_key", "chunk_index", "file_index"}
CODECS = {"libsvtav1": "av1", "libdav1d": "av1", "avc": "h264", "avc1": "h264", "libx264": "h264"}
CODECS |= {"h265": "hevc", "libx265": "hevc", "hvc1": "hevc", "hev1": "hevc"}
INDICES = ("index", "frame_index", "episode_index", "task_index")


def oddities(source: Source, info: dict[str, Any], episodes: list[int]) -> list[str]:
    """Of folders, templates, names and pictures."""
    return [*_folders(source, info), *_templates(source, info, episodes), *_features(info)]


def _folders(source: Source, info: dict[str, Any]) -> list[str]:
    found = []
    said = str(info.get("video_path") or "").split("/", 1)[0]
    real = sorted({p.split("/", 1)[0] for p in source.listed if re.match(r"videos?/", p)})
    if said and real and said not in real:
        found.append(f"videos lie in {real[0]}/, info.json says {said}/")
    v2 = [p for p in source.listed if p in ("meta/episodes.jsonl", "meta/tasks.jsonl")]
    v3 = [p for p in source.listed if p.startswith("meta/episodes/") and p.endswith(".parquet")]
    if v2 and v3:
        version = info.get("codebase_version")
        found.append(f"metadata of v2 ({v2[0]}) and of v3 ({v3[0]}) side by side; v3 is read")
        if not str(version).startswith("v3"):
            found.append(f"info.json says codebase_version {version}, the files are laid out as v3")
    return found


def _templates(source: Source, info: dict[str, Any], episodes: list[int]) -> list[str]:
    """Files are found by their names on disk, so a wrong template costs nothing but is said."""
    found = []
    texts = {name: str(info.get(name) or "") for name in ("data_path", "video_path")}
    used = {v for text in texts.values() for v in re.findall(r"\{(\w+)", text)}
    if used - VARIABLES:
        names = ", ".join(sorted(used - VARIABLES))
        found.append(
            f"path templates with other variables: {names}; files are found by their names"
        )
    template = texts["data_path"]
    size = info.get("chunks_size")
    if template and "{episode_index" in template and not used - VARIABLES:
        size = size if isinstance(size, int) and size > 0 else 1000
        lost = [i for i in episodes if _filled(template, i, size) not in source.listed]
        if lost and len(lost) < 2 * len(episodes):
            found.append(
                f"data_path {template} leads to no file for {len(lost)} of {len(episodes)} "
                "episodes; files are found by their names"
            )
    return found


def _filled(template: str, index: int, size: int) -> str:
    try:
        return template.format(episode_chunk=index // size, episode_index=index)
    except (KeyError, ValueError, IndexError):
        return ""


def _features(info: dict[str, Any]) -> list[str]:
    features = {k: f for k, f in info.get("features", {}).items() if isinstance(f, dict)}
    nested = [k for k, f in features.items() if _is_nested(f.get("names"))]
    found = [f"names of {', '.join(nested[:3])} are nested lists; taken flat"] if nested else []
    stills = [k for k, f in features.items() if f.get("dtype") == "image"]
    if stills:
        found.append(f"camera {', '.join(stills[:3])}: pictures in the rows, no video; not read")
    return found


def _is_nested(names: Any) -> bool:
    return isinstance(names, list) and any(isinstance(name, list | dict) for name in names)


def columns(table: pa.Table) -> list[str]:
    """Columns of counting that are missing; nothing needs them."""
    missing = [name for name in INDICES if name not in table.column_names]
    return [f"no column {', '.join(missing)}; counted anew"] if missing else []


def totals(info: dict[str, Any], lengths: list[int]) -> list[str]:
    """Frames that info.json claims against the episodes' own lengths."""
    claimed = info.get("total_frames")
    if not isinstance(claimed, int) or not lengths or claimed == sum(lengths):
        return []
    return [f"info.json claims {claimed} frames, the episodes listed have {sum(lengths)}"]


def videos(source: Source, info: dict[str, Any], first: Mapping[str, str]) -> list[str]:
    """Codec and size of each camera's first video (camera -> path) against what is declared."""
    found = []
    for key, path in sorted(first.items()):
        feature = info.get("features", {}).get(key)
        if isinstance(feature, dict):
            real = source.once(path, "picture", partial(_picture, source, path))
            found += _against(key, feature, *real) if real else []
    return found


def _picture(source: Source, path: str) -> list[Any]:
    """Codec, height and width; nothing of an unreadable video, which the episode will say."""
    try:
        with opened(source.file(path)) as container:
            context = container.streams.video[0].codec_context
            return [context.codec.canonical_name, context.height, context.width]
    except (av.FFmpegError, IndexError, AttributeError):
        return []


def _against(key: str, feature: dict[str, Any], real: str, height: int, width: int) -> list[str]:
    said = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    found = []
    codec = str(said.get("video.codec") or "").lower()
    if codec and CODECS.get(codec, codec) != real:
        found.append(f"camera {key}: codec {codec} is declared, it is {real}")
    shape, size = feature.get("shape"), (height, width)
    if isinstance(shape, list) and len(shape) == 3 and not _agrees(shape, size):
        declared = "x".join(map(str, shape))
        found.append(f"camera {key}: shape {declared} is declared, it is {size[0]}x{size[1]}")
    return found


def _agrees(shape: list[Any], size: tuple[int, int]) -> bool:
    """Heights and widths, whichever comes first, before or after the channels."""
    sides = shape[1:] if shape[0] in (1, 3, 4) else shape[:2]
    return sorted(map(str, sides)) == sorted(map(str, size))


Spans = dict[int, tuple[str, float, float]]  # episode -> path, start and end in seconds


def lengthened(spans: Spans, lengths: dict[int, int], fps: float) -> tuple[Spans, int]:
    """Spans that end one frame before their episode does, made whole; and how many there were.

    Only where the next episode of the file begins no earlier.
    """
    starts: dict[str, list[float]] = {}
    for path, start_s, _ in spans.values():
        starts.setdefault(path, []).append(start_s)
    whole, short = dict(spans), 0
    for index, (path, start_s, end_s) in spans.items():
        rows = lengths.get(index, 0)
        if rows > 1 and abs((end_s - start_s) * fps - (rows - 1)) < 0.1:
            short += 1
            free = all(s <= start_s or s >= end_s + 0.9 / fps for s in starts[path])
            whole[index] = (path, start_s, end_s + 1 / fps if free else end_s)
    return whole, short
