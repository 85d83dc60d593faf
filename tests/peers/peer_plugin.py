"""The pytest plugin that runs another library's test file on our ops; `peer_runner` starts it, in a process per file.

It puts stand-ins for the library in place, lets "cuda" mean the CPU, runs a sample of each test function and writes one
JSON line per test: its outcome (passed, failed, outside, unfinished, skipped) and why.
"""

import contextlib
import importlib
import json
import math
import random
import re
import signal
import subprocess
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import peer_devices
import peer_gradients
import peer_standins
import pytest
import torch
from peer_adapters import OutsideContract

from swa_attn import backends

# Parameters that put a case outside unless they have this value: only the order in which a sample is tried depends on it.
USUALLY_INSIDE = {
    "dropout_p": (0.0,),
    "alibi": (False,),
    "has_qv": (False,),
    "rotary_fraction": (0.0,),
    "pos_encoding_mode": ("NONE",),
    "use_cuda_graph": (False,),
    "local_enum": (0, 1),
    "causal": (True,),
}
SIZES = ("seqlen", "seq_len", "kv_len", "qo_len", "q_len")  # in names of parameters that are lengths
NO_SIZES = ("page", "split", "invariant", "block")  # in names of integers that add no work
MOST_WORK = 1e10  # product of a case's sizes, in a sample
OUTSIDE_TRIED = 2  # cases per test function that a sample tries although they are usually outside
AGAIN = 0.1  # seconds until a limit that came at a bad moment comes again
KEPT = 2000  # parameter sets per test function that are kept at most while pytest multiplies them out


def _no_process(*args, **options):
    raise OutsideContract("a process of its own, where nothing stands in for the library")


class Unfinished(BaseException):
    """The time of one test is over; not an Exception, so that no test catches it."""


def pytest_addoption(parser):
    group = parser.getgroup("peer")
    for name in ("adapter", "roots", "checkout", "backend", "results", "capability"):
        group.addoption(f"--peer-{name}")
    group.addoption("--peer-outside", type=json.loads)
    for name in ("sample", "seed", "seconds", "longest"):
        group.addoption(f"--peer-{name}", type=int)


def pytest_configure(config):
    checkout = Path(config.getoption("--peer-checkout"))
    adapter = importlib.import_module(f"peer_adapters.{config.getoption('--peer-adapter')}")
    peer_standins.install(config.getoption("--peer-roots").split(","), adapter, checkout)
    peer_devices.install(tuple(int(x) for x in config.getoption("--peer-capability").split(".")))
    peer_gradients.install()
    subprocess.run = _no_process
    config.pluginmanager.register(Sampler(config, getattr(adapter, "REPLACED", {})))


def _likely_inside(params: dict) -> bool:
    one_query = 1 in (params.get("seqlen_q"), params.get("qo_len"))
    for name, values in USUALLY_INSIDE.items():
        if name in params and params[name] not in values and not (name == "causal" and one_query):
            return False
    return torch.float8_e4m3fn not in (params.get("dtype"), params.get("q_dtype"))


def _too_large(params: dict, longest: int) -> bool:
    integers = {name: x for name, x in params.items() if isinstance(x, int) and not isinstance(x, bool)}
    sizes = {name: x for name, x in integers.items() if not any(part in name for part in NO_SIZES)}
    lengths = [x for name, x in sizes.items() if any(part in name for part in SIZES)]
    return max(lengths, default=0) > longest or math.prod(x for x in sizes.values() if x > 1) > MOST_WORK


