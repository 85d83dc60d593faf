"""How large one tier must be for a given hit rate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

from .sizes import LARGEST

CLOSE_ENOUGH = 1.1  # largest : smallest budget between which the rest is interpolated


@dataclass(frozen=True)
class Capacity:
    """A budget in bytes, interpolated between the runs `(bytes, hit rate)`; None when no budget reaches the rate."""

    num_bytes: float | None
    runs: tuple[tuple[int, float], ...]


def capacity_at(target: float, hit_rate: Callable[[int], float], start: int) -> Capacity:
    """The budget whose hit rate is `target`, assuming that more is never less.

    Doubles or halves from `start` until the target lies between two budgets, closes in on it, and interpolates over the
    logarithm of bytes.
    """
    runs: dict[int, float] = {}

    def run(budget: int) -> float:
        if budget not in runs:
            runs[budget] = hit_rate(budget)
        return runs[budget]

    if run(LARGEST) < target:
        return Capacity(None, tuple(sorted(runs.items())))
    low, high = _bracket(target, run, start)
    while high > CLOSE_ENOUGH * low and high - low > 1:
        middle = min(high - 1, max(low + 1, int(exp(_between(target, low, high, run, margin=0.2)))))
        if run(middle) < target:
            low = middle
        else:
            high = middle
    return Capacity(exp(_between(target, low, high, run)), tuple(sorted(runs.items())))


def _bracket(target: float, run: Callable[[int], float], start: int) -> tuple[int, int]:
    """Two budgets, the second twice the first, with the target between their hit rates."""
    budget = start
    if run(budget) < target:
        while run(2 * budget) < target:
            budget *= 2
        return budget, 2 * budget
    while budget > 1 and run(budget // 2) >= target:
        budget //= 2
    return max(1, budget // 2), budget


def _between(target: float, low: int, high: int, run: Callable[[int], float], margin: float = 0.0) -> float:
    """The logarithm of the budget where a straight line between two runs has the target; `margin` keeps off the ends."""
    rise = run(high) - run(low)
    share = (target - run(low)) / rise if rise > 0 else 1.0
    share = min(1 - margin, max(margin, share))
    return log(low) + share * (log(high) - log(low))
