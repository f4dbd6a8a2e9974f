"""Whether an encoded picture has the outer form of its codec, without decoding it.

Finds overwritten packets between key pictures, where nothing is decoded. A flipped bit within a
picture's own data has no checksum anywhere (neither MP4, H.264 nor AV1 carry one): it passes here,
and is found where the picture is decoded (`looks.py`, `motion.py`), if the decoder notices at all.
Formats: ITU-T H.264 (7.3.1, 7.4.1) in MP4 as ISO/IEC 14496-15 has it; AV1 specification, 5.3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

H264_TYPES = range(1, 24)
FEW = 8  # packets: fewer are looked at one by one
AV1_TYPES = {1, 2, 3, 4, 5, 6, 7, 8, 15}


def is_whole(data: bytes, codec: str, extradata: bytes) -> bool:
    """False where the packet's parts do not add up; True also for a codec that is not known."""
    if codec == "h264" and extradata[:1] == b"\x01" and len(extradata) > 4:
        return _h264(data, (extradata[4] & 3) + 1)
    if codec == "av1":
        return _av1(data)
    return True


def damaged(
    data: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64], codec: str, extradata: bytes
) -> int | None:
    """The first of the packets that lie one behind the other in `data` that is not whole."""
    ends = np.cumsum(sizes)
    left = np.arange(len(sizes))
    at = ends - sizes
    if codec == "h264" and extradata[:1] == b"\x01" and len(extradata) > 4:
        bad, left = _h264_all(data, at, ends, (extradata[4] & 3) + 1)
        left = np.append(left, bad[:1])
    elif codec != "av1":
        return None
    wrong = [n for n in left.tolist() if not is_whole(_cut(data, at, ends, n), codec, extradata)]
    return min(wrong, default=None)


def _cut(data: npt.NDArray[np.uint8], at: Places, ends: Places, number: int) -> bytes:
    return data[at[number] : ends[number]].tobytes()


def _h264_all(
    data: npt.NDArray[np.uint8], starts: Places, ends: Places, prefix: int
) -> tuple[Places, Places]:
    """As `_h264`, a unit of all packets at a time: packets that are not whole, and those with so
    many units that they are left to it."""
    bad = np.zeros(len(starts), np.bool_)
    pictures = np.zeros(len(starts), np.bool_)
    left, at = np.arange(len(starts)), starts
    while len(left) >= FEW:
        end = ends[left]
        short = at + prefix >= end
        at = np.where(short, 0, at)
        length = np.zeros(len(at), np.int64)
        for place in range(prefix):
            length = length << 8 | data[at + place]
        head = data[at + prefix]
        kind = head & 31
        wrong = short | (length == 0) | (at + prefix + length > end) | (head & 0x80 > 0)
        wrong |= (kind < H264_TYPES.start) | (kind >= H264_TYPES.stop)
        bad[left[wrong]] = True
        pictures[left] |= (kind == 1) | (kind == 5)
        at = at + prefix + length
        more = ~wrong & (at < end)
        left, at = left[more], at[more]
    bad[np.setdiff1d(np.flatnonzero(~pictures), left)] = True
    return np.flatnonzero(bad), left


def _h264(data: bytes, prefix: int) -> bool:
    """Units, each behind its length in `prefix` bytes."""
    at, end, pictures = 0, len(data), 0
    while at < end:
        length = int.from_bytes(data[at : at + prefix], "big")
        at += prefix
        if length == 0 or at + length > end:
            return False
        head = data[at]
        if head & 0x80 or head & 31 not in H264_TYPES:
            return False
        pictures += head & 31 in (1, 5)
        at += length
    return pictures > 0


def _av1(data: bytes) -> bool:
    """Open bitstream units; the last may come without its size."""
    at, end = 0, len(data)
    while at < end:
        head = data[at]
        if head & 0x81 or (head >> 3) & 15 not in AV1_TYPES:
            return False
        at += 2 if head & 4 else 1
        if not head & 2:
            return at < end
        size = shift = 0
        while True:
            if at >= end or shift > 28:
                return False
            byte = data[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        at += size
    return at == end
