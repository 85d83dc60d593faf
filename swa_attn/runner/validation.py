"""What callers may hand to the engine: each value is checked when it comes in, and an error names it in one line."""

import math
import reprlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LARGEST_ID = (1 << 63) - 1  # what an int64 tensor of ids holds

_INTEGER_DTYPES = frozenset(
    {
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)


def shown(value: object) -> str:
    """A value and its type for a message: short, and on one line."""
    return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"


def as_int(name: str, value: object, *, or_none: bool = False) -> int | None:
    """A plain int of an int or a NumPy integer; bool is neither. Raises TypeError."""
    if value is None and or_none:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name} must be an integer{' or None' if or_none else ''}, got {shown(value)}")


def as_float(name: str, value: object) -> float:
    """A float of an int, a float or a NumPy number; infinity of an int beyond floats. Raises TypeError."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise TypeError(f"{name} must be a number, got {shown(value)}")


def as_text(name: str, value: object) -> str:
    """Raises TypeError."""
    if isinstance(value, str):
        return value
    raise TypeError(f"{name} must be a string, got {shown(value)}")


def as_token_set(name: str, values: object) -> tuple[int, ...]:
    """Token ids that mean something together, such as those that end a request. Raises TypeError, ValueError."""
    try:
        found = tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be an iterable of token ids, got {shown(values)}") from None
    ids = tuple(as_int(f"{name}[{i}]", value) for i, value in enumerate(found))
    for i, token in enumerate(ids):
        if token < 0:
            raise ValueError(f"{name}[{i}] must be a token id, at least 0, got {token}")
    return ids


def require(holds: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}")


def count_tokens(name: str, tokens: object) -> int:
    """How many ids a prompt has, before any of them is looked at.

    A prompt is a list, tuple, range, bytes (each byte an id) or another sequence, or a one-dimensional array or tensor of
    integers. Raises TypeError for anything else, ValueError for another number of dimensions and for none at all.
    """
    if isinstance(tokens, np.ndarray | Tensor):
        integers = tokens.dtype in _INTEGER_DTYPES if isinstance(tokens, Tensor) else tokens.dtype.kind in "iu"
        if not integers:
            raise TypeError(f"{name} must hold integers, got {tokens.dtype}")
        if tokens.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {list(tokens.shape)}")
    elif isinstance(tokens, str) or not isinstance(tokens, Sequence | bytearray):
        raise TypeError(f"{name} must be a sequence of token ids, got {shown(tokens)}")
    count = _range_length(tokens) if isinstance(tokens, range) else len(tokens)
    if not count:
        raise ValueError(f"{name}: tokens must hold at least one token, got none")
    return count


def token_ids(name: str, tokens: Sequence[int] | np.ndarray | Tensor, vocab_size: int | None) -> tuple[int, ...]:
    """The ids of a prompt that `count_tokens` has let in. Raises TypeError, ValueError, which name the first wrong one."""
    ids = tokens.tolist() if isinstance(tokens, np.ndarray | Tensor) else list(tokens)
    if {*map(type, ids)} != {int}:
        ids = [as_int(f"{name}[{i}]", token) for i, token in enumerate(ids)]
    largest = LARGEST_ID if vocab_size is None else vocab_size - 1
    if min(ids) < 0 or max(ids) > largest:
        i, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t <= largest)
        raise ValueError(f"{name}[{i}] must be a token id from 0 to {largest}, got {token}")
    return tuple(ids)


def require_callable(name: str, value: Callable | None) -> None:
    """Raises TypeError for something that is neither callable nor None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {shown(value)}")


def _range_length(r: range) -> int:
    """`len`, which is limited to what memory could hold."""
    return max(0, -((r.start - r.stop) // r.step))
