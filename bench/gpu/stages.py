"""The stages of `make gpu`: what each runs, and for how long at most. Each is a process of its own."""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .bench import Row, choose
from .ceilings import Measured
from .libraries import OUTPUT, ROOT, build_ceilings, build_conformance, load_build_module
from .machine import Machine
from .predicted import card_of, compare
from .processes import Outcome, run_logged
from .targets import judge_all

CHECK_ARCHS = ("80", "90a")  # what nvcc compiles for where there is no card
BUILD_MINUTES, CONFORMANCE_MINUTES, SUITE_MINUTES, SANITIZER_MINUTES = 6, 3, 6, 3
BENCH_MINUTES, BENCH_PEER_MINUTES = 8, 4  # after the second no further peer is prepared
MAX_BENCH_RUNS = 4  # each one more after a case that took the process down


@dataclass
class Context:
    """What a stage may know. `selection` goes to the benchmark's --cases."""

    machine: Machine
    folder: Path  # for logs and intermediate results
    selection: str | None = None
    peers: bool = True

    def built(self, name: str) -> Path | None:
        """A library that the build stage made for this card."""
        found = OUTPUT / f"lib{name}_{self.machine.arch}.so"
        return found if self.machine.arch and found.exists() else None

    def python(self, name: str, minutes: float, *arguments: str, **variables: str) -> Outcome:
        """Runs this Python with arguments, from the root of the checkout; its output goes to `folder/name.log`."""
        return run_logged([sys.executable, *arguments], self.folder / f"{name}.log", minutes * 60, ROOT, variables)


@dataclass
class StageResult:
    """`status` is ok, failed or skipped; `summary` is one line, `detail` what the JSON keeps."""

    status: str
    summary: str
    detail: dict = field(default_factory=dict)


def from_outcome(outcome: Outcome, summary: str, detail: dict | None = None) -> StageResult:
    """Of a process: what it said in its last line, unless it failed."""
    status = "ok" if outcome.passed else "failed"
    note = "" if outcome.passed else f" ({outcome.why}; see {outcome.log})"
    return StageResult(status, summary + note, detail or {})


def build(context: Context) -> StageResult:
    """The package's library for this card, and our own two; without a card, that everything compiles."""
    build_module = load_build_module()
    nvcc = build_module.find_nvcc()
    has_card = context.machine.arch is not None
    archs = [context.machine.arch] if has_card else list(CHECK_ARCHS)
    mode = "cuda" if nvcc and has_card else "auto"
    variables = {"SWA_ATTN_CUDA_ARCHS": ";".join(archs)} if has_card else {}
    outcome = None
    if has_card or not build_module.CHECKOUT.joinpath("swa_attn", build_module.LIBRARY_NAME).exists():
        outcome = context.python("build", BUILD_MINUTES, "csrc/build.py", mode, **variables)
    problems = [] if outcome is None or outcome.passed else [f"csrc/build.py {mode}: {outcome.why}, see {outcome.log}"]
    built = []
    for arch in archs if nvcc else ():
        for name, make in (("conformance", build_conformance), ("ceilings", build_ceilings)):
            try:
                make(nvcc, arch)
                built.append(f"{name} sm_{arch}")
            except RuntimeError as error:
                (context.folder / f"build_{name}_{arch}.log").write_text(str(error))
                problems.append(f"{name} for sm_{arch} does not compile")
    said = ["the package's library" if outcome else "the package's library was there", *built]
    if not nvcc:
        said.append("nvcc was not found: no CUDA")
    detail = {"built": built, "nvcc": nvcc, "problems": problems}
    return StageResult("failed" if problems else "ok", "; ".join(problems or said), detail)


def conformance(context: Context) -> StageResult:
    """Card against emulator; without a card the emulator's half."""
    file, library = context.folder / "conformance.json", context.built("conformance")
    file.unlink(missing_ok=True)  # of an earlier run
    options = ["--json", str(file), *(["--library", str(library)] if library else [])]
    outcome = context.python("conformance", CONFORMANCE_MINUTES, "-m", "bench.gpu.conformance", *options)
    found = json.loads(file.read_text()) if file.exists() else {"running": "", "probes": []}
    compared = sum(p["error"] is not None for p in found["probes"])
    failed = [p["probe"] for p in found["probes"] if not p["passed"]]
    summary = f"{len(found['probes'])} probes, {compared} compared with the card, {len(failed)} failed"
    if failed:
        summary += f": {', '.join(failed[:4])}"
    if found["running"]:
        summary += f"; it ended in {found['running']!r}"
    return from_outcome(outcome, summary, found)


