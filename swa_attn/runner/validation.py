"""What callers may hand to the engine: each value is checked when it comes in, and an error names it in one line."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from .shown import shown, shown_with_type

LARGEST_INT64 = (1 << 63) - 1  # of token ids, and of what counts them

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


def as_int(name: str, value: object, *, or_none: bool = False) -> int | None:
    """A plain int of an int or a NumPy integer; bool is neither. Raises TypeError."""
    if value is None and or_none:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name} must be an integer{' or None' if or_none else ''}, got {shown_with_type(value)}")


def as_count(name: str, value: object, *, or_none: bool = False) -> int | None:
    """`as_int`, of at least 1. Raises TypeError, ValueError."""
    number = as_int(name, value, or_none=or_none)
    require(number is None or number >= 1, name, "at least 1", number)
    return number


def as_float(name: str, value: object) -> float:
    """A float of an int, a float or a NumPy number; infinity of an int beyond floats. Raises TypeError."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise TypeError(f"{name} must be a number, got {shown_with_type(value)}")


def as_text(name: str, value: object) -> str:
    """Raises TypeError."""
    if isinstance(value, str):
        return value
    raise TypeError(f"{name} must be a string, got {shown_with_type(value)}")


def as_token_set(name: str, values: object) -> tuple[int, ...]:
    """Token ids that mean something together, such as those that end a request. Raises TypeError, ValueError."""
    ids = tuple(as_int(f"{name}[{i}]", v) for i, v in enumerate(as_iterable(name, values, "an iterable of token ids")))
    for i, token in enumerate(ids):
        require(token >= 0, f"{name}[{i}]", "a token id, at least 0", token)
    return ids


def as_iterable(name: str, values: object, expected: str) -> Iterable:
    """Raises TypeError; what iterating raises is left to come out."""
    try:
        return iter(values)
    except TypeError:
        raise TypeError(f"{name} must be {expected}, got {shown_with_type(values)}") from None


def require_kind(name: str, value: object, kind: type) -> None:
    """Raises TypeError for something that is neither of the class nor None."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__} or None, got {shown_with_type(value)}")


def as_flag(name: str, value: object) -> bool:
    """A plain bool of a bool or NumPy's. Raises TypeError."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown_with_type(value)}")


def require(holds: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def count_tokens(name: str, tokens: object) -> int:
    """How many ids a prompt has, before any of them is looked at.

    A prompt is a list, tuple, range, bytes (each byte an id) or another sequence, or a one-dimensional array, memoryview or
    dense tensor of integers. Raises TypeError for anything else, ValueError for another number of dimensions and for none
    at all.
    """
    if isinstance(tokens, np.ndarray | memoryview | Tensor):
        _check_array(name, np.asarray(tokens) if isinstance(tokens, memoryview) else tokens)
    elif isinstance(tokens, str) or not isinstance(tokens, Sequence | bytearray):
        raise TypeError(f"{name} must be a sequence of token ids, got {shown_with_type(tokens)}")
    count = _range_length(tokens) if isinstance(tokens, range) else len(tokens)
    if not count:
        raise ValueError(f"{name}: tokens must hold at least one token, got none")
    return count


def _check_array(name: str, x: np.ndarray | Tensor) -> None:
    if isinstance(x, Tensor) and (x.is_meta or x.layout is not torch.strided):
        given = "one on the meta device" if x.is_meta else f"one of layout {x.layout}"
        raise TypeError(f"{name} must be a dense tensor with values, got {given}")
    integers = x.dtype in _INTEGER_DTYPES if isinstance(x, Tensor) else x.dtype.kind in "iu"
    if not integers:
        raise TypeError(f"{name} must hold integers, got {x.dtype}")
    if x.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {shown(list(x.shape))}")


def token_ids(
    name: str, tokens: Sequence[int] | np.ndarray | Tensor, count: int, vocab_size: int | None
) -> tuple[int, ...]:
    """The ids of a prompt in which `count_tokens` has counted `count`.

    Raises TypeError, ValueError, which name the first wrong one, and ValueError for another number of them: a sequence
    may yield what its length does not say, and limits were checked by the length.
    """
    if isinstance(tokens, memoryview):
        tokens = np.asarray(tokens)
    ids = tokens.tolist() if isinstance(tokens, np.ndarray | Tensor) else list(islice(tokens, count + 1))
    if len(ids) != count:
        given = f"{len(ids)}" if len(ids) < count else "more"
        raise ValueError(f"{name} must hold as many token ids as its length says, {count}, got {given}")
    if {*map(type, ids)} != {int}:
        ids = [as_int(f"{name}[{i}]", token) for i, token in enumerate(ids)]
    largest = LARGEST_INT64 if vocab_size is None else vocab_size - 1
    if min(ids) < 0 or max(ids) > largest:
        i, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t <= largest)
        raise ValueError(f"{name}[{i}] must be a token id from 0 to {largest}, got {shown(token)}")
    return tuple(ids)


def require_callable(name: str, value: Callable | None) -> None:
    """Raises TypeError for something that is neither callable nor None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {shown_with_type(value)}")


def _range_length(r: range) -> int:
    """`len`, which is limited to what memory could hold."""
    return max(0, -((r.start - r.stop) // r.step))
