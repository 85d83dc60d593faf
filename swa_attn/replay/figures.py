"""What a replay comes to, as plain values for JSON: one dict per question."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ..kvcache import KVCache, Tier
from ..runner.pricing import PriceList, bill
from ..runner.usage import Usage
from .drive import Replayed, Setup

Figures = dict[str, Any]


def cache_figures(setup: Setup, run: Replayed) -> Figures:
    """One cache under its budgets. Counts are of the requests after the warm-up, `resident_*` as of the end."""
    total = max(1, run.input_tokens)
    full = next(g.name for g in setup.groups if g.window is None)
    moved = [
        {"source": _name(source), "target": _name(target), "group": group, "bytes": num_bytes}
        for (source, target, group), num_bytes in run.counts("moved_bytes").items()
    ]
    resident = {t: run.last.resident_pages[t, full] * setup.page_size for t in run.last.resident_bytes}
    return {
        "hit_rate": run.hit_rate,
        "hit_rate_by_tier": {_name(t): n / total for t, n in run.counts("hit_tokens_by_tier").items()},
        "input_tokens": run.input_tokens,
        "hit_tokens": run.hit_tokens,
        "recomputed_token_equivalents": run.recomputed_tokens,
        "rebuilds": run.count("num_rebuilds"),
        "rebuild_token_equivalents": run.rebuild_tokens,
        "snapshot_misses": run.count("snapshot_misses"),
        "snapshot_miss_rate": run.count("snapshot_misses") / max(1, run.num_requests),
        "gap_histogram": {str(bound or "more"): n for bound, n in run.counts("gap_histogram").items()},
        "requests_too_large": run.too_large,
        "read_bytes": run.counts("read_bytes"),
        "written_bytes": run.counts("written_bytes"),
        "moved": moved,
        "moved_bytes": sum(m["bytes"] for m in moved),
        "resident_tokens": {_name(t): n for t, n in resident.items()},
        "resident_bytes": {_name(t): n for t, n in run.last.resident_bytes.items()},
        "snapshots": run.last.num_snapshots,
        "requests_per_minute": 60 * run.num_driven / run.seconds,
    }


def structural(setup: Setup, run: Replayed) -> Figures:
    """Bytes that a window-oblivious cache needs for the same hits, over those that the run's cache needed.

    From a run without limits: what hits read, at the sizes of the tiers below the device, and what was copied to the tier
    below once. The oblivious cache keeps everything in the model's own dtype.
    """
    sizes = KVCache.store_layout(setup.groups, setup.page_size, setup.dtype, setup.lower_dtype)[1]
    pages = {g.name: setup.page_size * g.bytes_per_token(setup.dtype) for g in setup.groups}
    full = next(g.name for g in setup.groups if g.window is None)
    per_page = sum(pages.values())
    at = {g.name: size for g, size in zip(setup.groups, sizes, strict=True)}
    read = {name: num_bytes / pages[name] for name, num_bytes in run.counts("read_bytes").items()}
    moved = run.counts("moved_bytes")
    written = {name: moved.get((Tier.DEVICE, Tier.HOST, name), 0) / size for name, size in at.items()}
    found: Figures = {}
    for what, counts in (("read", read), ("written", written)):
        aware = sum(counts[name] * size for name, size in at.items())
        found[what] = {"aware_bytes": aware, "oblivious_bytes": counts[full] * per_page}
    found["total"] = {key: found["read"][key] + found["written"][key] for key in ("aware_bytes", "oblivious_bytes")}
    for part in found.values():
        part["ratio"] = _ratio(part["oblivious_bytes"], part["aware_bytes"])
    return found | {"limit": per_page / at[full], "hit_rate": run.hit_rate}


def cacheable(aware: Mapping[str, int], oblivious: Mapping[str, int]) -> Figures:
    """Tokens resident at the end, ours over the oblivious cache's, tier by tier."""
    return {tier: _ratio(aware[tier], oblivious[tier]) for tier in aware}


def input_bill(prices: PriceList, input_tokens: int, recomputed_tokens: float) -> Decimal:
    """What a million input tokens cost, with rebuilds priced as tokens that missed."""
    cached = max(0, input_tokens - round(recomputed_tokens))
    total = bill(Usage(input_tokens, cached), prices).total
    return total * 1_000_000 / input_tokens if input_tokens else Decimal(0)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _name(tier: Tier) -> str:
    return tier.name.lower()