def suite(context: Context) -> StageResult:
    """The op suite on the card with pytest, for both backends; without a card the harness's own tests."""
    if importlib.util.find_spec("pytest") is None:
        return StageResult("skipped", "pytest is not importable")
    workers = ["-n", "8"] if context.machine.arch and importlib.util.find_spec("xdist") else []
    plain = ["-p", "no:cacheprovider", "--tb=short", "-rfE", "--color=no"]
    what = ["tests/ops", "tests/gpu"] if context.machine.arch else ["tests/gpu"]
    # What is asked for by name must be there: a library that does not load is no reason to skip.
    asked = "cuda,triton" if load_build_module().find_nvcc() else "triton"
    variables = {"SWA_ATTN_TEST_BACKENDS": asked} if context.machine.arch else {}
    outcome = context.python("suite", SUITE_MINUTES, "-m", "pytest", *plain, *workers, *what, **variables)
    return from_outcome(outcome, outcome.last_line)


def sanitizer(context: Context) -> StageResult:
    """Every op under compute-sanitizer: memcheck for both backends, racecheck and synccheck for CUDA."""
    tool = shutil.which("compute-sanitizer")
    if not context.machine.arch or not tool:
        return StageResult("skipped", "compute-sanitizer was not found" if context.machine.arch else "there is no GPU")
    runs = [("memcheck", "cuda"), ("racecheck", "cuda"), ("synccheck", "cuda"), ("memcheck", "triton")]

    def run(check: str, backend: str) -> str:
        command = [tool, "--tool", check, "--error-exitcode", "9"]
        if check == "memcheck":  # torch asks about pointers that CUDA does not know, and means it
            command += ["--report-api-errors", "no"]
        command += [sys.executable, "-m", "bench.gpu.sanitized", backend]
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation: bounds are exact
        log = context.folder / f"sanitizer_{check}_{backend}.log"
        outcome = run_logged(command, log, SANITIZER_MINUTES * 60, ROOT, variables)
        return "ok" if outcome.passed else f"{outcome.why}: {outcome.last_line}"

    with ThreadPoolExecutor() as pool:  # nothing is timed, so they may share the card
        found = pool.map(lambda pair: run(*pair), runs)
        detail = {f"{check} {backend}": said for (check, backend), said in zip(runs, found)}
    failed = [name for name, said in detail.items() if said != "ok"]
    summary = f"{len(detail) - len(failed)} of {len(detail)} clean" + (f"; not: {', '.join(failed)}" if failed else "")
    return StageResult("failed" if failed else "ok", summary, detail)


def benchmark(context: Context) -> StageResult:
    """The table; it needs a card. A case that takes the process down is tried again without peers, then left out."""
    library = context.built("ceilings")
    if not library:
        return StageResult("skipped", "there is no GPU" if not context.machine.arch else "the ceilings were not built")
    file, picture = context.folder / "bench.json", context.folder / "roofline.png"
    picture.unlink(missing_ok=True)  # of an earlier run
    remaining = [case.name for case in choose(context.selection)]
    detail: dict = {"ceilings": None, "lost": [], "rows": []}
    peers, start = context.peers, time.monotonic()
    for attempt in range(MAX_BENCH_RUNS):
        file.unlink(missing_ok=True)
        options = ["--library", str(library), "--json", str(file), "--png", str(picture)]
        options += ["--cases", ",".join(remaining), "--minutes", str(BENCH_PEER_MINUTES)]
        options += [] if peers else ["--no-peers"]
        minutes = BENCH_MINUTES - (time.monotonic() - start) / 60
        name = f"bench_{attempt + 1}"
        outcome = context.python(name, minutes, "-m", "bench.gpu.bench", *options, PYTHONUNBUFFERED="1")
        found = json.loads(file.read_text()) if file.exists() else {"ceilings": None, "running": "", "rows": []}
        detail["ceilings"] = detail["ceilings"] or found["ceilings"]
        detail["rows"] += found["rows"]
        done = {row["case"] for row in found["rows"]}
        remaining = [case for case in remaining if case not in done]
        if not found["running"] or outcome.code is None:
            break
        if not peers:
            detail["lost"].append(found["running"])
            remaining.remove(found["running"])
        peers = False
        if not remaining:
            break
    timed = sum(row["us"] is not None for row in detail["rows"])
    summary = f"{timed} of {len(detail['rows'])} rows have a time"
    if remaining or detail["lost"]:
        summary += f"; no rows for {', '.join([*detail['lost'], *remaining])}"
    result = from_outcome(outcome, summary, detail | assessed(context.machine, detail))
    return replace(result, status="failed") if detail["lost"] else result


STAGES: dict[str, Callable[[Context], StageResult]] = {
    "build": build,
    "conformance": conformance,
    "suite": suite,
    "sanitizer": sanitizer,
    "bench": benchmark,
}


def assessed(machine: Machine, detail: dict) -> dict:
    """Of the rows and ceilings of the benchmark: what was predicted of them, and which targets they meet."""
    rows = [Row(**row) for row in detail["rows"]]
    ceilings = Measured(**detail["ceilings"]).ceilings() if detail["ceilings"] else None
    predicted = compare(card_of(machine, ceilings), rows) if ceilings else []
    return {"predicted": [*map(asdict, predicted)], "targets": [*map(asdict, judge_all(rows, ceilings))]}
