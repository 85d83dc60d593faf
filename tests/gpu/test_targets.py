"""Targets by made-up rows: each is met on one side of its limit, missed on the other, and not measured without its rows."""

from dataclasses import asdict, replace

import pytest

from bench.gpu.bench import Row
from bench.gpu.cases import H200_REPORTED, all_cases, floor
from bench.gpu.targets import TARGETS, Verdict, judge_all, lines

CASES = {case.name: case for case in all_cases()}
CEILINGS = replace(H200_REPORTED, flops=800e12, link=50e9)
LINK_US = {name: CASES[name].link_bytes / 50e9 * 1e6 for name in ("H1-B64", "H3-B64", "H4-B256")}


def row(case, us, implementation="cuda", **more):
    least = floor(CASES[case], CEILINGS)
    return Row(case, implementation, least.us, least.bound_by, **(dict(us=us, mode="graph") | more))


def gemm_us(case, share):
    return CASES[case].flops / (share * CEILINGS.flops) * 1e6


def at_floor(case, times):
    return [row(case, times * floor(CASES[case], CEILINGS).us)]


def beside_peers(case, speedup):
    """The slower peer must not count, nor one without a time, nor our other backend."""
    return [
        row(case, 100.0),
        row(case, 100.0 * speedup, "flashinfer fa3"),
        row(case, 400.0, "fa3 (vLLM)", counts_sinks=False),
        row(case, None, "flex", problem="WRONG: off"),
        row(case, 50.0, "triton"),
    ]


def beside_fa3(case, speedup):
    """A faster peer of another name must not count."""
    return [row(case, 100.0), row(case, 100.0 * speedup, "fa3 (vLLM)"), row(case, 1.0, "fa4")]


# (case, target): rows that just meet it and rows that just miss it.
EXAMPLES = {
    ("P1", "time / floor"): (at_floor("P1", 1.24), at_floor("P1", 1.26)),
    ("P1", "fastest peer's time / ours"): (beside_peers("P1", 1.81), beside_peers("P1", 1.79)),
    ("P5", "time / floor"): (at_floor("P5", 1.34), at_floor("P5", 1.36)),
    ("P5", "fastest peer's time / ours"): (beside_peers("P5", 1.31), beside_peers("P5", 1.29)),
    ("P4", "FlashAttention-3's time / ours"): (beside_fa3("P4", 1.0), beside_fa3("P4", 0.99)),
    ("P4", "share of the GEMM's rate"): ([row("P4", gemm_us("P4", 0.71))], [row("P4", gemm_us("P4", 0.69))]),
    ("P8", "FlashAttention-3's time / ours"): (beside_fa3("P8", 1.01), beside_fa3("P8", 0.99)),
    ("P8", "share of the GEMM's rate"): ([row("P8", gemm_us("P8", 0.71))], [row("P8", gemm_us("P8", 0.69))]),
    ("D1-B1", "microseconds in a graph"): ([row("D1-B1", 4.0)], [row("D1-B1", 4.1)]),
    ("D1-B256", "time / floor"): (at_floor("D1-B256", 1.14), at_floor("D1-B256", 1.16)),
    ("D3", "time / floor"): (at_floor("D3", 1.09), at_floor("D3", 1.11)),
    ("D7", "time / D1-B64's (bfloat16 pages)"): (
        [row("D7", 9.9), row("D1-B64", 10.0)],
        [row("D7", 10.0), row("D1-B64", 10.0)],
    ),
    ("H1-B64", "share of the host link's rate"): (
        [row("H1-B64", LINK_US["H1-B64"] / 0.91)],
        [row("H1-B64", LINK_US["H1-B64"] / 0.89)],
    ),
    ("H3-B64", "time / longer of D1-B64's, link's"): (  # the link is the longer part
        [row("H3-B64", LINK_US["H3-B64"] * 1.09), row("D1-B64", 20.0)],
        [row("H3-B64", LINK_US["H3-B64"] * 1.11), row("D1-B64", 20.0)],
    ),
    ("H4-B256", "time / longer of D1-B256's, link's"): (  # the device is
        [row("H4-B256", 54.0), row("D1-B256", 50.0)],
        [row("H4-B256", 56.0), row("D1-B256", 50.0)],
    ),
}


