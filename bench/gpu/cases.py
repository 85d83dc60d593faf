"""The benchmark's cases, what each must at least do, and the time that takes at given ceilings: its floor.

Work is counted exactly: visible (query, key) pairs, each query, key, value and output byte once. A floor is the longest
of the times in which the card could move the bytes, multiply, compute the exponentials, read the host link and launch.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Layer:
    """Attention geometry of a model's layer; `window` counts the query's own key, None is full attention."""

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None
    sinks: bool = False

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def dims(self) -> int:
        """Elements of a key and its value; multiply-adds of a visible pair."""
        return self.head_dim + self.v_head_dim


MIMO_SWA = Layer("MiMo-V2 windowed", 64, 8, 192, 128, 128, sinks=True)
MIMO_FULL = Layer("MiMo-V2 global", 64, 4, 192, 128, None)
GPT_OSS = Layer("gpt-oss windowed", 64, 8, 64, 64, 128, sinks=True)
GEMMA_12B = Layer("Gemma-3-12B windowed", 16, 8, 256, 256, 1024)
GEMMA_1B = Layer("Gemma-3-1B windowed", 4, 1, 256, 256, 512)
MISTRAL = Layer("Mistral-7B windowed", 32, 8, 128, 128, 4096)


@dataclass(frozen=True)
class Case:
    """A call of `op`. `seqs` are (new tokens, context length including them) per sequence.

    `element_bytes` is that of queries and outputs (bf16), `kv_bytes` that of the cache (1: float8_e4m3fn). The visible
    pages of the first `host_seqs` sequences lie in pinned host memory.
    """

    name: str
    op: str  # prefill | decode
    layer: Layer
    seqs: tuple[tuple[int, int], ...]
    page_size: int = 64
    kv_bytes: int = 2
    host_seqs: int = 0
    element_bytes: int = 2

    @cached_property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one query head."""
        return sum(visible_pairs(q_len, context, self.layer.window) for q_len, context in self.seqs)

    @cached_property
    def visible_keys(self) -> tuple[int, ...]:
        """Per sequence, the keys that at least one of its queries sees."""
        return tuple(context - first_visible(q_len, context, self.layer.window) for q_len, context in self.seqs)

    @property
    def num_tokens(self) -> int:
        return sum(q_len for q_len, _ in self.seqs)

    @property
    def q_len(self) -> int:
        """New tokens of every sequence; raises ValueError where they differ."""
        (q_len,) = {q_len for q_len, _ in self.seqs}
        return q_len

    @property
    def flops(self) -> int:
        return 2 * self.layer.num_q_heads * self.pairs * self.layer.dims

    @property
    def exps(self) -> int:
        return self.layer.num_q_heads * self.pairs

    @property
    def key_bytes(self) -> int:
        """K and V of one token."""
        return self.layer.num_kv_heads * self.layer.dims * self.kv_bytes

    @property
    def row_bytes(self) -> int:
        """Queries and outputs."""
        return self.num_tokens * self.layer.num_q_heads * self.layer.dims * self.element_bytes

    @property
    def bytes(self) -> int:
        """Queries, outputs, visible keys and values once; tables and lse are left out."""
        return self.row_bytes + sum(self.visible_keys) * self.key_bytes

    @property
    def link_bytes(self) -> int:
        """Bytes that must cross the host link."""
        return sum(self.visible_keys[: self.host_seqs]) * self.key_bytes


def first_visible(q_len: int, context: int, window: int | None) -> int:
    """The first key that one of the last `q_len` tokens of a sequence sees."""
    return 0 if window is None else max(0, context - q_len - window + 1)


def visible_pairs(q_len: int, context: int, window: int | None) -> int:
    """Sum over the last `q_len` positions of a context of the keys that each sees."""
    return sum(min(window or context, position + 1) for position in range(context - q_len, context))


@dataclass(frozen=True)
class Ceilings:
    """What a card reaches, in units per second. `link` is None where the host link was not measured."""

    bytes: float
    flops: float
    exps: float
    launch_seconds: float
    link: float | None = None


# One H200 as others reported it (not measured here): for tests and for the table printed without a card.
H200_REPORTED = Ceilings(bytes=4.3e12, flops=790e12, exps=132 * 16 * 1.83e9, launch_seconds=1.35e-6, link=52e9)


@dataclass(frozen=True)
class Floor:
    """The least time of a case in microseconds, and what sets it."""

    us: float
    bound_by: str  # hbm | mma | exp | link | launch


def floor(case: Case, ceilings: Ceilings) -> Floor:
    """The case's floor; raises ValueError for a case on the host without a measured link."""
    seconds = {
        "hbm": (case.bytes - case.link_bytes) / ceilings.bytes,
        "mma": case.flops / ceilings.flops,
        "exp": case.exps / ceilings.exps,
        "launch": ceilings.launch_seconds,
    }
    if case.link_bytes:
        if ceilings.link is None:
            raise ValueError(f"{case.name} reads host pages: its floor needs the host link's ceiling")
        seconds["link"] = case.link_bytes / ceilings.link
    bound_by = max(seconds, key=seconds.__getitem__)
    return Floor(seconds[bound_by] * 1e6, bound_by)


def decode_case(name: str, layer: Layer, batch: int, context: int, q_len: int = 1, **options: object) -> Case:
    return Case(name, "decode", layer, ((q_len, context),) * batch, **options)


def all_cases() -> tuple[Case, ...]:
    """The whole table, in the order in which it is printed."""

    def prefill(name: str, layer: Layer, *seqs: tuple[int, int]) -> Case:
        return Case(name, "prefill", layer, seqs)

    return (
        prefill("P1", MIMO_SWA, (8192, 8192)),
        prefill("P2", MIMO_SWA, (8192, 40960)),
        prefill("P3", MIMO_SWA, *[(1024, 1024)] * 16),
        prefill("P4", MIMO_FULL, (8192, 8192)),
        prefill("P5", GPT_OSS, (8192, 8192)),
        prefill("P6", GEMMA_12B, (8192, 8192)),
        prefill("P7", GEMMA_1B, (8192, 8192)),
        prefill("P8", MISTRAL, (16384, 16384)),
        *(decode_case(f"D1-B{b}", MIMO_SWA, b, 4096) for b in (1, 16, 64, 256)),
        decode_case("D2", MIMO_SWA, 64, 4096, q_len=4),
        decode_case("D3", MIMO_FULL, 64, 8192),
        decode_case("D4-B64", GPT_OSS, 64, 4096),
        decode_case("D4-B256", GPT_OSS, 256, 4096),
        decode_case("D5", GEMMA_12B, 64, 4096),
        decode_case("D6", MISTRAL, 64, 8192),
        decode_case("D7", MIMO_SWA, 64, 4096, kv_bytes=1),
        prefill("X1", MIMO_SWA, (4096, 8192), *[(1, 4096)] * 64),
        decode_case("H1-B1", MIMO_SWA, 1, 4096, host_seqs=1),
        decode_case("H1-B64", MIMO_SWA, 64, 4096, host_seqs=64),
        decode_case("H2-B64", GPT_OSS, 64, 4096, host_seqs=64),
        decode_case("H3-B64", MIMO_SWA, 64, 4096, host_seqs=8),
        decode_case("H4-B256", MIMO_SWA, 256, 4096, host_seqs=2),
    )
