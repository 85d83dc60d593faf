"""The benchmark: every case, our backends and every peer that can be imported, against the case's floor.

    python -m bench.gpu.bench [--library FILE] [--json FILE] [--png FILE] [--cases P1,D1-B64] [--minutes 5]
    python -m bench.gpu.bench --once cuda --cases P1        one call, for a profiler

A result is checked before it is timed; a wrong one gets no speed. Rows with "no sinks" leave the case's sinks out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .cases import Case, Ceilings, all_cases, floor
from .ceilings import measure_ceilings
from .check import Checker
from .inputs import Call, build, copies_for
from .libraries import CeilingKernels
from .ours import OurBackend
from .peers import Peer, all_peers
from .roofline import draw
from .timing import CardClock, Clock, Work, make_work, measure

OURS = ("cuda", "triton")


@dataclass
class Row:
    """One implementation on one case. Without a time, `problem` says why there is none."""

    case: str
    implementation: str
    floor_us: float
    bound_by: str
    us: float | None = None
    fastest_us: float | None = None
    slowest_us: float | None = None
    tflops: float | None = None
    gbs: float | None = None
    floor_share: float | None = None
    over_ours: float | None = None  # its time over that of our fastest backend
    relative_error: float | None = None
    counts_sinks: bool = True
    mode: str = ""
    copies: int = 0
    problem: str = ""


def prepare(
    implementation: Peer, calls: list[Call], checker: Checker, row: Row, capture: Callable[[list], Work]
) -> Work | None:
    """Ready to be timed, or None with the reason in the row: missing, failing, or wrong."""
    case = calls[0].case
    try:
        missing = implementation.lacks(case)
        if missing:
            row.problem = f"cannot: {missing}"
            return None
        functions = [implementation.prepare(call) for call in calls]
        for i in {0, len(calls) - 1}:
            calls[i].out.fill_(float("nan"))
            verdict = checker.verify(i, functions[i](), implementation.counts_sinks)
            row.relative_error = verdict.relative_error
            if verdict.problem:
                row.problem = f"WRONG: {verdict.problem}"
                return None
        return capture(functions)
    except Exception as error:  # a peer's failure is a line in the table, not the end of it
        row.problem = f"raised {type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        return None


def run_case(
    case: Case,
    implementations: Iterable[Peer],
    ceilings: Ceilings,
    calls: list[Call],
    clock: Clock,
    capture: Callable[[list], Work],
    deadline: float = float("inf"),
) -> list[Row]:
    """All implementations on one case, timed together. After `deadline` (of time.monotonic) no further peer is prepared."""
    least = floor(case, ceilings)
    rows: dict[str, Row] = {}
    works: dict[str, Work] = {}
    checker = Checker(calls)
    for implementation in implementations:
        row = rows[implementation.name] = Row(case.name, implementation.name, least.us, least.bound_by)
        row.counts_sinks = implementation.counts_sinks or not case.layer.sinks
        row.copies = len(calls)
        if implementation.name not in OURS and time.monotonic() > deadline:
            row.problem = "not run: the time given to the benchmark was used up"
            continue
        work = prepare(implementation, calls, checker, row, capture)
        if work:
            works[implementation.name] = work
    for name, timing in measure(works, clock).items():
        fill(rows[name], case, timing.median, timing.fastest, timing.slowest, timing.mode)
    ours = [rows[name].us for name in OURS if name in rows and rows[name].us]
    for row in rows.values():
        if row.us and ours:
            row.over_ours = row.us / min(ours)
    return list(rows.values())


def fill(row: Row, case: Case, median: float, fastest: float, slowest: float, mode: str) -> None:
    """Everything that follows from the seconds of a call."""
    row.us, row.fastest_us, row.slowest_us, row.mode = median * 1e6, fastest * 1e6, slowest * 1e6, mode
    row.tflops, row.gbs = case.flops / median / 1e12, case.bytes / median / 1e9
    row.floor_share = row.floor_us / row.us


HEADING = (
    f"{'case':<9} {'implementation':<20} {'us':>9} {'TFLOP/s':>8} {'GB/s':>7} {'% floor':>8} {'x ours':>7} {'error':>8}"
)


def format_row(row: Row) -> str:
    label = f"{row.case:<9} {row.implementation:<20}"
    if row.us is None:
        return f"{label} {row.problem}"
    notes = [] if row.counts_sinks else ["no sinks"]
    notes += ["not in a graph"] if row.mode == "eager" else []
    over = f"{row.over_ours:7.2f}" if row.over_ours else f"{'-':>7}"
    return (
        f"{label} {row.us:9.2f} {row.tflops:8.1f} {row.gbs:7.0f} {100 * row.floor_share:7.1f}% {over} "
        f"{row.relative_error:8.1e}  {', '.join(notes)}"
    ).rstrip()


def describe(case: Case, ceilings: Ceilings) -> str:
    """The line above a case's rows."""
    layer, least = case.layer, floor(case, ceilings)
    lengths = sorted(set(case.seqs), reverse=True)
    seqs = " + ".join(f"{case.seqs.count(s)} x {s[0]} of {s[1]}" for s in lengths)
    where = f" ({case.host_seqs} from host pages)" if case.host_seqs else ""
    return f"{case.name}: {layer.name}, {case.op} {seqs}{where}; floor {least.us:.1f} us ({least.bound_by})"


