"""Sigmoid-routed mixture of experts, as DeepSeek-V3 introduced and MiMo-V2 uses it, without shared experts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MoEConfig


class Router(nn.Module):
    """Chooses experts by sigmoid score plus a correction bias, and weighs them by the score alone. In float32.

    The two parameters are float32 in a model of any dtype, as they are published: scores of neighbouring experts differ
    by less than bfloat16 resolves, and a rounded weight sends tokens to other experts.
    """

    float32_parameters = frozenset({"weight", "e_score_correction_bias"})

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size, dtype=torch.float32))
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.num_experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `[T, hidden]` -> experts int64 `[T, k]` and their weights float32 `[T, k]`."""
        c = self.config
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        choice = self._within_top_groups(scores + self.e_score_correction_bias)
        experts = choice.topk(c.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if c.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return experts, weights * c.scaling_factor

    def _within_top_groups(self, choice: Tensor) -> Tensor:
        """-inf for the experts outside the best groups; a group is worth its two best experts together."""
        c = self.config
        if c.num_top_groups == c.num_groups:
            return choice
        grouped = choice.unflatten(1, (c.num_groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(dim=-1).topk(c.num_top_groups, dim=-1).indices
        outside = torch.ones(choice.shape[0], c.num_groups, dtype=torch.bool, device=choice.device)
        outside.scatter_(1, best, False)
        return grouped.masked_fill(outside[:, :, None], float("-inf")).flatten(1)


class Experts(nn.Module):
    """The experts' SwiGLU weights, stacked: gate and up `[E, 2 * inner, hidden]`, down `[E, hidden, inner]`."""

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * inner, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, hidden_size, inner))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x `[T, hidden]`, experts and weights `[T, k]` -> `[T, hidden]`, added up in float32 in the experts' order.

        Reads the experts' loads back to the host once, which is the one place where a step waits for a GPU.
        """
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        by_expert = experts.flatten().argsort(stable=True)
        tokens = by_expert // experts.shape[1]
        weights = weights.flatten()[by_expert, None]
        loads = experts.flatten().bincount(minlength=len(self.down_proj)).tolist()
        start = 0
        for expert, load in enumerate(loads):
            if load:
                rows = slice(start, start + load)
                gate, up = F.linear(x[tokens[rows]], self.gate_up_proj[expert]).chunk(2, dim=-1)
                result = F.linear(F.silu(gate) * up, self.down_proj[expert])
                out.index_add_(0, tokens[rows], result * weights[rows])
                start += load
        return out.to(x.dtype)


class MoE(nn.Module):
    """Routed experts in place of a dense MLP. x `[T, hidden]` -> `[T, hidden]`."""

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.gate = Router(hidden_size, config)
        self.experts = Experts(hidden_size, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, *self.gate(x))
