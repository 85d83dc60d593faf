"""A few small calls of every op on the card, each compared with the reference: what runs under compute-sanitizer.

    compute-sanitizer --tool memcheck python -m bench.gpu.sanitized cuda

Small, because the sanitizer slows a kernel down by orders of magnitude; shapes that take every path: a ragged prefill, a
windowed and a split decode, host pages, float8, copies between tiers. Poisoned inputs are exactly as large as they must be.
"""

import argparse
import sys
from dataclasses import replace

import torch

import swa_attn
from swa_attn import backends
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build
from swa_attn.testing.card import OnCard

FP8 = torch.float8_e4m3fn
BASE = AttentionCase(
    seqs=((17, 40), (1, 33), (3, 3)),
    window=24,
    page_size=16,
    num_q_heads=8,
    num_kv_heads=2,
    head_dim=192,
    v_head_dim=128,
    dtype=torch.bfloat16,
    sinks=True,
)
PREFILLS = (BASE, replace(BASE, window=None, host=0.5, layout="packed"), replace(BASE, cache_dtype=FP8, page_size=5))
DECODES = (
    replace(BASE, seqs=((2, 40), (2, 7)), host=0.5),
    replace(BASE, seqs=((1, 1100), (1, 300)), window=None),
    replace(BASE, seqs=((4, 90), (4, 33)), head_dim=64, v_head_dim=64, cache_dtype=FP8),
)


def attention() -> None:
    for case in PREFILLS:
        inputs = build(case)
        assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))
    for case in DECODES:
        inputs = build(case)
        out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
        assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


def pages() -> None:
    def pools() -> list[torch.Tensor]:
        return [torch.zeros(3, 5, 2, dim, dtype=torch.bfloat16) for dim in (192, 128)]

    key = torch.randn(4, 2, 192).bfloat16()
    arguments = key, key[..., :128].contiguous()
    slots = torch.tensor([14, 0, -1, 7])
    got, expected = pools(), pools()
    swa_attn.append_kv(*arguments, *got, slots)
    backends.load("reference").append_kv(*arguments, *expected, slots)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    where = torch.tensor([2, 0, 1]), torch.tensor([0, -1, 3])
    source = torch.randn(2, 3, 5, 2, 192).bfloat16()
    target = torch.zeros(2, 4, 5, 2, 192, dtype=torch.bfloat16)
    swa_attn.copy_pages(source, target, *where)
    assert torch.equal(target[:, 0], source[:, 2]) and torch.equal(target[:, 3], source[:, 1])
    assert target[:, 1:3].eq(0).all()
    scale = torch.zeros(2, 4, 2)
    swa_attn.copy_pages(source, target.to(FP8), *where, dst_scale=scale)
    assert scale[:, 0].gt(0).all() and scale[:, 1].eq(0).all()
    out, lse = torch.randn(5, 8, 128).bfloat16(), torch.randn(5, 8)
    merged = swa_attn.merge_states(out, lse, out, lse)
    assert torch.allclose(merged[0].float(), out.float(), rtol=0, atol=1e-2)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=("cuda", "triton"))
    name = parser.parse_args(argv).backend
    run(OnCard(name, backends.load))
    print(f"{name}: every op ran and was right")
    return 0


def run(backend: OnCard) -> None:
    backends.register("sanitized", backend)
    with swa_attn.use_backend("sanitized"):
        attention()
        pages()


if __name__ == "__main__":
    sys.exit(main())
