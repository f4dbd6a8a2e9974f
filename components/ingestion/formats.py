"""Every format that is read, in the order in which a source is asked for it.

A new format is one new file with `holds(source)` and `Reader`, and its name in this one.
"""

from __future__ import annotations

from components.errors import DataError
from components.ingestion import hdf5, lerobot_v2, lerobot_v3, magic, mapping, mcap, rlds, rosbag2
from components.ingestion.raw import Reader
from components.ingestion.said import Said
from components.ingestion.source import Source

FORMATS = (lerobot_v3, lerobot_v2, rlds, hdf5, mcap, rosbag2)


def open_source(source: Source, min_camera_share: float) -> Reader:
    """The reader that knows the source's layout. DataError when none does or it is empty."""
    source.check_sizes()
    holding = next((module for module in FORMATS if module.holds(source)), None)
    if holding is None and (old := magic.files(source, b"#ROSBAG V", (".bag",))):
        raise DataError(
            f"ingestion: source {source.uri}: {old[0]} is a ROS 1 bag, which is not read; convert "
            "it with `rosbags-convert --src IN.bag --dst OUT` (package rosbags)."
        )
    if holding is None and "meta/info.json" not in source.listed:
        raise DataError(
            f"ingestion: source {source.uri}: no known format in {len(source.objects)} files; "
            "expected LeRobot v2 or v3.0 (meta/info.json), HDF5, RLDS (features.json with "
            f"TFRecord files), MCAP or ROS 2 bags (.db3).{_below(source)}"
        )
    reader: Reader | None = None
    if holding is not None:
        reader = holding.Reader(source, min_camera_share)
    if reader is None or not reader.indices:
        raise DataError(
            f"ingestion: source {source.uri} is empty: expected at least one episode, got none; "
            "record some, or take it out of ingestion.sources."
        )
    said = source.said
    return mapping.Mapped(reader, said) if said != Said() else reader


def _below(source: Source) -> str:
    """Where data sets lie deeper than the address, for who named the folder above them."""
    mark = "/meta/info.json"
    found = sorted(path.removesuffix(mark) for path in source.listed if path.endswith(mark))
    inner = [f"{source.uri}/{path}" for path in found]
    more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
    return f" Data sets lie below: name {', '.join(inner[:3])}{more}." if inner else ""
