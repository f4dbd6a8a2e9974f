"""Whether an encoded picture has the outer form of its codec, without decoding it.

Finds overwritten packets between key pictures, where nothing is decoded. A flipped bit within a
picture's own data has no checksum anywhere (neither MP4, H.264 nor AV1 carry one) and passes.
Formats: ITU-T H.264 (7.3.1, 7.4.1) in MP4 as ISO/IEC 14496-15 has it; AV1 specification, 5.3.
"""

from __future__ import annotations

H264_TYPES = range(1, 24)
AV1_TYPES = {1, 2, 3, 4, 5, 6, 7, 8, 15}


def is_whole(data: bytes, codec: str, extradata: bytes) -> bool:
    """False where the packet's parts do not add up; True also for a codec that is not known."""
    if codec == "h264" and extradata[:1] == b"\x01" and len(extradata) > 4:
        return _h264(data, (extradata[4] & 3) + 1)
    if codec == "av1":
        return _av1(data)
    return True


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
