"""Values as bytes that can be read back, so that different values never have the same bytes."""

import struct
from collections.abc import Callable
from types import NoneType

_LENGTH = struct.Struct(">Q")


def encode(*values: object) -> bytes:
    """The values one after another, each as a letter for its type, its length in bytes (8 bytes), and its content.

    Takes None, bool, int, float, str (any code points, lone surrogates too), bytes, and tuples of these. A subclass is
    refused, because what it shows of itself may not be what it is.

    Raises:
        TypeError: a value of another type.
    """
    return b"".join(map(_field, values))


def _field(value: object) -> bytes:
    try:
        letter, content_of = _TYPES[type(value)]
    except KeyError:
        names = ", ".join(kind.__name__ for kind in _TYPES)
        raise TypeError(f"encode: expected one of {names}, got {type(value).__name__}") from None
    content = content_of(value)
    return letter + _LENGTH.pack(len(content)) + content


def text(name: str, value: str) -> bytes:
    """The characters of a string, whatever a subclass may answer for it. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    return str.encode(value, "utf-8", "surrogatepass")


def _int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


_TYPES: dict[type, tuple[bytes, Callable[..., bytes]]] = {
    NoneType: (b"n", lambda _: b""),
    bool: (b"b", lambda value: b"\1" if value else b"\0"),
    int: (b"i", _int),
    float: (b"f", struct.Struct(">d").pack),
    str: (b"s", lambda value: text("str", value)),
    bytes: (b"y", bytes),
    tuple: (b"t", lambda value: encode(*value)),
}
