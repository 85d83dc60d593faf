"""`make gpu`: build, conformance, the op suite, the sanitizer and the benchmark on the card at hand, in one go.

    python -m bench.gpu [--stages build,bench] [--cases P1,D2] [--no-peers] [--output DIR]
    python -m bench.gpu --ncu P1                                   prints how to profile a case

Every stage runs in processes of its own under a time limit, so that one that crashes or hangs loses its own results only.
The JSON is written after every stage; stages run later on the same day and card go into the same file. Without a GPU the
parts run that need none.
"""

import argparse
import datetime
import json
import shutil
import sys
import time
import traceback
from pathlib import Path

from . import predicted, targets
from .bench import HEADING, Row, choose, format_row
from .libraries import OUTPUT, ROOT
from .machine import Machine, describe
from .stages import STAGES, Context, StageResult

RESULTS = ROOT / "bench" / "results"
NCU = "ncu --clock-control none --set full --nvtx --nvtx-include '{case}/' -o build/gpu/{case}_{backend} \\\n"
NCU += "    {python} -m bench.gpu.bench --once {backend} --cases {case}"


def result_name(machine: Machine, date: datetime.date) -> str:
    return f"gpu_{machine.slug}_{date.isoformat()}"


def run_stage(name: str, context: Context) -> StageResult:
    try:
        return STAGES[name](context)
    except Exception as error:  # a mistake in a stage's own code is that stage's failure
        log = context.folder / f"{name}_error.log"
        log.write_text(traceback.format_exc())
        return StageResult("failed", f"{type(error).__name__}: {error} (see {log})")


def earlier_record(file: Path, machine: Machine, date: datetime.date) -> dict:
    """What is in the file of this card and day already, or a new record if it was taken on something else."""
    record = {"machine": machine.as_json(), "date": date.isoformat(), "stages": {}}
    if file.exists():
        earlier = json.loads(file.read_text())
        if earlier["machine"] == record["machine"]:
            return earlier
    return record


def table(stages: dict[str, dict]) -> list[str]:
    """What is printed last: the benchmark's timed and wrong rows, what was predicted, targets, then a line per stage."""
    lines = []
    bench = stages.get("bench", {})
    rows = [Row(**row) for row in bench.get("rows", [])]
    shown = [row for row in rows if row.us or not row.problem.startswith("cannot")]
    if shown:
        lines += [HEADING, *map(format_row, shown)]
        left_out = sorted({f"{row.implementation}: {row.problem}" for row in rows if row.problem.startswith("cannot")})
        lines += ["", *(f"not run  {line}" for line in left_out)]
    if bench.get("predicted"):
        lines += ["", *predicted.lines(predicted.Comparison(**found) for found in bench["predicted"])]
    if bench.get("targets"):
        lines += ["", *targets.lines([targets.Verdict(**found) for found in bench["targets"]])]
    lines += ["", *(f"{name:<12} {stage['status']:<8} {stage['summary']}" for name, stage in stages.items())]
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--cases", help="cases of the benchmark, comma-separated; all by default")
    parser.add_argument("--no-peers", action="store_true", help="time our own backends only")
    parser.add_argument("--output", type=Path, help="where the results go; bench/results with a card, else build/gpu")
    parser.add_argument("--ncu", metavar="CASE", help="print the command that profiles a case, and stop")
    args = parser.parse_args(argv)
    if args.ncu:
        choose(args.ncu)
        print("\n".join(NCU.format(case=args.ncu, backend=b, python=sys.executable) for b in ("cuda", "triton")))
        return 0
    choose(args.cases)
    wanted = args.stages.split(",")
    for name in wanted:
        if name not in STAGES:
            parser.error(f"no stage is called {name!r}; there are: {', '.join(STAGES)}")
    machine = describe()
    print("\n".join(machine.lines()), flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    context = Context(machine, OUTPUT, args.cases, not args.no_peers)
    target = args.output or (RESULTS if machine.card else OUTPUT)
    target.mkdir(parents=True, exist_ok=True)
    return run_all(wanted, context, target)


def run_all(wanted: list[str], context: Context, target: Path) -> int:
    date = datetime.datetime.now(datetime.timezone.utc).date()
    name = result_name(context.machine, date)
    file = target / f"{name}.json"
    record, failed = earlier_record(file, context.machine, date), False
    for stage in wanted:
        start = time.monotonic()
        print(f"{stage} ...", flush=True)
        result = run_stage(stage, context)
        seconds = round(time.monotonic() - start, 1)
        print(f"{stage}: {result.status} in {seconds} s: {result.summary}", flush=True)
        entry = {"status": result.status, "seconds": seconds, "summary": result.summary, **result.detail}
        record["stages"][stage] = entry
        failed = failed or result.status == "failed"
        file.write_text(json.dumps(record, indent=1) + "\n")
    picture = context.folder / "roofline.png"
    if "bench" in wanted and record["stages"]["bench"]["status"] != "skipped" and picture.exists():
        shutil.copyfile(picture, target / f"{name}.png")
    lines = table(record["stages"])
    (target / f"{name}.txt").write_text("\n".join([*context.machine.lines(), *lines]) + "\n")
    print("\n".join(lines))
    print(f"written to {target / name}.json and .txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