class Sampler:
    """Chooses the tests that run, watches their time and writes down what came of them."""

    def __init__(self, config, replaced):
        self.sample, self.seed = config.getoption("--peer-sample"), config.getoption("--peer-seed")
        self.seconds, self.longest = config.getoption("--peer-seconds"), config.getoption("--peer-longest")
        self.outside = config.getoption("--peer-outside")
        self.results = Path(config.getoption("--peer-results"))
        self.backend = config.getoption("--peer-backend")
        self.replaced = replaced
        self.total = defaultdict(int)
        self.tried = defaultdict(Counter)

    @pytest.hookimpl(wrapper=True)
    def pytest_generate_tests(self, metafunc):
        """Multiply parameters out without ever holding all of their product: their largest has 304,128 members."""
        name, multiply = metafunc.definition.name, metafunc.parametrize
        self.total[name] = 1

        def parametrize(*args, **options):
            before = len(metafunc._calls) or 1
            multiply(*args, **options)
            self.total[name] *= len(metafunc._calls) / before
            if self.sample and len(metafunc._calls) > KEPT:
                metafunc._calls = random.Random(f"{self.seed}{name}").sample(metafunc._calls, KEPT)

        metafunc.parametrize = parametrize
        return (yield)

    def pytest_collection_modifyitems(self, items):
        for module in {item.module for item in items}:
            for name, function in self.replaced.items():
                setattr(module, name, function)
        if not self.sample:
            return
        kept = [item for item in items if not _too_large(self._params(item), self.longest)]
        order = {item.nodeid: random.Random(f"{self.seed}{item.nodeid}").random() for item in kept}
        items[:] = sorted(kept, key=lambda item: (not _likely_inside(self._params(item)), order[item.nodeid]))

    @staticmethod
    def _params(item) -> dict:
        return item.callspec.params if hasattr(item, "callspec") else {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """True, which ends a test before it begins, once enough of its function were run."""
        if not self.sample:
            return None
        tried, likely = self.tried[item.originalname], _likely_inside(self._params(item))
        decided = tried["passed"] + tried["failed"] + tried["unfinished"]
        enough = decided >= self.sample or tried["outside"] + tried["skipped"] >= self.sample + OUTSIDE_TRIED
        return True if enough or (not likely and tried["unlikely"] >= OUTSIDE_TRIED) else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        peer_gradients.asked = False
        for part, why in self.outside:
            if part in item.originalname:
                raise OutsideContract(why)
        torch.manual_seed(zlib.crc32(f"{self.seed}{item.nodeid}".encode()))  # what runs before it does not matter
        with _limit(self.seconds):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" or (call.when == "setup" and call.excinfo is not None):
            self._write(item.originalname, item.nodeid, *_outcome(report, call.excinfo), call.duration)
            self.tried[item.originalname]["unlikely"] += not _likely_inside(self._params(item))
        return report

    def _write(self, function, nodeid, outcome, reason, seconds):
        self.tried[function][outcome] += 1
        line = dict(id=nodeid, outcome=outcome, reason=reason, seconds=round(seconds, 2))
        line["forward_only"] = outcome == "passed" and peer_gradients.asked
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        if report.failed and isinstance(collector, pytest.Module):
            text = str(report.longrepr).strip().splitlines()[-1]
            outside = OutsideContract.__name__ in text
            reason = text.partition(": ")[2] if outside else text
            self._write("module", collector.nodeid, "outside" if outside else "failed", reason, 0.0)
        return report

    def pytest_sessionfinish(self):
        """Say how many cases there were, and fail a file whose backend was not, to the end, the one that was asked for."""
        ran = backends.choose("prefill", torch.empty(1, 1, 8), torch.empty(1, 1, 1, 8))
        if ran is not backends.load(self.backend):
            self._write("backend", "backend", "failed", f"asked for {self.backend}, {ran.__name__} ran", 0.0)
        with self.results.open("a") as file:
            file.write(json.dumps({"cases": round(sum(self.total.values()))}) + "\n")


def _outcome(report, excinfo) -> tuple[str, str]:
    if excinfo is not None and isinstance(excinfo.value, OutsideContract):
        return "outside", str(excinfo.value)
    if excinfo is not None and isinstance(excinfo.value, Unfinished):
        return "unfinished", str(excinfo.value)
    if report.skipped:
        return "skipped", (str(excinfo.value) if excinfo is not None else "") or "no reason given"
    if report.failed:
        return "failed", _what_failed(excinfo) if excinfo is not None else "it was expected to fail and passed"
    return "passed", ""


def _what_failed(excinfo) -> str:
    """The first line of an error and, of a comparison of tensors, how far apart they were."""
    text = str(excinfo.value)
    apart = re.search(r"Greatest absolute difference: (\S+)", text)
    first = next(iter(text.splitlines()), "")
    return f"{excinfo.typename}: {first}" + (f" {apart[0]}" if apart else "")


def _importing(frame) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _limit(seconds: int):
    def stop(signum, frame):
        if _importing(frame):  # a module that is left half imported would fail every test after this one
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return
        raise Unfinished(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
