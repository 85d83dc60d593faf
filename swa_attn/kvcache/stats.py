"""Numbers about a cache: counts since it was made, and occupancy at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .tier import Tier
from .window_pages import NUM_TIERS

GAP_BOUNDS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)  # tokens; a last bucket takes the rest


@dataclass(frozen=True)
class PoolStats:
    """Device pages of one group. `oblivious_*`: what the same sequences would use if no window ever freed a page."""

    num_pages: int | None
    bytes_per_page: int
    in_use: int  # by running sequences and transfers
    cached: int  # only by the prefix cache: available on demand
    free: int | None
    peak_in_use: int
    oblivious_in_use: int
    oblivious_peak: int


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made; `pools`, `num_snapshots` and `resident_*` are as of now. Lengths in tokens."""

    pools: Mapping[str, PoolStats]
    num_lookups: int
    looked_up_tokens: int
    matched_tokens: int  # whose full-attention pages were there
    hit_tokens: int  # reused: the prefix that was not computed at full depth
    hit_tokens_by_tier: Mapping[Tier, int]  # by the fastest tier that had the full page
    snapshot_misses: int  # lookups that matched further than a window that was there allowed
    gap_histogram: Mapping[int | None, int]  # of those: upper bound of the gap in tokens (None: larger) -> lookups
    num_rebuilds: int
    rebuild_token_equivalents: float
    read_bytes: Mapping[str, int]  # group -> bytes that hits needed, wherever they were
    written_bytes: Mapping[str, int]  # group -> bytes of pages that were new to the cache
    moved_bytes: Mapping[tuple[Tier, Tier, str], int]  # (source, target, group)
    resident_pages: Mapping[tuple[Tier, str], int]
    resident_bytes: Mapping[Tier, int]
    num_snapshots: int
    evicted_pages: int  # from the device
    evicted_snapshots: int
    evicted_by_tier: Mapping[tuple[Tier, str], int]  # ("pages" or "snapshots")
    lost_pages: int  # that the store turned out not to have
    stalls: int  # times that making room waited for a transfer
    late_loads: int  # requests that went on without what they were waiting for

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        plain: dict[str, object] = {}
        for name, value in vars(self).items():
            if name == "pools":
                plain[name] = {group: vars(pool) for group, pool in value.items()}
            elif isinstance(value, Mapping):
                plain[name] = {_label(key): count for key, count in value.items()}
            else:
                plain[name] = value
        return plain

    def prometheus(self, prefix: str = "swa_attn_cache") -> str:
        """The text exposition format: one metric per field, labels for tiers and groups."""
        lines: list[str] = []
        for name, value in vars(self).items():
            if name == "pools":
                for field_name in ("in_use", "cached", "free"):
                    lines.append(f"# TYPE {prefix}_device_pages_{field_name} gauge")
                    for group, pool in value.items():
                        count = getattr(pool, field_name)
                        lines.append(f'{prefix}_device_pages_{field_name}{{group="{group}"}} {_number(count)}')
            elif name == "gap_histogram":
                lines += self._histogram(f"{prefix}_snapshot_miss_gap_tokens")
            else:
                kind = "gauge" if name in ("num_snapshots", "resident_pages", "resident_bytes") else "counter"
                metric = f"{prefix}_{name}" + ("_total" if kind == "counter" else "")
                lines.append(f"# TYPE {metric} {kind}")
                if isinstance(value, Mapping):
                    lines += [f"{metric}{{{_prometheus_labels(name, key)}}} {_number(n)}" for key, n in value.items()]
                else:
                    lines.append(f"{metric} {_number(value)}")
        return "\n".join(lines) + "\n"

    def _histogram(self, metric: str) -> list[str]:
        lines, below = [f"# TYPE {metric} histogram"], 0
        for bound, count in self.gap_histogram.items():
            below += count
            lines.append(f'{metric}_bucket{{le="{"+Inf" if bound is None else bound}"}} {below}')
        return [*lines, f"{metric}_sum {self.matched_tokens - self.hit_tokens}", f"{metric}_count {below}"]


def _label(key: object) -> str:
    if isinstance(key, tuple):
        return " -> ".join(_label(k) for k in key[:2]) + "".join(f", {_label(k)}" for k in key[2:])
    return key.name.lower() if isinstance(key, Tier) else str(key)


def _prometheus_labels(name: str, key: object) -> str:
    if name == "moved_bytes":
        source, target, group = key
        return f'source="{source.name.lower()}",target="{target.name.lower()}",group="{group}"'
    if isinstance(key, tuple):
        return f'tier="{key[0].name.lower()}",{"kind" if name == "evicted_by_tier" else "group"}="{key[1]}"'
    return f'tier="{key.name.lower()}"' if isinstance(key, Tier) else f'group="{key}"'


def _number(value: float | None) -> str:
    return "+Inf" if value is None else repr(value)


@dataclass
class Counters:
    """What a cache counts as it goes."""

    num_groups: int
    num_lookups: int = 0
    looked_up: int = 0
    matched: int = 0
    hit: int = 0
    hit_by_tier: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)
    snapshot_misses: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS) + 1))
    rebuilds: int = 0
    rebuild_tokens: float = 0.0
    read: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    moves: dict[tuple[Tier, Tier, int], int] = field(default_factory=dict)
    evicted_pages: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)
    evicted_snapshots: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)
    lost_pages: int = 0
    stalls: int = 0
    late_loads: int = 0

    def __post_init__(self) -> None:
        self.read = [0] * self.num_groups
        self.written = [0] * self.num_groups

    def moved(self, source: Tier, target: Tier, group: int, num_bytes: int) -> None:
        where = source, target, group
        self.moves[where] = self.moves.get(where, 0) + num_bytes

    def missed_snapshot(self, gap: int) -> None:
        """A lookup whose full pages went `gap` tokens further than its windows."""
        self.snapshot_misses += 1
        self.gaps[next((i for i, bound in enumerate(GAP_BOUNDS) if gap <= bound), len(GAP_BOUNDS))] += 1
