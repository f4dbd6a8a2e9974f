"""Pictures that are no video yet: decoded within bounds, and encoded once to a film of their own.

The films of a run lie in a folder that goes with it; the shard store keeps them for the next.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.encoding import encode
from components.packets import Span
from components.shards import key

if TYPE_CHECKING:
    from components.ingestion.source import Source

MAX_PIXELS = 64 * 2**20  # of one picture: more is a decompression bomb, no camera
Picture = npt.NDArray[np.uint8]


class Films:
    """Encodes the pictures of (episode, camera) once; later calls and runs give the same file.

    Episodes go by their identity, as `Reader.identity` gives it; it says the rate, too.
    """

    def __init__(self, source: Source) -> None:
        self._memory = source.memory
        if self._memory is not None:
            self._folder = self._memory.scratch
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="wamflow-films-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def span(self, of: Any, camera: str, pictures: Iterable[Picture], fps: float) -> Span:
        """The film of one camera of one episode. ValueError or OSError when a picture is bad."""
        name = key("film", of, camera)
        if (path := self._known(name)) is None:
            path = self._folder / f"{name}.mp4"
            partial = path.with_name(f"partial-{path.name}")
            encode(partial, pictures, fps)
            partial.rename(path)
            if self._memory is not None:
                self._memory.shards.keep_file(name, path)
        return Span(path)

    def known(self, of: Any, cameras: Iterable[str]) -> dict[str, Span] | None:
        """The films of all cameras of one episode; None where one was not made yet."""
        found = {camera: self._known(key("film", of, camera)) for camera in cameras}
        spans = {camera: Span(path) for camera, path in found.items() if path is not None}
        return spans if len(spans) == len(found) else None

    def _known(self, name: str) -> Path | None:
        path = self._folder / f"{name}.mp4"
        if path.exists():
            return path
        kept = self._memory is not None and self._memory.shards.link(name, path)
        return path if kept else None


def decode(data: bytes) -> Picture:
    """RGB (H, W, 3) of a JPEG or PNG file. ValueError or OSError when it is none or too large."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            check_size(image.height, image.width)
            return np.asarray(image.convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"not a JPEG or PNG picture: {error}") from error


def check_size(height: int, width: int) -> None:
    """ValueError for a picture that no camera makes."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a picture of {height} x {width} pixels; at most {MAX_PIXELS} are read")


def rgb(values: Picture) -> Picture:
    """RGB (H, W, 3) uint8 from (H, W), (H, W, 1), (H, W, 3), (H, W, 4) or (3, H, W)."""
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or values.dtype != np.uint8:
        raise ValueError(f"a picture of shape {values.shape} and type {values.dtype}; not RGB")
    check_size(*values.shape[:2])
    colours = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[:, :, :3]
    return np.ascontiguousarray(colours)
