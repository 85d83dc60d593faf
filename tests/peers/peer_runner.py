"""Runs other libraries' test suites on our ops and says what passed, what failed, and what we do not do.

One pytest process per test file, so that a crash takes one file with it. Nothing is downloaded and nothing is written into
the checkouts.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peer_suites import SUITES, Expected, File, Suite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTCOMES = ("passed", "failed", "outside", "unfinished", "skipped")


@dataclass
class Tally:
    """What came of one checkout: a line per test, and how many cases there would have been."""

    suite: Suite
    commit: str
    backend: str
    level: str
    seconds: float = 0.0
    cases: int = 0
    lines: list[dict] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(line["outcome"] == outcome for line in self.lines)

    @property
    def forward_only(self) -> int:
        return sum(line["forward_only"] for line in self.lines)

    def failures(self) -> list[tuple[dict, Expected | None]]:
        """Each failed test with what expected it, or None where nothing did."""
        used: Counter = Counter()
        found = []
        for line in self.lines:
            if line["outcome"] == "failed":
                expected = next((e for e in self.suite.expected if self._covers(e, line, used[e])), None)
                used[expected] += 1
                found.append((line, expected))
        return found

    def _covers(self, expected: Expected, line: dict, used: int) -> bool:
        apart = re.search(r"Greatest absolute difference: (\S+)", line["reason"])
        close = apart is not None and float(apart[1]) <= expected.within
        here = (expected.backend, expected.level) == (self.backend, self.level)
        return here and close and expected.part in line["id"] and used < expected.at_most

    def reasons(self, outcome: str) -> Counter:
        return Counter(line["reason"] for line in self.lines if line["outcome"] == outcome)


def detect(checkout: Path, suites: Sequence[Suite] = SUITES) -> Suite:
    """Whose checkout this is, by the files that only that library has. Raises SystemExit when it is nobody's."""
    for suite in suites:
        if all((checkout / mark).exists() for mark in suite.marks):
            return suite
    known = "; ".join(f"{suite.name} has {' and '.join(suite.marks)}" for suite in suites)
    raise SystemExit(f"{checkout}: expected a checkout of {', '.join(s.name for s in suites)} ({known})")


def commit_of(checkout: Path) -> str:
    """Short hash and date of the checkout's commit, or "no git" where git does not know it."""
    if not (checkout / ".git").exists():
        return "no git"
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h %cs"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return result.stdout.strip() or "no git"


