"""The training twin of the model: MiMo-V2's architecture in plain differentiable PyTorch, one module per Hugging Face name.

It exists because the package's ops have no backward. Its `state_dict` is, name for name, what the runner loads;
`tests/runner/test_tiny_hybrid.py` holds the two against each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "model_type": "mimo_v2_flash",
    "vocab_size": 257,
    "hidden_size": 224,
    "intermediate_size": 448,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "swa_num_key_value_heads": 2,
    "head_dim": 64,
    "v_head_dim": 64,
    "hidden_act": "silu",
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1, 1],  # 1 = sliding window; the first eight layers of MiMo-V2-Flash
    "layer_types": ["full_attention"] + ["sliding_attention"] * 4 + ["full_attention"] + ["sliding_attention"] * 2,
    "sliding_window": 128,  # visible keys, the query's own included
    "attention_value_scale": 0.707,
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1_000_000,
    "swa_rope_theta": 10_000,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.5},
    },
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "moe_layer_freq": [0] * 8,
    "mlp_layer_types": ["dense"] * 8,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "torch_dtype": "bfloat16",
}


class RMSNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-rotation rotary embedding of the first `cos.shape[-1]` dims; x is `[batch, heads, length, dim]`."""
    turning, still = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = turning.chunk(2, dim=-1)
    return torch.cat([turning * cos + torch.cat([-second, first], dim=-1) * sin, still], dim=-1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int) -> Tensor:
    """Sliding-window attention with sinks. q, k, v: `[batch, heads, length, dim]`, length a multiple of `window`.

    A block of `window` queries sees its own block of keys and the one before, so the work is O(length * window).
    """
    batch, heads, length, dim = q.shape
    blocks = length // window
    q = q.reshape(batch, heads, blocks, window, dim)

    def with_previous(x: Tensor) -> Tensor:
        x = x.reshape(batch, heads, blocks, window, -1)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3)

    k, v = with_previous(k), with_previous(v)
    i = torch.arange(window, device=q.device)[:, None] + window
    j = torch.arange(2 * window, device=q.device)[None, :]
    visible = ((i - j >= 0) & (i - j < window)).expand(blocks, -1, -1)
    first = (torch.arange(blocks, device=q.device) > 0)[:, None, None]
    visible = visible & (first | (j >= window))  # the first block has no predecessor
    scores = (q @ k.transpose(-1, -2)).float() * dim**-0.5
    scores = scores.masked_fill(~visible, float("-inf"))
    column = sinks.float()[None, :, None, None, None].expand(batch, -1, blocks, window, 1)
    probabilities = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    return (probabilities.to(v.dtype) @ v).reshape(batch, heads, length, -1)


class Attention(nn.Module):
    def __init__(self, sliding: bool):
        super().__init__()
        c = CONFIG
        self.sliding = sliding
        self.num_heads, self.dim, self.v_dim = c["num_attention_heads"], c["head_dim"], c["v_head_dim"]
        self.num_kv_heads = c["swa_num_key_value_heads"] if sliding else c["num_key_value_heads"]
        self.q_proj = nn.Linear(c["hidden_size"], self.num_heads * self.dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.num_kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.num_kv_heads * self.v_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.v_dim, c["hidden_size"], bias=False)
        if sliding:
            self.attention_sink_bias = nn.Parameter(torch.zeros(self.num_heads))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, length, self.num_heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(batch, length, self.num_kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(batch, length, self.num_kv_heads, -1).transpose(1, 2)
        v = v * CONFIG["attention_value_scale"]
        group = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.sliding:
            out = windowed_attention(q, k, v, self.attention_sink_bias, CONFIG["sliding_window"])
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, sliding: bool):
        super().__init__()
        self.self_attn = Attention(sliding)
        self.mlp = MLP()
        self.input_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.post_attention_layernorm = RMSNorm(CONFIG["hidden_size"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer(kind == 1) for kind in CONFIG["hybrid_layer_pattern"])
        self.norm = RMSNorm(CONFIG["hidden_size"])


class TinyHybrid(nn.Module):
    """tokens int64 `[batch, length]` -> logits `[batch, length, vocab]`; length must be a multiple of the window."""

    def __init__(self):
        super().__init__()
        self.model = Decoder()
        self.lm_head = nn.Linear(CONFIG["hidden_size"], CONFIG["vocab_size"], bias=False)

    def rotary(self, length: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
        dim = int(CONFIG["head_dim"] * CONFIG["partial_rotary_factor"])
        frequencies = theta ** -(torch.arange(0, dim, 2, device=device) / dim)
        angles = torch.arange(length, device=device)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        full = self.rotary(length, CONFIG["rope_theta"], tokens.device)
        sliding = self.rotary(length, CONFIG["swa_rope_theta"], tokens.device)
        x = self.model.embed_tokens(tokens)
        for layer, kind in zip(self.model.layers, CONFIG["hybrid_layer_pattern"], strict=True):
            x = layer(x, *(sliding if kind else full))
        return self.lm_head(self.model.norm(x))
