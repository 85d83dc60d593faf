"""The attention and GEMM test kernels, correct and with planted mistakes, under several schedules."""

import pytest
from emulated_attention import ALL_POLICIES, SOME_POLICIES, Case, Gemm, Inputs, run_attention

from swa_attn.testing.emulator import Options

CASES = {
    "one_tile": Case(((64, 64),), 2, 1, 0),
    "window_17": Case(((64, 64),), 2, 2, 17),
    "ragged_full": Case(((100, 100), (1, 77), (37, 200)), 4, 2, 0),
    "ragged_window_128": Case(((100, 300), (1, 513), (130, 130)), 4, 1, 128),
    "short_window_16": Case(((1, 1), (5, 5), (64, 129)), 2, 1, 16),
}
KERNELS = ("fa_sm80", "fa_sm90")


def policies(chosen):
    return pytest.mark.parametrize("asynchrony, order", chosen, ids=["-".join(p) for p in chosen])


@policies(SOME_POLICIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_is_right_and_clean(emulator, kernel, case, asynchrony, order):
    inputs = Inputs(case)
    run, out = run_attention(emulator, kernel, inputs, Options(asynchrony=asynchrony, order=order))
    run.check()
    assert inputs.is_close(out)


@policies(SOME_POLICIES)
@pytest.mark.parametrize("gemm", [Gemm(128, 128, 64), Gemm(128, 256, 512)], ids=str)
def test_gemm_is_right_and_clean(emulator, gemm, asynchrony, order):
    run, right = gemm.run(emulator, Options(asynchrony=asynchrony, order=order))
    run.check()
    assert right


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_policy_and_many_schedules_are_clean(emulator, kernel):
    for case in CASES.values():
        inputs = Inputs(case)
        for asynchrony, order in ALL_POLICIES:
            run, out = run_attention(emulator, kernel, inputs, Options(asynchrony=asynchrony, order=order))
            run.check()
            assert inputs.is_close(out)
    inputs = Inputs(Case(((100, 300), (1, 513), (70, 70)), 2, 1, 100))
    for seed in range(1, 31):
        for asynchrony, order in (("random", "random"), ("lazy", "random"), ("random", "reverse")):
            run, out = run_attention(emulator, kernel, inputs, Options(asynchrony=asynchrony, order=order, seed=seed))
            run.check()
            assert inputs.is_close(out)


def test_workers_do_not_change_the_result(emulator):
    inputs = Inputs(CASES["ragged_full"])
    (one, out_1), (two, out_2) = (
        run_attention(emulator, "fa_sm80", inputs, Options("random", "random", workers=w)) for w in (1, 2)
    )
    assert out_1.equal(out_2)
    assert one.check().counters == two.check().counters


# Mistake -> kernel, what it is, and the kinds of report with the race checker on, one of which the schedule shows; no
# kinds: only the numbers are wrong. 20 and 21 are in test_emulated_primitives.py, 23 is below.
PLANTED = {
    1: ("fa_sm80", "cp.async.wait_group missing", {"in-flight"}),
    2: ("fa_sm80", "barrier after the wait missing", {"read-after-write"}),
    3: ("fa_sm80", "K read with another swizzle", set()),
    4: ("fa_sm80", "window one key too wide", set()),
    5: ("fa_sm80", "block table read past the sequence", {"out-of-bounds"}),
    6: ("fa_sm80", "warps without rows skip the barrier", {"deadlock"}),
    7: ("fa_sm90", "fence.proxy.async missing before wgmma", {"proxy-fence"}),
    8: ("fa_sm90", "producer waits for the wrong parity", {"deadlock"}),
    9: ("fa_sm80", "barrier before the stage is overwritten missing", {"write-after-read"}),
    10: ("fa_sm90", "stage released before wgmma.wait_group", {"write-after-read"}),
    11: ("fa_sm90", "wrong expect_tx byte count", {"in-flight", "read-after-write"}),
    12: ("fa_sm90", "wgmma.wait_group missing", {"wgmma"}),
    13: ("fa_sm90", "wrong stride in a wgmma descriptor", set()),
    14: ("gemm_sm90", "wgmma.wait_group after the loop, stages released in it", {"write-after-read"}),
    15: ("fa_sm90", "fence after mbarrier.init missing", {"mbarrier-fence"}),
    16: ("fa_sm90", "consumer waits for the wrong parity", {"in-flight", "deadlock"}),
    17: ("fa_sm90", "wgmma.fence missing", {"wgmma"}),
    22: ("fa_sm90", "one warp releases the stage for its warpgroup", {"write-after-read"}),
}
PLANTED_IDS = [f"{n}-{what.replace(' ', '_')}" for n, (_, what, _) in PLANTED.items()]


@pytest.fixture(scope="module")
def planted_inputs():
    return Inputs(Case(((100, 300), (1, 513), (130, 130)), 2, 1, 100))


def _run_planted(emulator, inputs, bug, **options):
    """The run, and whether its numbers are right."""
    kernel, _, _ = PLANTED[bug]
    settings = Options(bug=bug, **options)
    if kernel == "gemm_sm90":
        return Gemm(128, 256, 512).run(emulator, settings)
    run, out = run_attention(emulator, kernel, inputs, settings)
    return run, inputs.is_close(out)


@policies([("lazy", "forward"), ("eager", "reverse")])
@pytest.mark.parametrize("bug", PLANTED, ids=PLANTED_IDS)
def test_planted_mistakes_are_found(emulator, planted_inputs, bug, asynchrony, order):
    kinds = PLANTED[bug][2]
    run, right = _run_planted(emulator, planted_inputs, bug, asynchrony=asynchrony, order=order)
    if not kinds:
        assert not run.reports and not right
        return
    assert run.kinds & kinds, run.reports
    # Whatever concerns an access or an instruction names its line in the kernel.
    assert all(r.line > 0 and r.file.endswith(".cuh") for r in run.reports if r.kind in kinds - {"deadlock"})


@pytest.mark.slow
@policies(ALL_POLICIES)
@pytest.mark.parametrize("bug", PLANTED, ids=PLANTED_IDS)
def test_planted_mistakes_are_found_under_every_policy(emulator, planted_inputs, bug, asynchrony, order):
    run, right = _run_planted(emulator, planted_inputs, bug, asynchrony=asynchrony, order=order)
    assert run.reports or not right


# What the emulated data alone shows: these survive casual testing on a card, and only the checker finds them.
ONLY_THE_CHECKER = {7, 10, 15, 22}


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED, ids=PLANTED_IDS)
def test_without_the_race_checker(emulator, planted_inputs, bug):
    found = False
    for asynchrony, order in (("lazy", "forward"), ("eager", "reverse"), ("random", "random")):
        run, right = _run_planted(emulator, planted_inputs, bug, asynchrony=asynchrony, order=order, race=False)
        found |= bool(run.reports) or not right
    assert found == (bug not in ONLY_THE_CHECKER)


def test_offsets_beyond_32_bits(emulator):
    """A cache of 4.3 G elements per tensor, of which only the touched pages are ever committed."""
    num_pages, num_kv_heads = 1 << 21, 2
    case = Case(((16, 40),), 2, num_kv_heads, 0)
    try:
        inputs = Inputs(case, first_page=num_pages - 8, num_pages=num_pages)
    except RuntimeError as error:
        pytest.skip(f"this system does not give 8 GiB of lazily committed memory: {error}")
    run, out = run_attention(emulator, "fa_sm80", inputs, Options())
    run.check()
    assert inputs.is_close(out)
    run, _ = run_attention(emulator, "fa_sm80", inputs, Options(bug=23))
    assert run.kinds == {"out-of-bounds"}
