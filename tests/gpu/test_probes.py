"""The conformance probes: they cover every primitive, agree with themselves in the emulator, and notice a wrong bit."""

import re

import pytest
import torch

from bench.gpu.conformance import Result, format_result, make_emulator, run_probe
from bench.gpu.libraries import CSRC
from bench.gpu.probes import all_probes, approximations, one_elected, same_bits, sums
from swa_attn.testing import emulated_backend
from swa_attn.testing.emulator import Buffer, Options

PROBES = {probe.name: probe for probe in all_probes()}
# No instructions of their own.
HELPERS = {"min", "max", "claim_registers", "recomputed"}


@pytest.fixture(scope="module")
def emulator():
    reason = emulated_backend.unavailable()
    if reason:
        pytest.skip(reason)
    return make_emulator()


class FakeCard:
    """The emulator in the card's place, under another schedule; it may flip a bit of its last output."""

    def __init__(self, emulator, flip=0):
        self.emulator, self.flip = emulator, flip

    def launch(self, kernel, **arguments):
        self.emulator.launch(kernel, Options("random", "random", seed=5), **arguments).check()
        *_, out = [a.tensor for a in arguments.values() if isinstance(a, Buffer) and a.writable]
        if self.flip:
            words = out.view(torch.int32).flatten()
            words[0] = words[0] ^ self.flip


class Broken:
    def launch(self, kernel, **arguments):
        raise RuntimeError("execution: an illegal memory access was encountered")


def test_every_primitive_has_a_probe():
    ptx = CSRC / "cuda" / "ptx"
    headers = "\n".join(file.read_text() for file in [*ptx.glob("*.cuh"), *ptx.glob("*.inc")])
    primitives = set(re.findall(r"^SWA_DEVICE [\w<>&: ]*?(\w+)[<(]", headers, re.MULTILINE))
    covered = {name for probe in PROBES.values() for name in probe.primitives}
    assert primitives - covered - HELPERS == set()
    assert covered - primitives == set()


@pytest.mark.parametrize("name", PROBES)
def test_probe_agrees_with_itself_and_notices_a_wrong_result(emulator, name):
    probe = PROBES[name]
    alone = run_probe(probe, emulator, None)
    assert alone.passed and alone.error is None
    result = run_probe(probe, emulator, FakeCard(emulator))
    assert result.passed and result.error <= 1, result.problem
    wrong = run_probe(probe, emulator, FakeCard(emulator, flip=1 << 30))
    assert not wrong.passed and "card and emulator differ" in wrong.problem


def test_a_launch_that_fails_is_that_probes_problem(emulator):
    result = run_probe(PROBES["ld_st"], emulator, Broken())
    assert not result.passed and result.problem.startswith("card: execution: an illegal memory access")
    assert "FAILED" in format_result(result) and "illegal memory access" in format_result(result)


def test_bounds():
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([1.0, nan, -0.0])
    assert same_bits([x], [x.clone()]) == 0
    assert same_bits([x], [torch.tensor([1.0, nan, 0.0])]) == inf
    close = sums(3, torch.tensor([2.0]))  # 3 terms: 2 * 4 * 2^-23 of 2
    assert close([torch.tensor([1.0])], [torch.tensor([1.0 + 15 * 2**-23])]) <= 1
    assert close([torch.tensor([1.0])], [torch.tensor([1.0 + 17 * 2**-23])]) > 1
    assert close([torch.tensor([1.0])], [torch.tensor([nan])]) == inf
    assert one_elected([torch.tensor([0, 1])], [torch.tensor([1, 0])]) == 0
    assert one_elected([torch.tensor([0, 1])], [torch.tensor([1, 1])]) == inf
    row = torch.tensor([[0.5, 0.5, 0.5, 1.0, -1.0, 1.0, -1.0]])
    for column, allowed, too_much in ((0, 2**-22, 2**-20), (1, 2**-23, 2**-20), (2, 2**-11, 2**-9), (3, 0, 2**-8)):
        assert approximations([row], [shifted(row, column, allowed)]) <= 1
        assert approximations([row], [shifted(row, column, too_much)]) > 1


def shifted(row, column, relative):
    row = row.clone()
    row[0, column] *= 1 + relative
    return row


def test_a_result_that_was_not_compared_says_so():
    assert "not run" in format_result(Result("a", ("ldg",), "bit for bit"))
    assert "equal" in format_result(Result("a", ("ldg",), "bit for bit", 0.0))