def run_file(suite: Suite, file: File, checkout: Path, options: argparse.Namespace) -> list[dict]:
    """The lines that the plugin wrote for one test file."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results"
        results.touch()
        command = [sys.executable, "-m", "pytest", "-p", "peer_plugin", "-p", "no:cacheprovider", "--noconftest"]
        command += [
            "-c",
            os.devnull,
            f"--rootdir={checkout}",
            "--import-mode=importlib",
            "-q",
            "--tb=no",
            "-W",
            "ignore",
        ]
        command += [f"--peer-adapter={suite.adapter}", f"--peer-roots={','.join(suite.roots)}"]
        command += [f"--peer-checkout={checkout}", f"--peer-results={results}", f"--peer-backend={options.backend}"]
        command += [f"--peer-sample={0 if options.all else options.sample}", f"--peer-seed={options.seed}"]
        command += [f"--peer-longest={file.longest}", f"--peer-outside={json.dumps(suite.outside)}"]
        command += [f"--peer-seconds={options.seconds}", f"--peer-capability={file.capability}"]
        command += ["-k", options.keyword] if options.keyword else []
        paths = [HERE, ROOT, *(checkout / path for path in suite.paths), *os.environ.get("PYTHONPATH", "").split(":")]
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": ":".join(str(p) for p in paths if p),
            "SWA_ATTN_BACKEND": options.backend,  # for the whole process; another one is then an error
        }
        finished = subprocess.run(
            [*command, str(checkout / file.path)], cwd=scratch, env=environment, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in results.read_text().splitlines()]
    if not any("cases" in line for line in lines):
        text = (finished.stderr.strip() or finished.stdout.strip() or "no output").splitlines()[-1]
        reason = f"pytest ended with {finished.returncode}: {text}"
        lines.append(dict(id=file.path, outcome="failed", reason=reason, seconds=0.0, forward_only=False))
    return lines


def run_suite(suite: Suite, checkout: Path, options: argparse.Namespace) -> Tally:
    tally = Tally(suite, commit_of(checkout), options.backend, cpu_level(options.backend))
    start = time.monotonic()
    for file in suite.files:
        if not (checkout / file.path).exists():
            print(f"{suite.name}: {file.path} is not in this checkout")
            continue
        lines = run_file(suite, file, checkout, options)
        tally.cases += sum(line.get("cases", 0) for line in lines)
        tally.lines += (tests := [line for line in lines if "outcome" in line])
        counts = Counter(line["outcome"] for line in tests)
        print(f"{suite.name}: {file.path}: " + ", ".join(f"{counts[o]} {o}" for o in OUTCOMES if counts[o]), flush=True)
    tally.seconds = time.monotonic() - start
    return tally


def report(tallies: Sequence[Tally]) -> str:
    """Failures by test, then a table of counts, then what was outside and why."""
    text = []
    for tally in tallies:
        for line, expected in tally.failures():
            text.append(f"FAILED {tally.suite.name} {line['id']}: {line['reason']}")
            text += [f"  expected: {expected.why}"] if expected else []
        for line in tally.lines:
            if line["outcome"] == "unfinished":
                text.append(f"UNFINISHED {tally.suite.name} {line['id']}: {line['reason']}")
    text += [
        "",
        "| peer | commit | cases | run | passed | of these forward only | failed | outside | unfinished | skipped | s |",
    ]
    text += ["|---" * 11 + "|"]
    for tally in tallies:
        counts = [tally.count(o) for o in OUTCOMES]
        numbers = [tally.cases, len(tally.lines), counts[0], tally.forward_only, *counts[1:], round(tally.seconds)]
        text.append("| " + " | ".join([tally.suite.name, tally.commit, *map(str, numbers)]) + " |")
    for outcome in ("outside", "skipped"):
        for tally in tallies:
            reasons = tally.reasons(outcome).most_common()
            text += ["", f"{tally.suite.name}, {outcome}:"] if reasons else []
            text += [f"  {count:5}  {reason}" for reason, count in reasons]
    return "\n".join(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="PATH", help="a checkout; whose, its files tell")
    parser.add_argument("--backend", default="cpu", choices=("cpu", "reference"))
    parser.add_argument("--sample", type=int, default=2, help="cases per test function that pass or fail (default 2)")
    parser.add_argument("--all", action="store_true", help="every case, however long that takes")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--seconds", type=int, default=60, help="for one case (default 60)")
    parser.add_argument("-k", dest="keyword", default="", help="as in pytest")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """0 when every failure was expected, 1 otherwise or when nothing was decided."""
    options = parse(arguments)
    checkouts = [path.resolve() for path in options.checkouts]
    suites = [detect(path) for path in checkouts]
    level = cpu_level(options.backend)
    which = "every case" if options.all else f"{options.sample} cases per test function, seed {options.seed}"
    backend = " at level ".join(filter(None, (options.backend, level)))
    print(f"backend {backend}, {which}, at most {options.seconds} s each")
    tallies = [run_suite(suite, path, options) for suite, path in zip(suites, checkouts)]
    print(report(tallies))
    unexpected = any(why is None for tally in tallies for _, why in tally.failures())
    undecided = any(tally.count("passed") + tally.count("failed") == 0 for tally in tallies)
    return 1 if unexpected or undecided else 0


def cpu_level(backend: str) -> str:
    """The instruction-set level that the CPU backend runs at here, or "" for a backend without levels."""
    if backend != "cpu":
        return ""
    from swa_attn import native

    return native.cpu_level()