def choose(names: str | None) -> list[Case]:
    """The cases with these comma-separated names, or all; raises SystemExit for an unknown one."""
    cases = {case.name: case for case in all_cases()}
    wanted = names.split(",") if names else list(cases)
    for name in wanted:
        if name not in cases:
            raise SystemExit(f"no case is called {name!r}; there are: {', '.join(cases)}")
    return [cases[name] for name in wanted]


def run_once(backend: str, cases: list[Case]) -> None:
    """One call per case inside an NVTX range of the case's name, after one that is not: what a profiler should see."""
    for case in cases:
        (call,) = build(case, 1, torch.device("cuda"))
        run = OurBackend(backend).prepare(call)
        run()
        torch.cuda.synchronize()
        with torch.cuda.nvtx.range(case.name):
            run()
            torch.cuda.synchronize()
        print(f"{case.name}: {backend} ran once")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", dest="kernels", type=Path, help="the ceilings' kernels, built for this card")
    parser.add_argument("--json", type=Path, help="where to write the numbers, after every case")
    parser.add_argument("--png", type=Path, help="where to draw the roofline, if matplotlib is there")
    parser.add_argument("--cases", help="comma-separated names; all by default")
    parser.add_argument("--minutes", type=float, default=5.0, help="after this no further peer is prepared")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--once", choices=OURS, help="run each case once with this backend, and measure nothing")
    args = parser.parse_args(argv)
    cases = choose(args.cases)
    if not torch.cuda.is_available():
        print("there is no GPU: nothing can be measured")
        return 1
    with torch.inference_mode():
        if args.once:
            run_once(args.once, cases)
            return 0
        if not args.kernels:
            parser.error("--library is needed to measure the ceilings")
        return run_all(cases, args)


def run_all(cases: list[Case], args: argparse.Namespace) -> int:
    deadline = time.monotonic() + 60 * args.minutes
    clock, device = CardClock(), torch.device("cuda")
    measured = measure_ceilings(CeilingKernels(args.kernels), clock)
    print("\n".join(measured.lines()))
    ceilings, rows = measured.ceilings(), []
    implementations = [*map(OurBackend, OURS), *([] if args.no_peers else all_peers())]
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    print(HEADING)
    for case in cases:
        print(describe(case, ceilings), flush=True)
        if args.json:
            save(args.json, measured.as_json(), rows, case.name)
        with torch.cuda.nvtx.range(case.name):
            try:
                calls = build(case, copies_for(case, l2_bytes), device)
                found = run_case(case, implementations, ceilings, calls, clock, make_work, deadline)
            except Exception as error:  # out of memory, say: this case is lost, not the others
                least = floor(case, ceilings)
                problem = f"raised {type(error).__name__}: {error}"
                found = [Row(case.name, "all", least.us, least.bound_by, problem=problem)]
        print("\n".join(map(format_row, found)), flush=True)
        if not card_answers():
            print(f"the card no longer answers after {case.name}")
            return 3
        calls = None
        torch.cuda.empty_cache()
        rows += found
    if args.json:
        save(args.json, measured.as_json(), rows, "")
    if args.png:
        print(draw(args.png, cases, rows, ceilings))
    wrong = [f"{r.case} {r.implementation}" for r in rows if r.implementation in OURS and r.problem.startswith("WRONG")]
    if wrong:
        print(f"wrong results of ours: {', '.join(wrong)}")
    return 1 if wrong else 0


def card_answers() -> bool:
    """False after an illegal access: nothing more can be done in this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def save(file: Path, measured: dict, rows: list[Row], running: str) -> None:
    """`running` names the case that is under way: lost if the process ends here."""
    found = {"ceilings": measured, "running": running, "rows": [asdict(r) for r in rows]}
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
