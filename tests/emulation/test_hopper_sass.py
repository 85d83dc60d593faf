"""What ptxas made of the kernels for Hopper: instructions that must be there, and the order on which their speed rests.

MiMo's head dims; the slow tests of test_device_build.py compile the others.
"""

import re

import pytest
from device_build import CSRC, disassemble, find_disassembler, functions

SOURCES = ("prefill_192.cu", "decode_192.cu", "attention.cu")
pytestmark = pytest.mark.skipif(find_disassembler() is None, reason="there is no nvdisasm: CUDA and Triton bring it")


@pytest.fixture(scope="module")
def kernels(nvcc):
    """(kernel, what its mangled name says of it) -> instructions."""
    found = {}
    for source in SOURCES:
        cubin, log = nvcc(CSRC / "cuda" / "kernels" / source, "sm_90a", "-cubin", "-Xptxas", "-Werror,-v")
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert frames and all(frame == ("0", "0", "0") for frame in frames), log
        assert "serialized" not in log  # wgmma that ptxas could not keep asynchronous
        found |= functions(disassemble(cubin))
    return {re.search(r"cuda\d\d(sm\w\w_[a-z_]+?)6kernel(.*)", name).groups(): body for name, body in found.items()}


def of(kernels, name):
    chosen = [body for (kernel, _), body in kernels.items() if kernel == name]
    assert chosen
    return chosen


def count(body, pattern):
    return sum(re.match(pattern, instruction) is not None for instruction in body)


def between(body, start, end):
    """The instructions after each match of `start`, up to `end`."""
    parts, part = [], None
    for instruction in body:
        if part is not None and re.match(end, instruction):
            parts.append(part)
            part = None
        elif part is not None:
            part.append(instruction)
        if part is None and re.match(start, instruction):
            part = []
    return parts


@pytest.mark.parametrize("name", ["sm90_swa_prefill", "sm90_prefill"])
def test_prefill_is_made_of_wgmma_and_tma(kernels, name):
    for body in of(kernels, name):
        assert count(body, "HGMMA.64x64x16.F32" if "swa" in name else "HGMMA.64x128x16.F32")
        assert count(body, "UTMALDG.4D") >= 5  # three panels of K, two of V
        assert count(body, "UTMALDG.3D") == 6  # queries: three panels, two consumers
        assert count(body, "USETMAXREG") == 2
        assert count(body, "HMMA") == 0
        assert count(body, "(STL|LDL)") == 0
    assert all(count(body, "UTMASTG.3D") == (2 if "swa" in name else 0) for body in of(kernels, name))


def test_the_softmax_runs_under_the_product_with_v(kernels):
    """Between the wait for the scores, which leaves P V in flight, and the wait for P V: an ex2 per score of the tile."""
    for name, scores in (("sm90_prefill", 64), ("sm90_swa_prefill", 32)):
        for body in of(kernels, name):
            (under,) = between(body, r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0")
            assert count(under, r"MUFU\.EX2") >= scores


def test_the_usual_step_of_a_window_is_short(kernels):
    """Nine slices: 72 scores a thread, masks in two of them, no softcap. Four such steps in turn stay in the cache."""
    usual = 0
    for body in of(kernels, "sm90_swa_prefill"):
        steps = between(body, r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", r"WARPGROUP\.DEPBAR\.LE gsb0")
        narrow = [step for step in steps if count(step, "HGMMA") == 9]
        assert len(narrow) == 4
        for step in narrow:
            assert count(step, r"MUFU\.EX2") == 72 + 2
            assert count(step, r"MUFU") == 72 + 2
            assert len(step) < 700  # x 16 bytes x 4 = 45 KB with the products of the scores
            usual += 1
    assert usual == 8


def test_decode_is_made_of_tma_and_mma(kernels):
    for body in of(kernels, "sm90_decode"):
        assert count(body, "UTMALDG.4D") > 0
        assert count(body, "HMMA.16816.F32") > 0
        assert count(body, "PREEXIT") == 1  # griddepcontrol.launch_dependents
        assert count(body, "(STL|LDL)") == 0


def test_float8_is_widened_by_an_instruction(kernels):
    bodies = {traits: body for (name, traits), body in kernels.items() if name == "sm90_decode"}
    for traits, body in bodies.items():
        float8 = "ELb1E" in traits
        assert (count(body, r"F2FP\.F16\.E4M3") > 0) == float8


def test_the_combine_waits_for_the_splits_before_it_reads(kernels):
    for body in of(kernels, "smxx_combine"):
        waits = [i for i, instruction in enumerate(body) if instruction.startswith("ACQBULK")]
        loads = [i for i, instruction in enumerate(body) if instruction.startswith("LDG")]
        assert len(waits) == 1 and waits[0] < min(loads)
        assert not any("CONSTANT" in body[i] for i in loads)  # the non-coherent cache
