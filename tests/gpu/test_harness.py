"""The benchmark's own parts on a CPU: inputs, the check of results, interleaved timing with a fake clock, the table."""

import contextlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import bench, ceilings, roofline
from bench.gpu.cases import Case, Ceilings, Layer, all_cases, floor
from bench.gpu.check import Checker, sample_rows
from bench.gpu.inputs import build, copies_for, gathered, table_without_holes
from bench.gpu.ours import OurBackend
from bench.gpu.peers import Peer, all_peers
from bench.gpu.timing import Work, eager_work, measure

CPU = torch.device("cpu")
LAYER = Layer("small", 4, 2, 16, 8, 6, sinks=True)
PREFILL = Case("T1", "prefill", LAYER, ((9, 20), (1, 13)), page_size=4)
DECODE = Case("T2", "decode", LAYER, ((2, 21), (2, 9)), page_size=4)
CEILINGS = Ceilings(bytes=1e9, flops=1e12, exps=1e12, launch_seconds=1e-6, link=1e8)


class Altered(Peer):
    """The reference, changed by a function of its result."""

    counts_sinks = True

    def __init__(self, name, change=lambda out: out, counts_sinks=True):
        self.name, self.change, self.counts_sinks = name, change, counts_sinks

    def lacks(self, case):
        return None

    def prepare(self, call):
        call = call if self.counts_sinks else replace(call, sinks=None)
        run = OurBackend("reference", "cpu").prepare(call)
        return lambda: self.change(run())


class Lacking(Altered):
    def lacks(self, case):
        return "head dimension 16 is odd"


class Failing(Altered):
    def prepare(self, call):
        raise RuntimeError("no such kernel\nand a long trace")


class FakeClock:
    """Seconds per run by name of the work; remembers the order."""

    def __init__(self):
        self.order = []

    def seconds(self, work, repeats):
        self.order.append(work.label)
        return repeats * work.cost


class FakeWork:
    def __init__(self, label, cost):
        self.label, self.cost = label, cost


def capture(functions):
    return Work(FakeWork("it", 2e-3 * len(functions)), len(functions), "graph")


