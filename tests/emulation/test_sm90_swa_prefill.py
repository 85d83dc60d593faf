"""sm90_swa_prefill beyond the op suite: every schedule, every way to cut the work, bit for bit the same."""

from dataclasses import replace

import pytest
import torch
from hopper_checks import (
    assert_equal_in_all_tiers,
    assert_equal_in_some_schedules,
    assert_right,
    attend_part,
    every_schedule,
    spread,
    used_wgmma,
)
from oracle import assert_close_to_oracle
from test_attention_kernels import GPT_OSS, MIMO, SMALL, assert_equal, attend

from swa_attn.testing import build, emulated_backend
from swa_attn.testing.emulated_backend import settings

pytestmark = pytest.mark.skipif(emulated_backend.unavailable() is not None, reason="the emulator cannot be built here")

LLAMA = replace(GPT_OSS, head_dim=128, v_head_dim=128, num_q_heads=4, sinks=False)
# Several steps of a ring whose slots are used more than once; prompts from the start, from inside the window and beyond.
PREFILLS = [
    replace(GPT_OSS, seqs=((90, 90), (40, 650), (33, 300))),
    replace(MIMO, seqs=((50, 190), (300, 340))),
    replace(MIMO, seqs=((35, 180),), host=0.5, page_size=64, dtype=torch.float16),
    replace(LLAMA, seqs=((150, 400), (0, 5), (3, 1)), num_kv_heads=2, num_q_heads=10, softcap=20.0, window=40),
    # Tile by tile: windows beyond one accumulator.
    replace(MIMO, seqs=((70, 330), (9, 260)), window=180),
    replace(LLAMA, seqs=((140, 500), (1, 1)), num_q_heads=16, softcap=20.0, window=257, host=0.3),
]
prefills = pytest.mark.parametrize("case", PREFILLS, ids=str)


@pytest.fixture(autouse=True)
def hopper():
    with settings(compute_capability=90):
        yield


@prefills
def test_results_do_not_depend_on_the_schedule(case):
    assert_equal_in_some_schedules("prefill", case)


@pytest.mark.slow
@prefills
@every_schedule
def test_every_schedule(case, asynchrony, order, seed):
    assert_right("prefill", case, asynchrony=asynchrony, order=order, seed=seed)


@prefills
def test_results_do_not_depend_on_the_card(case):
    """Not on the number of SMs, which cuts segments, nor on shared memory, which gives the ring its slots."""
    inputs = build(case)
    expected = attend("prefill", inputs)
    for num_sms in (1, 3, 500):
        for smem in (227 << 10, 211 << 10)[: 2 if case.window <= 129 else 1]:
            with settings(num_sms=num_sms, max_smem_bytes=smem):
                assert_equal(attend("prefill", inputs), expected)
                assert used_wgmma()


@prefills
def test_host_pages_give_the_bits_of_device_pages(case):
    assert_equal_in_all_tiers("prefill", case)


@pytest.mark.parametrize("layout", ["hnd", "packed", "padded"])
@pytest.mark.parametrize("page_size", [8, 32, 128])
def test_pages_of_all_layouts(layout, page_size):
    assert_right("prefill", replace(MIMO, seqs=((40, 300), (9, 9)), layout=layout, page_size=page_size))


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 113, 114, 127, 128, 129, 130, 192, 193, 255, 256, 257])
@pytest.mark.parametrize("group_size", [1, 5, 8, 12, 64])
def test_windows_and_groups_around_a_tile_and_the_ring(window, group_size):
    tokens = min(150, 300 // group_size)
    case = replace(
        GPT_OSS, num_q_heads=group_size, window=window, seqs=((tokens, 250 + tokens), (1, window), (2, window + 1))
    )
    assert_right("prefill", case, num_sms=1)


@pytest.mark.parametrize("case", [MIMO, GPT_OSS, LLAMA], ids=["192x128", "64x64", "128x128"])
@pytest.mark.parametrize("group_size", [1, 8, 16])
def test_windows_reach_as_far_as_the_ring_has_room(case, group_size):
    """Only this kernel stores by TMA: where it stops, sm90_prefill goes on."""
    room = {192: 4, 128: 5, 64: 8}[case.head_dim] - max(1, 128 // group_size // 64)
    for window in (min(257, room * 64 + 1), min(257, room * 64 + 1) + 1):
        inputs = build(replace(case, num_q_heads=group_size, window=window, seqs=((130, 400),)))
        assert_close_to_oracle(inputs, *attend("prefill", inputs))
        assert used_wgmma()
        assert (tma_stored() > 0) == (window <= min(257, room * 64 + 1))


def tma_stored():
    return emulated_backend.last_run.counters.traffic(ops="tma_store").bytes


@pytest.mark.parametrize("group_size", [1, 2, 8, 16, 32, 64])
def test_outputs_leave_in_boxes(group_size):
    """All but the warps' rows that a segment or a sequence cuts: those are another's, or nobody's."""
    tokens = 64 // group_size * 4
    case = replace(MIMO, num_q_heads=group_size, num_kv_heads=2 if group_size < 32 else 1)
    case = replace(case, num_q_heads=group_size * case.num_kv_heads, seqs=((tokens, 128 + tokens),))
    inputs = build(case)
    with settings(num_sms=1):
        assert_close_to_oracle(inputs, *attend("prefill", inputs))
        assert tma_stored() == tokens * case.num_q_heads * case.v_head_dim * 2
        cut = build(replace(case, seqs=((tokens, 129 + tokens), (1, 80), (2, 90))))
        assert_close_to_oracle(cut, *attend("prefill", cut))
        with settings(order="reverse"):  # what a box writes beyond its rows, after the CTA whose rows those are
            assert_close_to_oracle(cut, *attend("prefill", cut))
        whole = (tokens + 3) * case.num_q_heads * case.v_head_dim * 2
        assert tma_stored() == whole if group_size >= 16 else 0 < tma_stored() < whole
    assert emulated_backend.last_run.counters.bank_conflicts() == 0


@pytest.mark.parametrize("group_size", [3, 5, 12, 24])
def test_outputs_of_groups_that_are_no_box_leave_row_by_row(group_size):
    inputs = build(replace(GPT_OSS, num_q_heads=group_size, seqs=((40, 300),)))
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert used_wgmma() and tma_stored() == 0


def test_outputs_that_tma_cannot_address_leave_row_by_row():
    """The results of the rows around it are those of the boxes."""
    inputs = build(replace(GPT_OSS, seqs=((40, 300),)))
    expected, _ = attend("prefill", inputs)
    assert tma_stored() > 0
    wide = torch.full((*expected.shape[:-1], expected.shape[-1] + 4), float("nan"), dtype=expected.dtype)
    out, lse = wide[..., :-4], torch.empty(expected.shape[:2])
    emulated_backend.prefill(*inputs.prefill_args, **inputs.options, out=out, lse=lse)
    assert tma_stored() == 0
    assert torch.equal(out, expected) and wide[..., -4:].isnan().all()


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 100])
def test_capped_scores_go_through_whole_tiles(tokens):
    """Where nine slices do without a softcap."""
    case = replace(MIMO, seqs=((tokens, 300 + tokens),), softcap=3.0)
    inputs = build(case)
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    capped = emulated_backend.last_run.counters.tallies["mma_macs"]
    attend("prefill", build(replace(case, softcap=0.0)))
    assert emulated_backend.last_run.counters.tallies["mma_macs"] * 4 / 3 == pytest.approx(capped, rel=0.01)


