"""The model of the kernels' times: what it counts is what the emulator counts, and no prediction beats the floor."""

from dataclasses import replace

import pytest

from bench.gpu.cases import Ceilings, all_cases, floor
from bench.model import CARDS, makespan, predict, predictions, stream, walk

CASES = {case.name: case for case in all_cases()}
CARD = CARDS[0]


@pytest.mark.parametrize(
    "kernel, name, kv_ratio, visible_share",
    [
        ("sm90_swa_prefill", "P1", 1.234, 0.667),
        ("sm80_swa_prefill", "P1", 1.232, 0.889),
        ("sm90_swa_prefill", "P5", 1.234, 0.667),
    ],
)
def test_the_model_counts_what_the_emulator_counts(kernel, name, kv_ratio, visible_share):
    """The figures of bench/counters.py for the same cases. Tiles at the start of the prompt are not modelled."""
    case = CASES[name]
    work = walk(kernel, case, CARD)
    layer = case.layer
    dims = layer.head_dim + layer.v_head_dim
    rows_bytes = case.num_tokens * layer.num_q_heads * dims * 2
    assert (work.hbm_bytes - rows_bytes) / (case.bytes - rows_bytes) == pytest.approx(kv_ratio, rel=0.01)
    assert case.pairs * layer.num_q_heads * dims / work.macs == pytest.approx(visible_share, rel=0.02)


@pytest.mark.parametrize(
    "name, seq, kv_ratio, visible_share",
    [("P4", (2048, 2048), 132.0, 0.942), ("P8", (512, 6144), 14.45, 0.970), ("P6", (4096, 4096), 14.9, 0.941)],
)
def test_the_model_counts_the_tiles_of_a_stream(name, seq, kv_ratio, visible_share):
    case = replace(CASES[name], seqs=(seq,))
    work = stream("sm90_prefill", case, CARD)
    layer = case.layer
    dims = layer.head_dim + layer.v_head_dim
    rows_bytes = case.num_tokens * layer.num_q_heads * dims * 2
    assert (work.l2_bytes - rows_bytes) / (case.bytes - rows_bytes) == pytest.approx(kv_ratio, rel=0.03)
    assert case.pairs * layer.num_q_heads * dims / work.macs == pytest.approx(visible_share, rel=0.01)


def test_the_longest_first_end_together():
    assert makespan([3, 3, 2, 2, 1, 1], 2) == 6
    assert makespan([1, 1, 2, 2, 3, 3, 6], 2) == 12


def test_no_prediction_is_below_the_floor_of_its_card():
    cards = {card.name: card for card in CARDS}
    kernels = {"sm90_swa_prefill", "sm90_prefill", "sm80_swa_prefill", "sm80_prefill", "sm80_decode"}
    assert {p.kernel for p in predictions()} == kernels
    for p in predictions():
        card = cards[p.card]
        macs, exps = (card.num_sms * card.hertz * rate for rate in (card.macs, card.ex2))
        least = floor(CASES[p.case], Ceilings(card.bytes, 2 * macs, exps, 0.0))
        assert least.us <= p.overlapped_us <= p.serial_us, p


def test_kernels_model_only_the_cases_they_take():
    assert walk("sm90_swa_prefill", CASES["P8"], CARD) is None  # the window is too large
    assert walk("sm90_swa_prefill", CASES["D1-B1"], CARD) is None
    assert stream("sm90_prefill", CASES["D1-B1"], CARD) is None
    assert walk("sm80_swa_prefill", CASES["P4"], CARD) is None  # no window


def test_half_the_memory_bandwidth_doubles_the_time_in_memory():
    work, slow = walk("sm90_swa_prefill", CASES["P1"], CARD), replace(CARD, bytes=CARD.bytes / 2)
    assert predict(work, CASES["P1"], slow).memory_us == pytest.approx(
        2 * predict(work, CASES["P1"], CARD).memory_us, rel=1e-3
    )
