"""Tiny random MiMo models, and a minimal paged runner of one model that poisons every page the window has left."""

import torch
from torch import Tensor

from swa_attn.attention import AttentionMetadata
from swa_attn.runner.models import MiMoForCausalLM

PAGE_SIZE = 16
NAN = float("nan")


def hf_config(sliding_window_size: int, **changes):
    """transformers' config of a model with every feature: both kinds of layers, dense and sparse, expert groups."""
    from transformers import MiMoV2FlashConfig

    rope = {"rope_type": "default", "partial_rotary_factor": 1 / 3}
    settings = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "v_head_dim": 16,
        "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding")],
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"],
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "sliding_window_size": sliding_window_size,
        "rope_parameters": {
            "full_attention": {**rope, "rope_theta": 5_000_000.0},
            "sliding_attention": {**rope, "rope_theta": 10_000.0},
        },
        "max_position_embeddings": 4096,
        "attn_implementation": "eager",
    }
    return MiMoV2FlashConfig(**{**settings, **changes})


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights under which attention, sinks and routing matter; the default ones leave attention nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        noise = torch.randn(x.shape, generator=generator)
        if x.dim() >= 2:
            x.copy_(0.15 * noise)
        elif name.endswith(("sinks", "e_score_correction_bias")):
            x.copy_(noise)
        elif name.endswith("norm.weight"):
            x.copy_(1 + 0.1 * noise)
    return model.eval()


def hf_model(config, seed: int = 0):
    from transformers import MiMoV2FlashForCausalLM

    return randomise(MiMoV2FlashForCausalLM(config), seed)


class Sequence:
    """Tokens computed so far, and a block table per group."""

    def __init__(self, groups) -> None:
        self.length = 0
        self.tables: dict[str, list[int]] = {g.name: [] for g in groups}


class PagedRunner:
    """Runs ragged steps of a model. Pages come in a shuffled order; all memory starts as NaN."""

    def __init__(self, model: MiMoForCausalLM, num_pages: int = 64, page_size: int = PAGE_SIZE) -> None:
        self.model, self.page_size = model, page_size
        self.groups = model.config.kv_groups()
        dtype = model.model.embed_tokens.weight.dtype
        self.caches = {
            layer: tuple(
                torch.full((num_pages, page_size, g.num_kv_heads, dim), NAN, dtype=dtype)
                for dim in (g.head_dim, g.v_head_dim)
            )
            for g in self.groups
            for layer in g.layers
        }
        shuffled = torch.Generator().manual_seed(1)
        self.free = {g.name: torch.randperm(num_pages, generator=shuffled).tolist() for g in self.groups}

    def start(self, prefix: Sequence | None = None, length: int = 0) -> Sequence:
        """A new sequence; with `prefix`, one that goes on after the first `length` tokens of another, on its pages.

        Of a windowed group it gets the pages that the next query sees, and only those.
        """
        sequence = Sequence(self.groups)
        if prefix is not None:
            assert length % self.page_size == 0
            sequence.length = length
            for g in self.groups:
                pages = prefix.tables[g.name][: length // self.page_size]
                first = g.first_visible(length) // self.page_size
                sequence.tables[g.name] = [-1] * first + pages[first:]
        return sequence

    def step(self, *chunks: tuple[Sequence, Tensor]) -> list[Tensor]:
        """Run the chunks' tokens in one forward; float32 logits `[tokens, vocab]` of each chunk."""
        lengths = [sequence.length + len(tokens) for sequence, tokens in chunks]
        query_lens = [len(tokens) for _, tokens in chunks]
        metadata = {}
        for g in self.groups:
            for (sequence, _), length in zip(chunks, lengths, strict=True):
                table = sequence.tables[g.name]
                while len(table) * self.page_size < length:
                    table.append(self.free[g.name].pop())
            tables = [sequence.tables[g.name] for sequence, _ in chunks]
            metadata[g.name] = AttentionMetadata.build(tables, lengths, query_lens, self.page_size, window=g.window)
        tokens = torch.cat([tokens for _, tokens in chunks])
        positions = torch.cat([torch.arange(n - q, n) for n, q in zip(lengths, query_lens, strict=True)])
        logits = self.model(tokens, positions, self.caches, metadata)
        for (sequence, _), length in zip(chunks, lengths, strict=True):
            sequence.length = length
        return list(logits.split(query_lens))

    def run(self, sequence: Sequence, tokens: Tensor, chunk_size: int, *, release: bool = True) -> Tensor:
        """All tokens in chunks; `release` gives up and poisons windowed pages as the window leaves them."""
        logits = []
        for chunk in tokens.split(chunk_size):
            logits += self.step((sequence, chunk))
            if release:
                self.release_invisible(sequence)
        return torch.cat(logits)

    def release_invisible(self, sequence: Sequence) -> None:
        for g in self.groups:
            table = sequence.tables[g.name]
            for i in range(g.first_visible(sequence.length) // self.page_size):
                if table[i] >= 0:
                    for layer in g.layers:
                        for pages in self.caches[layer]:
                            pages[table[i]] = NAN
                    self.free[g.name].append(table[i])
                    table[i] = -1