@pytest.mark.parametrize(
    "case", [PREFILL, DECODE, replace(PREFILL, host_seqs=2), replace(DECODE, kv_bytes=1, host_seqs=1)], ids=str
)
def test_inputs_hold_the_visible_keys_and_nothing_else(case):
    calls = build(case, 3, CPU)
    pages = [range(max(0, k - q - LAYER.window + 1) // 4, -(-k // 4)) for q, k in case.seqs]
    used = []
    for call in calls:
        num_device_pages = call.k_cache.shape[0]
        for seq, visible in enumerate(pages):
            row = call.block_table[seq].tolist()
            used += [row[page] for page in visible]
            assert all((row[page] >= num_device_pages) == (seq < case.host_seqs) for page in visible)
            assert all(row[page] == -1 for page in range(len(row)) if page not in visible)
    num_host_pages = call.host_caches[0].shape[0] if case.host_seqs else 0
    assert num_host_pages == 3 * sum(map(len, pages[: case.host_seqs]))
    spare = 1 if case.host_seqs == 2 else 0  # an empty device pool has no shape
    assert len(set(used)) == len(used) == num_device_pages - spare + num_host_pages
    assert not torch.equal(calls[0].q, calls[1].q)
    assert table_without_holes(call).min() >= 0


def test_gathered_keys_are_those_of_the_pages():
    call = build(PREFILL, 1, CPU)[0]
    k, v, spans = gathered(call)
    assert spans == [range(4, 20), range(4, 13)]
    page = int(call.block_table[1, 2])
    assert torch.equal(k[16 + 5], call.k_cache[page, 1]) and torch.equal(v[16 + 5], call.v_cache[page, 1])


def test_copies_exceed_the_cache_and_stay_bounded():
    cases = {case.name: case for case in all_cases()}
    l2 = 60 << 20
    for case in cases.values():
        assert copies_for(case, l2) * case.bytes >= min(3 * l2, 256 * case.bytes)
    assert copies_for(cases["P1"], l2) == 3 and copies_for(cases["D1-B1"], l2) == 256


@pytest.mark.parametrize(
    "case", [PREFILL, DECODE, replace(PREFILL, host_seqs=2), replace(DECODE, kv_bytes=1, host_seqs=1)], ids=str
)
def test_a_right_result_passes_and_wrong_ones_do_not(case):
    calls = build(case, 2, CPU)
    checker, out = Checker(calls), OurBackend("reference", "cpu").prepare(calls[1])()
    assert checker.verify(1, out, True).problem == ""
    assert "allowed" in checker.verify(1, out, False).problem  # the sinks matter
    assert "allowed" in checker.verify(0, out, True).problem  # another copy's result
    assert "not finite" in checker.verify(1, out * math.nan, True).problem
    last = out.clone()
    last[-1] *= 1.5
    assert "sequence 1" in checker.verify(1, last, True).problem


def test_sampled_rows_include_the_edges():
    case = {case.name: case for case in all_cases()}["P1"]
    rows = sample_rows(case)
    assert {(0, 0), (0, 127), (0, 128), (0, 8191)} <= set(rows) and len(rows) <= 24


def test_rounds_interleave_and_medians_are_per_call():
    clock = FakeClock()
    works = {"a": Work(FakeWork("a", 1e-4), 5, "graph"), "b": Work(FakeWork("b", 4e-3), 2, "eager")}
    found = measure(works, clock, rounds=4)
    assert found["a"].median == pytest.approx(1e-4 / 5) and found["b"].median == pytest.approx(2e-3)
    assert clock.order == ["a", "a", "b", "b", *"abba" * 2]
    assert found["b"].mode == "eager"


def run(implementations, case=PREFILL, **more):
    return {
        row.implementation: row
        for row in bench.run_case(case, implementations, CEILINGS, build(case, 2, CPU), FakeClock(), capture, **more)
    }


def test_only_right_results_get_a_speed():
    rows = run(
        [
            Altered("cuda"),
            Altered("plain", counts_sinks=False),
            Altered("off", lambda out: out * 1.1),
            Altered("empty", lambda out: out * math.nan),
            Lacking("lacking"),
            Failing("failing"),
        ]
    )
    ours = rows["cuda"]
    least = floor(PREFILL, CEILINGS)
    assert ours.us == pytest.approx(2000) and ours.floor_share == pytest.approx(least.us / 2000)
    assert ours.gbs == pytest.approx(PREFILL.bytes / 2e-3 / 1e9) and ours.over_ours == 1
    assert not rows["plain"].counts_sinks and rows["plain"].us
    for name, problem in (
        ("off", "WRONG"),
        ("empty", "WRONG: the result is not finite"),
        ("lacking", "cannot: head dimension 16 is odd"),
        ("failing", "raised RuntimeError: no such kernel"),
    ):
        assert rows[name].us is None and problem in rows[name].problem
        assert problem in bench.format_row(rows[name])
    assert "no sinks" in bench.format_row(rows["plain"]) and "2000.00" in bench.format_row(ours)


def test_peers_are_not_prepared_after_the_deadline():
    rows = run([Altered("cuda"), Altered("late")], deadline=0.0)
    assert rows["cuda"].us and "not run" in rows["late"].problem


@pytest.mark.parametrize("peer", all_peers(), ids=lambda peer: peer.name)
def test_a_peer_says_why_it_cannot_run(peer):
    for case in all_cases():
        reason = peer.lacks(case)
        assert reason is None or reason
        if case.host_seqs:
            assert reason


def test_our_backends_say_what_they_lack():
    for name in bench.OURS:
        assert OurBackend(name, "cpu").lacks(PREFILL) or name == "triton"


class TorchOnCpu:
    """torch, with the CPU in the card's place."""

    cuda = SimpleNamespace(
        is_available=lambda: True,
        synchronize=lambda: None,
        empty_cache=lambda: None,
        get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1, multi_processor_count=2),
        nvtx=SimpleNamespace(range=lambda name: contextlib.nullcontext()),
    )

    def __getattr__(self, name):
        return getattr(torch, name)

    def device(self, name):
        return CPU

    def empty(self, *sizes, pin_memory=False, **options):
        return torch.empty(*sizes, **options)


class FakeKernels:
    exps_per_step = 10

    def __init__(self, library=None):
        self.reads = set()

    def read(self, data, out, num_ctas):
        self.reads.add((data.numel(), num_ctas))

    def exponentials(self, num_steps, out, num_ctas):
        pass

    def nothing(self):
        pass


class ConstantClock:
    def seconds(self, work, repeats):
        work()
        return 1e-3 * repeats


def ceilings_on_the_cpu(monkeypatch):
    monkeypatch.setattr(ceilings, "torch", TorchOnCpu())
    monkeypatch.setattr(ceilings, "make_work", eager_work)
    for name, value in {"COPY_BYTES": 4096, "LINK_BYTES": 1024, "GEMM_SIZE": 8, "WARM_UP_GEMMS": 1}.items():
        monkeypatch.setattr(ceilings, name, value)


def test_ceilings_are_units_over_medians(monkeypatch):
    ceilings_on_the_cpu(monkeypatch)
    kernels = FakeKernels()
    found = ceilings.measure_ceilings(kernels, ConstantClock())
    assert found.device_copy == pytest.approx(2 * 4096 / 1e-3) and found.device_read == pytest.approx(4096 / 1e-3)
    assert found.gemm_bf16 == pytest.approx(2 * 8**3 / 1e-3)
    assert found.exps == pytest.approx(2 * 4 * 4096 * 10 / 1e-3)
    assert found.host_to_device_by_copy_engine == pytest.approx(1024 / 1e-3)
    assert found.empty_kernel_seconds == pytest.approx(1e-3 / 200)
    assert {count for size, count in kernels.reads if size == 1024} == {8, 32, 2}
    assert found.ceilings().bytes == found.device_copy and found.ceilings().link == found.host_read_by_sm
    assert len(found.lines()) == 8


def test_the_whole_benchmark_in_order(monkeypatch, tmp_path, capsys):
    """Everything but the kernels, the clock and the card: tables, files, a failing and a lacking peer, a lost case."""
    ceilings_on_the_cpu(monkeypatch)
    lost = replace(DECODE, name="T3", layer=replace(LAYER, num_kv_heads=3))
    host = replace(DECODE, name="T4", host_seqs=1)
    fakes = {
        "torch": TorchOnCpu(),
        "all_cases": lambda: (PREFILL, lost, host),
        "CardClock": ConstantClock,
        "CeilingKernels": FakeKernels,
        "OurBackend": Altered,
        "all_peers": lambda: [Failing("failing"), Lacking("lacking")],
        "make_work": eager_work,
    }
    for name, value in fakes.items():
        monkeypatch.setattr(bench, name, value)
    arguments = ["--library", "x", "--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")]
    assert bench.main(arguments) == 0
    saved = json.loads((tmp_path / "b.json").read_text())
    assert saved["running"] == "" and saved["ceilings"]["device_copy"] > 0
    timed = {(row["case"], row["implementation"]): row["us"] for row in saved["rows"]}
    assert timed["T1", "cuda"] and timed["T4", "triton"] and timed["T1", "failing"] is None
    out = capsys.readouterr().out
    assert "T1: small, prefill 1 x 9 of 20 + 1 x 1 of 13; floor" in out and "(1 from host pages)" in out
    assert "device copy (read + write)" in out


def test_choosing_cases():
    assert [case.name for case in bench.choose("D2,P1")] == ["D2", "P1"]
    assert len(bench.choose(None)) == len(all_cases())
    with pytest.raises(SystemExit, match="no case is called 'P9'; there are: P1"):
        bench.choose("P9")


def test_results_are_saved_and_drawn(tmp_path):
    rows = list(run([Altered("cuda"), Lacking("lacking")]).values())
    bench.save(tmp_path / "r.json", {"gemm_bf16": 1.0}, rows, "P2")
    saved = json.loads((tmp_path / "r.json").read_text())
    assert [r["implementation"] for r in saved["rows"]] == ["cuda", "lacking"] and saved["rows"][0]["us"]
    assert saved["running"] == "P2"
    sentence = roofline.draw(tmp_path / "r.png", [PREFILL], rows, CEILINGS)
    assert (tmp_path / "r.png").exists() or "no roofline picture" in sentence
