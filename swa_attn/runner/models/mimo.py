"""MiMo-V2: full and sliding-window layers, sinks on the windowed ones, two rotary bases, scaled values, routed experts.

Tokens of all sequences are packed into one dimension T. What differs between sequences (lengths, pages) is in the
metadata; what differs between kinds of layers (heads, window, theta) is in the config.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...attention import AttentionMetadata, SlidingWindowAttention
from ...kvcache import RebuildPlan
from ...ops import append_kv
from ..config import AttentionConfig, ModelConfig
from ..generation_config import GenerationConfig
from ..layers import GatedMLP, RMSNorm, rotary_table, rotate
from ..moe import MoE
from ..text_part import SkippedPart

Cache = Sequence[Tensor | None]  # K and V pages of a layer, and those on the host, if any
Rotary = tuple[Tensor, Tensor]


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

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache, metadata: AttentionMetadata) -> Tensor:
        self.store(x, rotary, cache, metadata.slot_mapping)
        return self.attend(x, rotary, cache, metadata)

    def store(self, x: Tensor, rotary: Rotary, cache: Cache, slot_mapping: Tensor) -> None:
        """Keys and values of the rows into the cache."""
        c = self.config
        k = rotate(self.k_proj(x).unflatten(-1, (c.num_kv_heads, c.head_dim)), *rotary)
        v = self.v_proj(x).unflatten(-1, (c.num_kv_heads, c.v_head_dim)) * self.value_scale
        append_kv(k, v, *cache[:2], slot_mapping)

    def attend(self, x: Tensor, rotary: Rotary, cache: Cache, metadata: AttentionMetadata) -> Tensor:
        """Attention of the rows to the cache, which holds their own keys and values too."""
        c = self.config
        q = rotate(self.q_proj(x).unflatten(-1, (c.num_q_heads, c.head_dim)), *rotary)
        host = dict(zip(("k_host_cache", "v_host_cache"), cache[2:], strict=False))
        return self.o_proj(self.attn.attend(q, *cache[:2], metadata, **host).flatten(1))


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

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache, metadata: AttentionMetadata) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, metadata)
        return x + self.mlp(self.post_attention_layernorm(x))

    def rebuild(self, x: Tensor, rotary: Rotary, cache: Cache, slots: Tensor, metadata: AttentionMetadata) -> Tensor:
        """As forward, but only the last rows, those of `metadata`, have outputs; `slots` are those of all rows."""
        normed = self.input_layernorm(x)
        self.self_attn.store(normed, rotary, cache, slots)
        rows = slice(len(x) - len(metadata.slot_mapping), None)
        x = x[rows] + self.self_attn.attend(normed[rows], tuple(r[rows] for r in rotary), cache, metadata)
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
        rotary = self._rotary(positions, x.dtype)
        for layer_idx, (layer, kind) in enumerate(zip(self.layers, self.config.layer_kinds, strict=True)):
            x = layer(x, rotary[kind], caches[layer_idx], metadata[kind])
        return x

    def rebuild(
        self,
        tokens: Tensor,
        plan: RebuildPlan,
        caches: Mapping[int, Cache],
        block_tables: Mapping[str, Sequence[int]],
        page_size: int,
    ) -> None:
        """See `MiMoForCausalLM.rebuild_windows`."""
        x = self.embed_tokens(tokens)
        positions = torch.arange(plan.first[0], plan.end, device=tokens.device)
        tables = self._rotary(positions, x.dtype)
        for layer_idx, kind in enumerate(self.config.layer_kinds):
            first, first_out = plan.first[layer_idx : layer_idx + 2]
            if first == plan.end:  # above the last windowed layer
                return
            window, table = self.config.attention(layer_idx).window, block_tables[kind]
            rotary = tuple(t[first - plan.first[0] :] for t in tables[kind])
            slots = self._slots(table, first, plan.end, page_size, x.device)
            if window is None:  # these pages hold the keys already, perhaps for others too
                slots.fill_(-1)
            layer = self.layers[layer_idx]
            if first_out == plan.end:  # the last windowed layer: nobody asks for its output
                layer.self_attn.store(layer.input_layernorm(x), rotary, caches[layer_idx], slots)
                return
            rows = AttentionMetadata.build(
                [table], [plan.end], [plan.end - first_out], page_size, x.device, window=window
            )
            x = layer.rebuild(x, rotary, caches[layer_idx], slots, rows)

    @staticmethod
    def _slots(table: Sequence[int], first: int, end: int, page_size: int, device: torch.device) -> Tensor:
        """Where one sequence's positions first .. end - 1 are."""
        positions = torch.arange(first, end)
        pages = torch.as_tensor(table)[positions // page_size]
        return (pages * page_size + positions % page_size).to(device)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> dict[str, Rotary]:
        kinds = {kind: self.config.full if kind == "full" else self.config.swa for kind in set(self.config.layer_kinds)}
        return {k: rotary_table(positions, c.rotary_dim, c.rope_theta, dtype) for k, c in kinds.items()}


class MiMoForCausalLM(nn.Module):
    """The model that `load_model` fills with weights. Inference only: no parameter requires grad.

    `generation` is what its publisher recommends for sampling, `skipped` the parts of its checkpoint that are not here.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.generation = GenerationConfig()
        self.skipped: Mapping[str, SkippedPart] = {}
        self.model = MiMoDecoder(config)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.requires_grad_(False)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.config.max_position_embeddings

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

    def rebuild_windows(
        self,
        tokens: Tensor,
        plan: RebuildPlan,
        caches: Mapping[int, Cache],
        block_tables: Mapping[str, Sequence[int]],
        page_size: int,
    ) -> None:
        """Make the windowed layers' keys and values that a resume at `plan.end` needs, from cached full-attention pages.

        Args:
            tokens: int64 `[plan.num_tokens]`, the sequence's tokens from `plan.first[0]` to `plan.end`.
            plan: of `plan_rebuild`, with the windows of this model's layers.
            caches: as in `forward`. Only pages of windowed layers are written.
            block_tables: group name -> page ids of the one sequence. "full": all pages up to `plan.end`, filled. Windowed:
                pages of its own from `plan.first[0]` on, and filled ones for the window before that if the plan starts at
                a snapshot; those before may be negative. After the call the pages that hold the last W - 1 positions are
                what a run from the start would have left there; the earlier ones are scratch.
            page_size: token slots per page.

        Raises:
            ValueError: tokens or block tables do not fit the plan.
        """
        if len(tokens) != plan.num_tokens or len(plan.first) != self.config.num_layers + 1:
            raise ValueError(
                f"rebuild_windows: the plan is for {plan.num_tokens} tokens and {len(plan.first) - 1} layers, got "
                f"{len(tokens)} tokens and {self.config.num_layers} layers"
            )
        self.model.rebuild(tokens, plan, caches, block_tables, page_size)
