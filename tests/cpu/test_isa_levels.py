"""Every instruction-set level of the CPU kernels that this machine has, each in a process of its own."""

import os
import subprocess
import sys

import pytest

from swa_attn import native

LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16"]
SCRIPT = """
import sys
import torch
import swa_attn
from swa_attn import native, reference
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build

if native.cpu_level() != sys.argv[1]:
    print("not here")
    sys.exit()
FP8 = torch.float8_e4m3fn
for dtype, cache in [(torch.float32, None), (torch.bfloat16, None), (torch.float16, None), (torch.float16, FP8)]:
    for head_dim, v_head_dim, window in [(64, 64, 9), (192, 128, 40), (24, 8, None)]:
        case = AttentionCase(
            seqs=((5, 60), (1, 70), (70, 70)), window=window, head_dim=head_dim, v_head_dim=v_head_dim, dtype=dtype,
            cache_dtype=cache, num_q_heads=6, num_kv_heads=2, sinks=True, softcap=5.0 if head_dim == 64 else 0.0,
        )
        inputs = build(case)
        assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))
# Every half that is a number, and float32 values around every float8 and half rounding edge, convert as torch does.
halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
halves = halves[~halves.isnan()]
halves = halves[: halves.numel() // 32 * 32].view(-1, 1, 32)
slots = torch.arange(halves.shape[0])
for source in (halves, halves.float() * (1 + 2.0**-12), halves.bfloat16()):
    for to in (torch.float32, torch.bfloat16, torch.float16, FP8):
        pools = [torch.zeros(halves.shape[0], 1, 1, 32, dtype=to) for _ in range(2)]
        swa_attn.append_kv(source, source, *pools, slots)
        expected = reference.to_cache_dtype(source, to, None)
        assert torch.equal(pools[0][:, 0].view(torch.uint8), expected.view(torch.uint8)), (source.dtype, to)
print("ok")
"""


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("level", LEVELS)
def test_level(level):
    environment = {**os.environ, "SWA_ATTN_CPU_ISA": level, "SWA_ATTN_BACKEND": "cpu", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT, level], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if result.stdout == "not here\n":
        pytest.skip(f"this machine or compiler has no {level}")
    assert result.stdout == "ok\n"
