"""MiMo-V2: full and sliding-window layers, sinks on the windowed ones, two rotary bases, scaled values, routed experts.

Tokens of all sequences are packed into one dimension T. What differs between sequences (lengths, pages) is in the
metadata; what differs between kinds of layers (heads, window, theta) is in the config.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from ...attention import AttentionMetadata, SlidingWindowAttention
from ..config import AttentionConfig, ModelConfig
from ..layers import GatedMLP, RMSNorm, rotary_table, rotate
from ..moe import MoE

Cache = tuple[Tensor, Tensor]


class MiMoAttention(nn.Module):
    """Projections, rotary embedding and value scale around `SlidingWindowAttention`."""

    def __init__(self, hidden_size: int, config: AttentionConfig, value_scale: float) -> None:
        super().__init__()
        c = self.config = config
        self.value_scale = value_scale
        self.q_proj = nn.Linear(hidden_size, c.num_q_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, c.num_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, c.num_kv_heads * c.v_head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_q_heads * c.v_head_dim, hidden_size, bias=False)
        self.attn = SlidingWindowAttention(
            c.num_q_heads, c.num_kv_heads, c.head_dim, c.v_head_dim, window=c.window, sinks=c.sinks
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache, metadata: AttentionMetadata) -> Tensor:
        c = self.config
        q = rotate(self.q_proj(x).unflatten(-1, (c.num_q_heads, c.head_dim)), *rotary)
        k = rotate(self.k_proj(x).unflatten(-1, (c.num_kv_heads, c.head_dim)), *rotary)
        v = self.v_proj(x).unflatten(-1, (c.num_kv_heads, c.v_head_dim)) * self.value_scale
        return self.o_proj(self.attn(q, k, v, *cache, metadata).flatten(1))


class MiMoLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MiMoAttention(config.hidden_size, config.attention(layer_idx), config.value_scale)
        self.mlp: nn.Module
        if config.moe is not None and config.moe_layers[layer_idx]:
            self.mlp = MoE(config.hidden_size, config.moe)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache, metadata: AttentionMetadata) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, metadata)
        return x + self.mlp(self.post_attention_layernorm(x))


class MiMoDecoder(nn.Module):
    """Everything but the output head; named as in the checkpoints, whose tensors start with `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MiMoLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Mapping[int, Cache],
        metadata: Mapping[str, AttentionMetadata],
    ) -> Tensor:
        x = self.embed_tokens(tokens)
        rotary = {}
        for kind in set(self.config.layer_kinds):
            attention = self.config.full if kind == "full" else self.config.swa
            rotary[kind] = rotary_table(positions, attention.rotary_dim, attention.rope_theta, x.dtype)
        for layer_idx, (layer, kind) in enumerate(zip(self.layers, self.config.layer_kinds, strict=True)):
            x = layer(x, rotary[kind], caches[layer_idx], metadata[kind])
        return x


class MiMoForCausalLM(nn.Module):
    """The model that `load_model` fills with weights. Inference only: no parameter requires grad."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MiMoDecoder(config)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.requires_grad_(False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Mapping[int, Cache],
        metadata: Mapping[str, AttentionMetadata],
        logits_rows: Tensor | None = None,
    ) -> Tensor:
        """Run the new tokens of a step, storing their keys and values in the caches.

        Args:
            tokens: int64 `[T]`, the new tokens of all sequences, one after the other.
            positions: int64 `[T]`, each token's place in its sequence.
            caches: layer index -> its K and V pages `[num_pages, page_size, num_kv_heads, head_dim | v_head_dim]`, in
                the model's dtype or float8_e4m3fn. Written.
            metadata: group name ("full", "swa": `config.kv_groups()`) -> where its pages are.
            logits_rows: int64 `[R]`, the rows of T whose logits are wanted; None means all.

        Returns:
            float32 logits `[R, vocab_size]`.

        Raises:
            KeyError: a layer has no cache or a group no metadata.
            ValueError, TypeError: a shape, dtype or device is wrong; the message names the argument.
        """
        x = self.model(tokens, positions, caches, metadata)
        x = self.model.norm(x if logits_rows is None else x[logits_rows])
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return nn.functional.linear(x, head.weight).float()