@pytest.mark.parametrize("position", [0, 63, 64, 81, 119])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_special_value_reaches_only_the_rows_that_see_it(position, value):
    case = replace(MIMO, window=30, seqs=((120, 120),))
    inputs = build(case)
    with settings(num_sms=1):
        before = attend("prefill", inputs)
        page = int(inputs.block_table[0, position // case.page_size])
        inputs.v_cache[page, position % case.page_size, 0, 5] = value
        out, lse = attend("prefill", inputs)
    reached = torch.zeros(out.shape, dtype=torch.bool)
    reached[position : position + 30, :, 5] = True
    assert torch.equal(out[~reached], before[0][~reached]) and torch.equal(lse, before[1])
    assert not torch.isfinite(out[reached]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"page_size": 4},
        {"page_size": 24},
        {"num_q_heads": 65},
        {"cache_dtype": torch.float8_e4m3fn},
        {"layout": "skewed"},
    ],
    ids=str,
)
def test_what_it_does_not_take_goes_to_the_kernels_for_sm_80(changes):
    inputs = build(replace(GPT_OSS, seqs=((3, 150),), **changes))
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert not used_wgmma()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["page", "slot", "head"])
@pytest.mark.parametrize("cache", ["k_cache", "v_cache"])
def test_one_stride_that_tma_cannot_describe_goes_to_the_kernels_for_sm_80(cache, axis):
    inputs = build(replace(GPT_OSS, num_q_heads=8, num_kv_heads=2, seqs=((3, 150),)))
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert used_wgmma()
    spread_inputs = replace(inputs, **{cache: spread(getattr(inputs, cache), axis)})
    assert_close_to_oracle(spread_inputs, *attend("prefill", spread_inputs))
    assert not used_wgmma()


@pytest.mark.parametrize("window", [113, 115, 116, 120, 127, 128, 129])
@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
def test_chunks_that_start_and_end_anywhere_in_a_slice(window, group_size):
    """Nine slices hold all keys of some of these steps, with none or some of the inner ones masked: the bits of one walk."""
    inputs = build(replace(GPT_OSS, num_q_heads=group_size, window=window, seqs=((240, 240),), page_size=64))
    out, lse = attend("prefill", inputs)
    assert_close_to_oracle(inputs, out, lse)
    for first in (195, 206, 207, 208, 223):
        for last in (first + 1, first + 16, first + 17):
            assert_equal(attend_part(inputs, 0, first, last), (out[first:last], lse[first:last]))
            assert used_wgmma()


@pytest.mark.parametrize("card", [{"compute_capability": 80}, {"compute_capability": 100}, {"max_smem_bytes": SMALL}])
def test_other_cards_take_the_kernels_for_sm_80(card):
    inputs = build(replace(MIMO, seqs=((20, 200),)))
    with settings(**card):
        assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert not used_wgmma()


def test_segments_ask_for_keys_and_values_once():
    """A walk of 512 tokens: 127 keys more than the tokens' own, in whole tiles; queries once."""
    inputs = build(replace(MIMO, seqs=((512, 1152),), page_size=64))
    with settings(num_sms=1):
        attend("prefill", inputs)
    counters = emulated_backend.last_run.counters
    assert counters.bytes_read("device_pages") == (512 + 128) * (192 + 128) * 2
    assert counters.bytes_read("queries") == inputs.q.numel() * 2
    assert counters.bank_conflicts() == 0
