"""Pictures to encoded video: H.264 with settings that give equal bytes for equal pictures.

For recorders, and for recordings that hold pictures instead of video streams (HDF5, RLDS, ROS).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter


def encode(path: Path, images: Iterable[npt.NDArray[np.uint8]], fps: float) -> None:
    """H.264, a key frame every 10 frames, no B frames; one thread and no lookahead: equal bytes.

    `images` are RGB (H, W, 3), all of one size; an odd side gets its last line twice, since the
    format halves the colours. `fps` is rounded: rows say when a picture is shown. ValueError
    without pictures or when their sizes differ.
    """
    shape, scaler = None, VideoReformatter()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=max(round(fps), 1))
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "20", "preset": "veryfast", "g": "10", "bf": "0", "threads": "1"}
        stream.options |= {"x264-params": "rc-lookahead=0:mbtree=0"}  # it gave other bytes at times
        for image in images:
            if shape is None:
                shape = image.shape
                height, width = (side + side % 2 for side in shape[:2])
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if image.shape != shape:
                raise ValueError(f"expected pictures of shape {shape}, got {image.shape}")
            even = np.pad(image, [(0, height - shape[0]), (0, width - shape[1]), (0, 0)], "edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            container.mux(stream.encode(scaler.reformat(frame, format="yuv420p", threads=1)))
        if shape is None:
            raise ValueError("expected at least one picture, got none")
        container.mux(stream.encode())
