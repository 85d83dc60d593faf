"""Medians over interleaved rounds, with a clock that can be replaced: the card's events, or a fake one in tests."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

MIN_SAMPLE_SECONDS = 1e-3  # a sample repeats its work until it is this long
ROUNDS = 15


class Clock(Protocol):
    def seconds(self, work: Callable[[], None], repeats: int) -> float:
        """How long `repeats` runs of `work` take together."""


class CardClock:
    """Events around the work on the current stream."""

    def seconds(self, work: Callable[[], None], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    fastest: float
    slowest: float
    mode: str  # graph | eager


@dataclass
class Work:
    """What one sample runs: `run` makes `calls` calls."""

    run: Callable[[], None]
    calls: int
    mode: str


def make_work(functions: list[Callable[[], object]]) -> Work:
    """All functions in a row, as one CUDA graph where that can be captured, else one after the other.

    A graph holds a call per copy of the inputs, so that replays go through all copies.
    """
    for function in functions:  # compilation, autotuning and lazy initialisation are not timed
        function()
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for function in functions:
                function()
        graph.replay()
        torch.cuda.synchronize()
        return Work(graph.replay, len(functions), "graph")
    except RuntimeError:  # it waits for the host somewhere, or allocates in a way a graph cannot hold
        torch.cuda.synchronize()
        return eager_work(functions)


def eager_work(functions: list[Callable[[], object]]) -> Work:
    """All functions in a row, launched one by one."""

    def run() -> None:
        for function in functions:
            function()

    return Work(run, len(functions), "eager")


def measure(works: Mapping[str, Work], clock: Clock, rounds: int = ROUNDS) -> dict[str, Timing]:
    """Every round times each work once, forwards and backwards in turn, so that drift meets all alike."""
    repeats = {}
    for name, work in works.items():
        clock.seconds(work.run, 1)
        repeats[name] = max(1, round(MIN_SAMPLE_SECONDS / max(clock.seconds(work.run, 1), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds):
        for name in list(works) if i % 2 == 0 else reversed(list(works)):
            work = works[name]
            seconds = clock.seconds(work.run, repeats[name])
            samples[name].append(seconds / (repeats[name] * work.calls))
    return {
        name: Timing(statistics.median(times), min(times), max(times), works[name].mode)
        for name, times in samples.items()
    }
