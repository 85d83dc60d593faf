"""What the tests of every kernel for Hopper ask of a case."""

from dataclasses import replace

import pytest
import torch
from oracle import assert_close_to_oracle
from test_attention_kernels import ALL_POLICIES, POLICIES, assert_equal, attend

import swa_attn
from swa_attn.testing import AttentionCase, Inputs, build, emulated_backend
from swa_attn.testing.emulated_backend import settings

every_schedule = pytest.mark.parametrize("asynchrony, order, seed", ALL_POLICIES)


def used_wgmma() -> bool:
    """Whether one of the prefill kernels for Hopper ran."""
    return emulated_backend.last_run.counters.tallies["wgmma"] > 0


def used_mbarriers() -> bool:
    """Whether sm90_decode ran: sm80_decode has none."""
    return emulated_backend.last_run.counters.tallies["mbarrier_phases"] > 0


TAKEN = {"prefill": used_wgmma, "decode": used_mbarriers}


def spread(cache: torch.Tensor, axis: int) -> torch.Tensor:
    """The same pages, of 16-bit elements, at strides that are multiples of 16 bytes but for that of `axis`."""
    strides = list(cache.contiguous().stride())
    strides[axis] += 4
    for outer in range(axis - 1, -1, -1):
        strides[outer] = -(-strides[outer + 1] * cache.shape[outer + 1] // 8) * 8
    storage = torch.full((strides[0] * cache.shape[0],), float("nan"), dtype=cache.dtype)
    return storage.as_strided(cache.shape, strides).copy_(cache)


def attend_part(inputs: Inputs, seq: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens first .. last - 1 of a sequence as a batch of their own."""
    start, end = inputs.cu_seqlens_q.tolist()[seq : seq + 2]
    length = (inputs.seqlens_k[seq : seq + 1] - (end - start - last)).clamp(min=0)
    cu = torch.tensor([0, last - first], dtype=torch.int32)
    q, table = inputs.q[start + first : start + last], inputs.block_table[seq : seq + 1]
    with swa_attn.use_backend("emulated"):
        return swa_attn.prefill(q, inputs.k_cache, inputs.v_cache, table, length, cu, **inputs.options)


def assert_right(op: str, case: AttentionCase, **options: object) -> None:
    """By the kernel for Hopper, with these settings, close to the oracle."""
    inputs = build(case)
    with settings(**options):
        assert_close_to_oracle(inputs, *attend(op, inputs))
    assert TAKEN[op]()


def assert_equal_in_some_schedules(op: str, case: AttentionCase) -> None:
    """Right, and the same bits, whether copies land late, at once or at random and whoever runs first."""
    inputs = build(case)
    expected = attend(op, inputs)
    assert TAKEN[op]()
    assert_close_to_oracle(inputs, *expected)
    for asynchrony, order, seed in POLICIES[1:]:
        with settings(asynchrony=asynchrony, order=order, seed=seed):
            assert_equal(attend(op, inputs), expected)


def assert_equal_in_all_tiers(op: str, case: AttentionCase) -> None:
    """The same bits wherever pages lie, and whatever their ids."""
    expected = attend(op, build(replace(case, host=0.0)))
    for host in (0.3, 0.7, 1.0):
        assert_equal(attend(op, build(replace(case, host=host), page_order_seed=5)), expected)
        assert TAKEN[op]()
