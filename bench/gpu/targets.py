"""What the kernels are to reach on an H200: ratios to floors, ceilings and peers of the same run, and whether they do.

A target is met or missed by the rows of the cuda backend. One that lacks a row or a ceiling is not measured, never met.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .bench import OURS, Row
from .cases import Ceilings, all_cases

BACKEND, FA3 = "cuda", "fa3 (vLLM)"
CASES = {case.name: case for case in all_cases()}
COMPARISONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


class NotMeasured(Exception):
    """Says what is missing."""


class Run:
    """The rows and ceilings of one run of the benchmark."""

    def __init__(self, rows: Iterable[Row], ceilings: Ceilings | None):
        self.rows = {(row.case, row.implementation): row for row in rows}
        self._ceilings = ceilings

    @property
    def ceilings(self) -> Ceilings:
        if self._ceilings is None:
            raise NotMeasured("no ceilings")
        return self._ceilings

    @property
    def link(self) -> float:
        """Bytes per second across the host link."""
        if self.ceilings.link is None:
            raise NotMeasured("the host link has no ceiling")
        return self.ceilings.link

    def row(self, case: str, implementation: str = BACKEND) -> Row:
        """A row that has a time."""
        row = self.rows.get((case, implementation))
        if row is None:
            raise NotMeasured(f"no row of {implementation} for {case}")
        if row.us is None:
            raise NotMeasured(f"{implementation} for {case}: {row.problem}")
        return row

    def peers(self, case: str) -> list[Row]:
        """Those that have a time; what the ones without sinks leave out is to their advantage."""
        timed = [r for (c, name), r in self.rows.items() if c == case and name not in OURS and r.us is not None]
        if not timed:
            raise NotMeasured(f"no peer has a time for {case}")
        return timed


@dataclass(frozen=True)
class Reading:
    """A target's value, and with what it was compared, where the target does not say so."""

    value: float
    against: str = ""


Quantity = Callable[[Run, str], Reading]


def time_over_floor(run: Run, case: str) -> Reading:
    row = run.row(case)
    return Reading(row.us / row.floor_us, f"floor {row.floor_us:.1f} us ({row.bound_by})")


def speedup_over_fastest_peer(run: Run, case: str) -> Reading:
    ours, peers = run.row(case), run.peers(case)
    fastest = min(peers, key=lambda row: row.us)
    sinks = "" if fastest.counts_sinks else ", no sinks"
    return Reading(fastest.us / ours.us, f"{fastest.implementation}{sinks}; {len(peers)} timed")


def speedup_over_fa3(run: Run, case: str) -> Reading:
    return Reading(run.row(case, FA3).us / run.row(case).us)


def share_of_gemm(run: Run, case: str) -> Reading:
    """Of the rate of a large GEMM, what the necessary multiply-adds are done at."""
    return Reading(CASES[case].flops / (run.row(case).us * 1e-6) / run.ceilings.flops)


def microseconds_in_a_graph(run: Run, case: str) -> Reading:
    row = run.row(case)
    if row.mode != "graph":
        raise NotMeasured(f"{case} was not timed in a graph")
    return Reading(row.us)


def share_of_link(run: Run, case: str) -> Reading:
    """Of the measured rate of the host link, what the case's host bytes cross it at."""
    return Reading(CASES[case].link_bytes / (run.row(case).us * 1e-6) / run.link)


def over_case(other: str) -> Quantity:
    """The case's time over that of another."""

    def ratio(run: Run, case: str) -> Reading:
        return Reading(run.row(case).us / run.row(other).us)

    return ratio


def over_parts(device_only: str) -> Quantity:
    """The time of a case with some sequences on the host over the longer of what its two parts take by themselves.

    These are the same batch with all pages on the device, `device_only`, and the host's bytes across the link at its
    measured rate. Of one call only the end can be timed, so that the device's sequences are slowed shows only where they
    are the longer part, as in H4-B256: there this is how much slower they are. Where the link is the longer part, as in
    H3-B64, it shows that they are done in the link's time.
    """

    def ratio(run: Run, case: str) -> Reading:
        device_us = run.row(device_only).us
        link_us = CASES[case].link_bytes / run.link * 1e6
        longer = f"{device_only}, {device_us:.1f} us" if device_us >= link_us else f"link, {link_us:.1f} us"
        return Reading(run.row(case).us / max(device_us, link_us), longer)

    return ratio


@dataclass(frozen=True)
class Target:
    """`quantity` of `case` is to be `limit` or better."""

    case: str
    name: str
    quantity: Quantity
    comparison: str
    limit: float


TARGETS = (
    Target("P1", "time / floor", time_over_floor, "<=", 1.25),
    Target("P1", "fastest peer's time / ours", speedup_over_fastest_peer, ">=", 1.8),
    Target("P5", "time / floor", time_over_floor, "<=", 1.35),
    Target("P5", "fastest peer's time / ours", speedup_over_fastest_peer, ">=", 1.3),
    Target("P4", "FlashAttention-3's time / ours", speedup_over_fa3, ">=", 1.0),
    Target("P4", "share of the GEMM's rate", share_of_gemm, ">=", 0.7),
    Target("P8", "FlashAttention-3's time / ours", speedup_over_fa3, ">=", 1.0),
    Target("P8", "share of the GEMM's rate", share_of_gemm, ">=", 0.7),
    Target("D1-B1", "microseconds in a graph", microseconds_in_a_graph, "<=", 4.0),
    Target("D1-B256", "time / floor", time_over_floor, "<=", 1.15),
    Target("D3", "time / floor", time_over_floor, "<=", 1.10),
    Target("D7", "time / D1-B64's (bfloat16 pages)", over_case("D1-B64"), "<", 1.0),
    Target("H1-B64", "share of the host link's rate", share_of_link, ">=", 0.9),
    Target("H3-B64", "time / longer of D1-B64's, link's", over_parts("D1-B64"), "<=", 1.10),
    Target("H4-B256", "time / longer of D1-B256's, link's", over_parts("D1-B256"), "<=", 1.10),
)


@dataclass(frozen=True)
class Verdict:
    """What became of a target: `status` is met, missed or not measured, then `note` says why."""

    case: str
    target: str
    comparison: str
    limit: float
    measured: float | None
    status: str
    note: str


def judge(target: Target, run: Run) -> Verdict:
    told = target.case, target.name, target.comparison, target.limit
    try:
        measured = target.quantity(run, target.case)
    except NotMeasured as reason:
        return Verdict(*told, None, "not measured", str(reason))
    met = COMPARISONS[target.comparison](measured.value, target.limit)
    return Verdict(*told, measured.value, "met" if met else "missed", measured.against)


def judge_all(rows: Iterable[Row], ceilings: Ceilings | None) -> list[Verdict]:
    """Every target, in the table's order."""
    run = Run(rows, ceilings)
    return [judge(target, run) for target in TARGETS]


HEADING = f"{'case':<9} {'target (for an H200)':<36} {'limit':>8} {'measured':>9}  verdict"


def lines(verdicts: list[Verdict]) -> list[str]:
    """The table, and how many of each verdict."""
    found = [HEADING]
    for v in verdicts:
        measured = "-" if v.measured is None else f"{v.measured:.3f}"
        limit = f"{v.comparison} {v.limit:.2f}"
        line = f"{v.case:<9} {v.target:<36} {limit:>8} {measured:>9}  {v.status}"
        found.append(line + (f" ({v.note})" if v.note else ""))
    counts = [f"{sum(v.status == status for v in verdicts)} {status}" for status in ("met", "missed", "not measured")]
    return [*found, f"targets: {', '.join(counts)}"]
