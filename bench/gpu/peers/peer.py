"""What the benchmark asks of an implementation of attention."""

import abc
import importlib
from collections.abc import Callable

from torch import Tensor

from ..cases import Case
from ..inputs import Call


class Peer(abc.ABC):
    """`prepare` may do anything untimed: plan, gather, compile; the function it returns is what is timed and checked."""

    name: str
    counts_sinks: bool  # False: it runs a case with sinks without them, and its result is checked without them

    @abc.abstractmethod
    def lacks(self, case: Case) -> str | None:
        """Why it cannot run the case (its library is not importable, a shape is missing), or None."""

    @abc.abstractmethod
    def prepare(self, call: Call) -> Callable[[], Tensor]:
        """A function without arguments that returns out `[num_tokens, Hq, Dv]`."""


def not_importable(module: str) -> str | None:
    """Why a module cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken install raises anything
        return f"{module} is not importable: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def lacks_tier_or_dtype(case: Case, fp8: bool = False) -> str | None:
    """What no peer has: pages on the host; and float8 where it is not wired up here."""
    if case.host_seqs:
        return "it reads device pages only"
    if case.kv_bytes == 1 and not fp8:
        return "float8 pages with a scale per page and head are not its format"
    return None


def window_left(case: Case) -> int:
    """The window as FlashAttention and FlashInfer count it, without the query's own key; -1 is none."""
    return -1 if case.layer.window is None else case.layer.window - 1


def longest(case: Case) -> tuple[int, int]:
    """The largest number of new tokens, and the longest context."""
    return max(q for q, _ in case.seqs), max(k for _, k in case.seqs)
