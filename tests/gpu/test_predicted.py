"""Measured times beside the model's, at the run's own ceilings."""

from dataclasses import asdict

import pytest

from bench.gpu.bench import Row
from bench.gpu.cases import Ceilings, all_cases
from bench.gpu.machine import Machine
from bench.gpu.predicted import Comparison, card_of, compare, lines

CASES = {case.name: case for case in all_cases()}
HOPPER = Machine("NVIDIA H200", "90a", 132, 60 << 20, 228 << 10, {}, "2.13", "13.0", "3.9", "3.11", "x86_64")
AMPERE = Machine("NVIDIA A100", "80", 108, 40 << 20, 164 << 10, {}, "2.13", "13.0", "3.9", "3.11", "x86_64")


def ceilings(**changed):
    return Ceilings(**(dict(bytes=4e12, flops=700e12, exps=132 * 16 * 1.7e9, launch_seconds=1e-6, link=40e9) | changed))


def row(case, us, implementation="cuda"):
    return Row(case, implementation, 1.0, "hbm", us=us)


def only(rows, machine=HOPPER, **changed) -> Comparison:
    (found,) = compare(card_of(machine, ceilings(**changed)), rows)
    return found


def test_errors_are_measured_over_predicted():
    found = only([row("P1", 120.0), row("P1", 500.0, "triton")])
    assert (found.case, found.kernel, found.measured_us) == ("P1", "sm90_swa_prefill", 120.0)
    assert found.overlapped_error == pytest.approx(120 / found.overlapped_us)
    assert found.serial_error == pytest.approx(120 / found.serial_us)
    assert 90 < found.overlapped_us <= found.serial_us < 130


def test_the_run_s_own_ceilings_count():
    base = only([row("D1-B256", 50.0)]).overlapped_us
    assert only([row("D1-B256", 50.0)], bytes=2e12).overlapped_us > base + 0.9 * CASES["D1-B256"].bytes / 4e12 * 1e6
    assert only([row("D1-B256", 50.0)], launch_seconds=3e-6).overlapped_us == pytest.approx(base + 2, abs=0.02)
    host = [only([row("H1-B64", 1e3)], link=link).overlapped_us for link in (20e9, 40e9)]
    assert host[0] - host[1] == pytest.approx(CASES["H1-B64"].link_bytes / 40e9 * 1e6, rel=1e-3)
    gemms = [only([row("P4", 3e3)], flops=flops).serial_us for flops in (350e12, 700e12)]
    assert gemms[0] - gemms[1] == pytest.approx(CASES["P4"].flops / 700e12 * 1e6, rel=0.1)


def test_the_kernel_is_the_card_s():
    names = ["P5", "P8", "D7"]
    for machine, kernels in (
        (HOPPER, ["sm90_swa_prefill", "sm90_prefill", "sm90_decode"]),
        (AMPERE, ["sm80_swa_prefill", "sm80_prefill", "sm80_decode"]),
    ):
        found = compare(card_of(machine, ceilings()), [row(name, 1.0) for name in names])
        assert [c.kernel for c in found] == kernels


def test_a_case_that_was_not_timed_keeps_its_prediction_and_one_without_a_row_has_none():
    found = compare(card_of(HOPPER, ceilings()), [row("D3", None), row("P1", 100.0), row("P2", 100.0, "triton")])
    assert [c.case for c in found] == ["P1", "D3"]  # in the order of the cases
    assert found[1].overlapped_us > 0 and found[1].measured_us is None and found[1].serial_error is None
    table = lines([Comparison(**asdict(c)) for c in found])
    assert "/ overlapped" in table[0] and len(table) == 3
    assert table[1].split()[:2] == ["P1", "sm90_swa_prefill"]
    assert table[1].split()[-3:] == ["100.0", f"{found[0].overlapped_error:.2f}", f"{found[0].serial_error:.2f}"]
    assert table[2].endswith("not measured")
