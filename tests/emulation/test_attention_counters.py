"""What the attention kernels may ask of a card: the figures of docs/kernels/cuda.md, counted exactly."""

from dataclasses import replace

import pytest
import torch

from swa_attn.testing import AttentionCase, emulated_backend
from swa_attn.testing.figures import measure

pytestmark = pytest.mark.skipif(emulated_backend.unavailable() is not None, reason="the emulator cannot be built here")

# One KV head of MiMo's windowed layer.
MIMO = AttentionCase(
    head_dim=192,
    v_head_dim=128,
    num_q_heads=8,
    num_kv_heads=1,
    window=128,
    page_size=16,
    sinks=True,
    dtype=torch.bfloat16,
)
GPT_OSS = replace(MIMO, head_dim=64, v_head_dim=64)
GEMMA = replace(MIMO, head_dim=256, v_head_dim=256, num_q_heads=2, window=1024, sinks=False)
FULL = replace(MIMO, num_q_heads=16, window=None)
# 1 x 8192 with 8 KV heads on 132 SMs makes segments of 512 tokens; one head does on 16.
SMS_PER_HEAD = 132 // 8
DECODES = tuple((1, k) for k in (129, 1000, 517, 128, 300, 2048, 777, 64))


@pytest.mark.parametrize("page_size", [16, 64])
def test_windowed_prefill_reads_keys_about_once_and_multiplies_little_else(page_size):
    f = measure("prefill", replace(MIMO, seqs=((2048, 2048),), page_size=page_size), num_sms=4)  # segments of 512, too
    assert f.kv_ratio <= 1 + 127 / 512
    assert f.visible_share >= 0.88
    assert f.kv_sector_ratio == f.query_ratio == f.output_ratio == 1
    assert f.counters.bank_conflicts() == 0


@pytest.mark.slow
def test_windowed_prefill_at_full_length():
    f = measure("prefill", replace(MIMO, seqs=((8192, 8192),)), num_sms=SMS_PER_HEAD)
    assert f.kv_ratio <= 1.5 and f.visible_share >= 0.80


@pytest.mark.parametrize("case", [replace(GPT_OSS, seqs=((512, 1024),)), replace(GEMMA, seqs=((64, 1500),))], ids=str)
def test_other_windows(case):
    f = measure("prefill", case, num_sms=1)
    assert f.visible_share >= 0.80
    assert f.kv_sector_ratio == 1
    assert f.counters.bank_conflicts() == 0


@pytest.mark.parametrize(
    "case", [replace(FULL, seqs=((64, 512),)), replace(FULL, num_q_heads=1, seqs=((512, 512),))], ids=str
)
def test_full_attention_multiplies_little_that_is_masked(case):
    f = measure("prefill", case)
    assert f.visible_share >= 0.85
    assert f.counters.bank_conflicts() == 0


@pytest.mark.slow
def test_full_attention_at_full_length():
    assert measure("prefill", replace(FULL, seqs=((2048, 2048),))).visible_share >= 0.85


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("host", [0.0, 0.5, 1.0])
def test_windowed_decode_reads_every_visible_byte_once(page_size, host):
    """On the device and across the link: no key beyond the window, none twice. One launch."""
    f = measure("decode", replace(MIMO, seqs=DECODES, page_size=page_size, host=host))
    assert f.kv_bytes == f.least_kv_bytes
    assert f.kv_sector_ratio == 1
    assert f.query_ratio <= 4.5  # each of four warps asks for them: the first from memory, the others from L1
    assert f.counters.bank_conflicts() == 0
    if host == 1.0:
        assert f.counters.bytes_read("device_pages") == 0


def test_prefill_reads_host_pages_once_per_segment():
    f = measure("prefill", replace(MIMO, seqs=((1024, 1024),), host=1.0), num_sms=2)
    assert f.counters.bytes_read("host_pages") <= 1.3 * f.least_kv_bytes
    assert f.counters.bytes_read("device_pages") == 0


@pytest.mark.parametrize("q_len", [2, 4])
def test_more_query_tokens_cost_no_more_keys(q_len):
    """Up to 32 rows (query tokens x heads of a group) are one pass over the keys."""
    f = measure("decode", replace(MIMO, seqs=((q_len, 300), (q_len, 90))))
    assert f.kv_bytes == f.least_kv_bytes


def test_float8_pages_cost_half():
    case = replace(MIMO, seqs=DECODES[:3])
    bytes_of = [measure("decode", replace(case, cache_dtype=c)).kv_bytes for c in (None, torch.float8_e4m3fn)]
    assert bytes_of[0] == 2 * bytes_of[1]


def test_counters_do_not_depend_on_the_schedule():
    case = replace(GPT_OSS, seqs=((40, 200),))
    expected = measure("prefill", case).counters.to_json()
    with emulated_backend.settings(asynchrony="random", order="random", seed=5):
        assert measure("prefill", case).counters.to_json() == expected
