"""sm90_prefill beyond the op suite: every schedule and every way to cut the work, bit for bit the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hopper_checks import (
    assert_equal_in_all_tiers,
    assert_equal_in_some_schedules,
    assert_right,
    attend_part,
    every_schedule,
    used_wgmma,
)
from oracle import assert_close_to_oracle
from test_attention_kernels import GEMMA, GPT_OSS, MIMO, SMALL, assert_equal, attend

from swa_attn.testing import build, emulated_backend
from swa_attn.testing.emulated_backend import settings
from swa_attn.testing.figures import measure

pytestmark = pytest.mark.skipif(emulated_backend.unavailable() is not None, reason="the emulator cannot be built here")

FULL = replace(MIMO, num_q_heads=16, window=None, sinks=False)
MISTRAL = replace(MIMO, head_dim=128, v_head_dim=128, num_q_heads=4, window=300)
QWEN = replace(GPT_OSS, window=None, num_q_heads=5, softcap=20.0)
WIDE = replace(GEMMA, window=150)
# Slots of the rings used several times, tiles that only one consumer sees, rows of decode beside long prompts, CTAs
# without tokens for the second consumer, rows without keys.
PREFILLS = [
    replace(FULL, seqs=((20, 500), (1, 700), (9, 2))),
    replace(FULL, seqs=((12, 610),), host=0.5, page_size=64, dtype=torch.float16),
    replace(MISTRAL, seqs=((90, 640), (0, 30), (2, 301))),
    replace(MISTRAL, seqs=((40, 500),), num_q_heads=8, num_kv_heads=2, host=0.3, page_size=32),
    replace(QWEN, seqs=((60, 1300), (5, 3)), dtype=torch.float16),
    replace(WIDE, seqs=((100, 400), (1, 290))),
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
def test_results_do_not_depend_on_the_batch_or_on_chunks(case):
    """Chunks of a few tokens lie elsewhere in the CTAs' rows and see other tiles first."""
    inputs = build(case)
    out, lse = attend("prefill", inputs)
    for seq, (q_len, _) in enumerate(case.seqs):
        row = int(inputs.cu_seqlens_q[seq])
        cuts = sorted({0, q_len // 3, min(q_len, q_len // 3 + 3), q_len})
        for first, last in pairwise(cuts):
            rows = slice(row + first, row + last)
            assert_equal(attend_part(inputs, seq, first, last), (out[rows], lse[rows]))


@prefills
def test_host_pages_give_the_bits_of_device_pages(case):
    assert_equal_in_all_tiers("prefill", case)


@pytest.mark.parametrize("layout", ["hnd", "packed", "padded"])
@pytest.mark.parametrize("page_size", [8, 32, 128])
def test_pages_of_all_layouts(layout, page_size):
    assert_right("prefill", replace(FULL, seqs=((11, 300), (9, 9)), layout=layout, page_size=page_size))


@pytest.mark.parametrize("window", [258, 319, 320, 321, 383, 384, 385])
@pytest.mark.parametrize("group_size", [1, 5, 64])
def test_windows_and_groups_around_a_tile(window, group_size):
    tokens = min(140, 200 // group_size)
    case = replace(
        GPT_OSS, num_q_heads=group_size, window=window, seqs=((tokens, 350 + tokens), (1, window), (2, window + 1))
    )
    assert_right("prefill", case)


@pytest.mark.parametrize("context", [63, 64, 65, 127, 128, 129, 256, 257])
@pytest.mark.parametrize("case", [replace(FULL, num_q_heads=1), replace(WIDE, num_q_heads=1)], ids=str)
def test_contexts_that_end_around_a_tile(case, context):
    assert_right("prefill", replace(case, seqs=((context, context), (3, context))))


@pytest.mark.parametrize("case", [FULL, replace(WIDE, window=160)], ids=["full", "window"])
@pytest.mark.parametrize("position", [127, 230, 310])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_special_value_reaches_only_the_rows_that_see_it(case, position, value):
    """In a tile that everybody sees, at the window's start, among the rows' own keys; host rows around it."""
    case = replace(case, seqs=((60, 340),), host=0.3)
    inputs = build(case)
    before = attend("prefill", inputs)
    page, slot = int(inputs.block_table[0, position // case.page_size]), position % case.page_size
    num_device = len(inputs.v_cache)
    pool = inputs.v_cache if page < num_device else inputs.options["v_host_cache"]
    pool[page if page < num_device else page - num_device, slot, 0, 5] = value
    out, lse = attend("prefill", inputs)
    positions = torch.arange(280, 340)
    sees = (positions >= position) & (positions < position + (case.window or 1 << 30))
    reached = torch.zeros(out.shape, dtype=torch.bool)
    reached[sees, :, 5] = True
    assert torch.equal(out[~reached], before[0][~reached]) and torch.equal(lse, before[1])
    assert not torch.isfinite(out[reached]).any()


@pytest.mark.parametrize("num_q_heads", [1, 3, 64])
def test_scores_far_from_zero(num_q_heads):
    """Maxima that move by hundreds from tile to tile, up and down."""
    inputs = build(replace(FULL, num_q_heads=num_q_heads, seqs=((10, 700),), score_scale=60.0))
    assert_close_to_oracle(inputs, *attend("prefill", inputs))


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
    inputs = build(replace(QWEN, seqs=((3, 150),), **changes))
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert not used_wgmma()


@pytest.mark.parametrize("scale", [0.0, -0.125])
def test_a_scale_that_is_not_positive_goes_to_the_kernels_for_sm_80(scale):
    inputs = build(replace(QWEN, seqs=((3, 150),), softcap=0.0))
    inputs.options["softmax_scale"] = scale
    assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert not used_wgmma()


@pytest.mark.parametrize("card", [{"compute_capability": 80}, {"compute_capability": 100}, {"max_smem_bytes": SMALL}])
def test_other_cards_take_the_kernels_for_sm_80(card):
    inputs = build(replace(FULL, seqs=((20, 200),)))
    with settings(**card):
        assert_close_to_oracle(inputs, *attend("prefill", inputs))
    assert not used_wgmma()


@pytest.mark.parametrize("page_size", [16, 64])
def test_a_cta_asks_for_visible_keys_and_queries_once(page_size):
    """MiMo's full layer: 8 tokens of 16 heads in a CTA, pages without a visible key are not asked for."""
    f = measure("prefill", replace(FULL, seqs=((64, 640),), page_size=page_size))
    keys = sum(-(-end // page_size) * page_size for end in range(584, 641, 8))
    assert f.kv_bytes == keys * (192 + 128) * 2
    assert f.query_ratio == f.output_ratio == 1
    assert f.counters.bank_conflicts() == 0
    assert f.visible_share >= 0.9


@pytest.mark.parametrize("case", [replace(MISTRAL, seqs=((64, 640),), window=512), replace(WIDE, seqs=((64, 640),))])
def test_a_walk_starts_at_the_window_and_has_no_bank_conflicts(case):
    f = measure("prefill", case)
    assert f.kv_bytes <= f.least_kv_bytes * (64 // (128 // case.num_q_heads)) * 1.1
    assert f.counters.bank_conflicts() == 0
