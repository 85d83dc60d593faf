"""Exact window rebuild: a resume point whose full-attention pages are cached but whose window snapshot is not.

Going on after `end` tokens, a windowed layer needs the keys and values of the last W - 1 of them. They follow from the
layer's input there, which is the output of the layer below. A full-attention layer makes its output from cached pages, for
just these positions; a windowed layer needs W - 1 more positions of its own input, and so on down: a trapezoid, with fewer
tokens in each layer than in the one below it. Nothing is approximated: every key and value is made from exact inputs, by
the same operations as in a run from the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RebuildPlan:
    """Which positions of a layer are computed: its input from `first[layer]` to `end`, its output from `first[layer + 1]`.

    The keys and values of a windowed layer are made from its whole input. A layer that nothing asks for starts at `end`.
    """

    first: tuple[int, ...]  # one more than there are layers
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens whose ids the rebuild needs: those of the lowest layer, up to `end`."""
        return self.end - self.first[0]

    @property
    def token_equivalents(self) -> float:
        """Tokens that cost as much in a run of the whole model, counting a layer's output (its products of keys and
        values for further positions, a few percent, are left out)."""
        return sum(self.end - first for first in self.first[1:]) / (len(self.first) - 1)


def plan_rebuild(windows: Sequence[int | None], end: int, start: int = 0, page_size: int = 1) -> RebuildPlan:
    """What it takes to rebuild all windows at `end`.

    Args:
        windows: per layer from the lowest, its window (visible keys, the query's own included) or None for full attention.
        end: the position to resume at: tokens before it are in the full-attention pages.
        start: an earlier position with a window snapshot; 0 is the start of the sequence, where nothing is needed.
        page_size: rebuild whole pages of so many tokens, though the resume sees only the end of the first one: pages that
            a cache keeps may serve a resume at another position too. `end` is then a multiple of it.

    Raises:
        ValueError: start and end are not `0 <= start <= end`, or a window is less than 1.
    """
    if not 0 <= start <= end:
        raise ValueError(f"plan_rebuild: start and end must be 0 <= start <= end, got {start} and {end}")
    first = [end]
    for window in reversed(windows):
        if window is not None and window < 1:
            raise ValueError(f"plan_rebuild: windows must be at least 1 or None, got {window}")
        if window is None:
            first.append(first[-1])
            continue
        # Of the layer's own keys those that the resume sees, and those that the outputs asked for see.
        resume_reach = -(-(window - 1) // page_size) * page_size
        first.append(max(start, min(first[-1] - (window - 1), end - resume_reach)))
    return RebuildPlan(tuple(reversed(first)), end)
