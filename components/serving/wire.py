"""Messages of the openpi websocket protocol: MessagePack with numpy arrays, never pickle.

An array is a map with four byte-string keys: `__ndarray__` true, `data` (raw bytes in C order),
`dtype` (numpy's string, such as `|u1` or `<f4`) and `shape`; a numpy scalar is `__npgeneric__`,
`data` and `dtype`. Kinds V, O and c are refused in both directions. From
openpi_client/msgpack_numpy.py (openpi, Apache-2.0); two traps of that encoding: a numpy float64
scalar is a Python float and travels as one, and a tuple returns as a list. Unlike there, arrays
are checked against their data before they are made, and may be written to.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from components.errors import DataError

REFUSED_KINDS = "VOc"
_DTYPE = re.compile(
    r"[<>|=](b1|[iu][1248]|f(2|4|8|16)|[SU][1-9]\d{0,5}|[mM]8(\[\d{0,6}[a-zA-Z]{1,2}\])?)"
)


class WireError(DataError):
    """A message that is not of this protocol, or a value that it cannot carry."""


def encode(message: Any) -> bytes:
    """Bytes of maps, lists, numbers, strings and arrays. WireError for anything else."""
    try:
        packed: bytes = msgpack.packb(message, default=_pack)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"message cannot be sent: {error}") from error
    return packed


def decode(data: bytes) -> Any:
    """The message in `data`. WireError when it is malformed, whatever the bytes are."""
    try:
        return msgpack.unpackb(data, object_hook=_unpack, ext_hook=_refuse_extension)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        detail = str(error) or "not MessagePack"
        raise WireError(f"malformed message of {len(data)} bytes: {detail}") from error


def _pack(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"cannot send a {type(value).__name__}; expected arrays, numbers, strings.")
    if value.dtype.kind in REFUSED_KINDS:
        raise WireError(f"cannot send dtype {value.dtype}; kinds V, O and c are refused.")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _unpack(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _scalar(value)
    return value


def _array(value: dict[Any, Any]) -> npt.NDArray[Any]:
    dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
    if not isinstance(data, bytes):
        raise WireError(f"array data: expected bytes; got {type(data).__name__}.")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"array shape: expected a list of sizes; got {str(shape)[:60]}.")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"array of shape {shape[:8]} and dtype {dtype.str} got {len(data)} bytes.")
    return np.ndarray(tuple(shape), dtype, data).copy()


def _scalar(value: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(value), value.get(b"data")
    if not isinstance(data, bool | int | float | str | bytes):
        raise WireError(f"scalar data: expected a number or text; got {type(data).__name__}.")
    with np.errstate(over="raise"):
        try:
            scalar: np.generic = dtype.type(data)
        except (FloatingPointError, OverflowError, TypeError, ValueError) as error:
            raise WireError(f"scalar data: expected a {dtype.name}; got {data!r:.60}.") from error
    return scalar


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    text = value.get(b"dtype")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise WireError(
            f"dtype: expected a string such as '<f4', none of V, O, c; got {str(text)[:60]}."
        )
    return np.dtype(text)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"extension type {code} of {len(data)} bytes is not part of the protocol.")