def verdict(key, rows, ceilings=CEILINGS) -> Verdict:
    (found,) = [v for v in judge_all(rows, ceilings) if (v.case, v.target) == key]
    return found


def test_every_target_has_an_example():
    assert [(t.case, t.name) for t in TARGETS] == list(EXAMPLES)


@pytest.mark.parametrize("key", EXAMPLES, ids=" ".join)
def test_a_target_is_met_or_missed(key):
    met, missed = EXAMPLES[key]
    assert verdict(key, met).status == "met"
    assert verdict(key, missed).status == "missed"
    assert verdict(key, met).measured == pytest.approx(verdict(key, met).limit, rel=0.03)


@pytest.mark.parametrize("key", EXAMPLES, ids=" ".join)
def test_a_target_that_lacks_any_of_its_rows_is_not_measured(key):
    """Each case it needs, in turn missing and without a time; then each implementation other than ours."""
    met, _ = EXAMPLES[key]
    for case in {r.case for r in met}:
        others = [r for r in met if (r.case, r.implementation) != (case, "cuda")]
        assert verdict(key, others).status == "not measured"
        failed = verdict(key, [*others, row(case, None, problem="WRONG: off by 1")])
        assert (failed.status, failed.measured) == ("not measured", None) and "WRONG: off by 1" in failed.note
    if len({r.implementation for r in met}) > 1:
        alone = [r for r in met if r.implementation in ("cuda", "triton")]
        assert verdict(key, alone).status == "not measured"


def test_ceilings_that_were_not_measured():
    without_link, without_any = replace(CEILINGS, link=None), None
    for (case, name), (met, _) in EXAMPLES.items():
        status = verdict((case, name), met, without_link).status
        assert status == ("not measured" if case.startswith("H") else "met")
        status = verdict((case, name), met, without_any).status
        assert status == ("not measured" if case.startswith("H") or "GEMM" in name else "met")


def test_a_time_outside_a_graph_does_not_count_as_one_in_it():
    key = "D1-B1", "microseconds in a graph"
    found = verdict(key, [row("D1-B1", 3.0, mode="eager")])
    assert found.status == "not measured" and "not timed in a graph" in found.note


def test_what_it_was_compared_with_is_said():
    met = {key: verdict(key, rows).note for key, (rows, _) in EXAMPLES.items()}
    assert met["P1", "fastest peer's time / ours"] == "flashinfer fa3; 2 timed"
    assert met["H3-B64", "time / longer of D1-B64's, link's"] == f"link, {LINK_US['H3-B64']:.1f} us"
    assert met["H4-B256", "time / longer of D1-B256's, link's"] == "D1-B256, 50.0 us"
    slower_ours = [row("P1", 300.0), row("P1", 400.0, "fa3 (vLLM)", counts_sinks=False)]
    assert verdict(("P1", "fastest peer's time / ours"), slower_ours).note == "fa3 (vLLM), no sinks; 1 timed"


def test_the_table():
    met, missed = EXAMPLES["P1", "time / floor"], EXAMPLES["D3", "time / floor"]
    verdicts = judge_all([*met[0], *missed[1]], CEILINGS)
    table = lines([Verdict(**asdict(v)) for v in verdicts])
    assert len(table) == len(TARGETS) + 2
    assert "P1 " in table[1] and "<= 1.25" in table[1] and "1.240  met (floor 87.8 us (hbm))" in table[1]
    assert "-  not measured (no peer has a time for P1)" in table[2]
    assert [line for line in table if "1.110  missed" in line]
    assert table[-1] == "targets: 1 met, 1 missed, 13 not measured"
