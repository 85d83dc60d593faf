"""Routing and experts against a loop over tokens that follows the definition."""

import pytest
import torch

from swa_attn.runner.config import MoEConfig
from swa_attn.runner.moe import MoE

HIDDEN, INNER, EXPERTS = 12, 10, 8


def make(**changes):
    settings = {"num_experts": EXPERTS, "num_experts_per_tok": 3, "intermediate_size": INNER, "num_groups": 4}
    config = MoEConfig(**{**settings, "num_top_groups": 2, "normalize": True, "scaling_factor": 1.5, **changes})
    generator = torch.Generator().manual_seed(0)
    moe = MoE(HIDDEN, config).requires_grad_(False)
    for p in moe.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    return moe, torch.randn(17, HIDDEN, generator=generator)


def one_token(moe, x):
    """The definition, for one token, in float64 and plain Python."""
    c = moe.gate.config
    gate_up, down, x = moe.experts.gate_up_proj.double(), moe.experts.down_proj.double(), x.double()
    scores = [1 / (1 + (-(row @ x)).exp().item()) for row in moe.gate.weight.double()]
    choice = [s + b for s, b in zip(scores, moe.gate.e_score_correction_bias.tolist(), strict=True)]
    size = c.num_experts // c.num_groups
    worth = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(c.num_groups)]
    groups = sorted(range(c.num_groups), key=lambda g: -worth[g])[: c.num_top_groups]
    allowed = [e for e in range(c.num_experts) if e // size in groups]
    experts = sorted(allowed, key=lambda e: -choice[e])[: c.num_experts_per_tok]
    total = sum(scores[e] for e in experts) if c.normalize else 1.0
    out = torch.zeros(HIDDEN, dtype=torch.float64)
    for e in experts:
        gate, up = (gate_up[e] @ x).chunk(2)
        out += scores[e] / total * c.scaling_factor * (down[e] @ (gate * gate.sigmoid() * up))
    return out


CASES = [{}, {"num_top_groups": 4}, {"num_groups": 1, "num_top_groups": 1}, {"normalize": False}]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_it_follows_the_definition(changes):
    moe, x = make(**changes)
    expected = torch.stack([one_token(moe, row) for row in x])
    assert (moe(x).double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_bias_chooses_and_does_not_weigh():
    moe, x = make(num_groups=1, num_top_groups=1, num_experts_per_tok=1, normalize=False, scaling_factor=1.0)
    moe.gate.e_score_correction_bias.zero_()
    moe.gate.e_score_correction_bias[5] = 10.0
    experts, weights = moe.gate(x)
    assert (experts == 5).all()
    assert torch.allclose(weights[:, 0], (x @ moe.gate.weight[5]).sigmoid())


def test_no_tokens():
    moe, x = make()
    assert moe(x[:0]).shape == (0, HIDDEN)


def test_half_precision_routes_in_float32():
    """A bfloat16 model chooses and weighs exactly as a float32 model of the same rounded weights does."""
    (half, x), (wide, _) = make(), make()
    half.to(torch.bfloat16)
    wide.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    for got, expected in zip(half.gate(x.bfloat16()), wide.gate(x.bfloat16().float()), strict=True):
        assert torch.equal(got, expected)
    got, expected = half(x.bfloat16()), wide(x.bfloat16().float())
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() <= 2**-6 * expected.abs().max()
