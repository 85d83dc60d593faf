"""The figures of a replay as text."""

from collections.abc import Iterable

from .figures import Figures
from .sizes import show_bytes, show_count

WIDTHS = (46, 14, 18)


def report(figures: Figures) -> str:
    parts = (_heading, _hits, _moves, _structural, _capacity, _snapshots, _bill)
    return "\n\n".join("\n".join(part(figures)) for part in parts)


def _heading(f: Figures) -> Iterable[str]:
    trace, model = f["trace"], f["model"]
    yield f"{trace['path']}: {trace['requests']:,} requests, of which {trace['warm_up_requests']:,} warm up"
    if trace["users"]:
        shared = "shared" if trace["shared_prompts"] else "not shared"
        yield (
            f"{trace['users']:,} users, {trace['conversations']:,} conversations; tool and system prompts of equal sizes "
            f"are {shared}"
        )
    yield (
        f"{show_count(trace['input_tokens'])} input tokens counted; blocks of {trace['block_size']}, pages of "
        f"{trace['page_size']} tokens. Answers are not replayed: the trace does not name their tokens"
    )
    groups = " + ".join(f"{show_bytes(n)} {name}" for name, n in model["bytes_per_token"].items())
    yield f"{model['name']}, {model['dtype']}: {groups} per token; a window snapshot {show_bytes(model['snapshot_bytes'])}"
    yield "; ".join(f"{tier} {show_bytes(n)}" for tier, n in f["budgets"].items())


def _hits(f: Figures) -> Iterable[str]:
    aware, oblivious = f["caches"]["aware"], f["caches"]["oblivious"]
    yield _row("", "window-aware", "window-oblivious")
    yield _row(f"hit rate (infinite cache {f['infinite_cache_hit_rate']:.4f})", *_both(f, "hit_rate", "{:.4f}"))
    for tier in aware["hit_rate_by_tier"]:
        yield _row(f"  found in {tier}", *(f"{c['hit_rate_by_tier'][tier]:.4f}" for c in (aware, oblivious)))
    rebuilt = [c["rebuild_token_equivalents"] / max(1, c["input_tokens"]) for c in (aware, oblivious)]
    yield _row("  spent on rebuilding windows", *(f"{-r:.4f}" if r else "-" for r in rebuilt))
    if aware["requests_too_large"] or oblivious["requests_too_large"]:
        yield _row("requests too large for the device", *_both(f, "requests_too_large", "{:,}"))
    for tier, ratio in f["cacheable_tokens_ratio"].items():
        tokens = [show_count(c["resident_tokens"][tier]) for c in (aware, oblivious)]
        yield _row(f"tokens cached in {tier} at the end", *tokens, _times(ratio))
    yield _row("requests replayed per minute", *_both(f, "requests_per_minute", "{:,.0f}"))


def _moves(f: Figures) -> Iterable[str]:
    yield "bytes moved"
    ways = {(m["source"], m["target"]): None for c in f["caches"].values() for m in c["moved"]}
    for source, target in ways:
        totals = [_moved(c, source, target) for c in f["caches"].values()]
        ratio = totals[1] / totals[0] if totals[0] else None
        yield _row(f"  {source} -> {target}", *map(show_bytes, totals), _times(ratio))
        for group in f["model"]["bytes_per_token"]:
            yield _row(f"    {group}", show_bytes(_moved(f["caches"]["aware"], source, target, group)))
    yield _row("  in all", *(show_bytes(c["moved_bytes"]) for c in f["caches"].values()), _times(f["moved_ratio"]))


def _structural(f: Figures) -> Iterable[str]:
    yield f"bytes needed at equal hits, without limits (hit rate {f['structural']['hit_rate']:.4f})"
    for part, title in (("read", "read by hits"), ("written", "new, copied down once"), ("total", "in all")):
        sizes = f["structural"][part]
        amounts = show_bytes(sizes["aware_bytes"]), show_bytes(sizes["oblivious_bytes"])
        yield _row(f"  {title}", *amounts, _times(sizes["ratio"]))
    yield f"  limit of this geometry: {_times(f['structural']['limit'])}"


def _capacity(f: Figures) -> Iterable[str]:
    if not f["capacity"]:
        yield "capacity at an equal hit rate: not searched (--capacity-at)"
        return
    yield "one tier's budget at an equal hit rate"
    for at in f["capacity"]:
        sizes = [at["aware_bytes"], at["oblivious_bytes"]]
        shown = ["out of reach" if s is None else f"{s / 1e9:,.0f} GB" for s in sizes]
        yield _row(f"  hit rate {at['hit_rate']:g}", *shown, _times(at["ratio"]))


def _snapshots(f: Figures) -> Iterable[str]:
    aware = f["caches"]["aware"]
    yield (
        f"snapshot misses: {aware['snapshot_misses']:,} requests ({aware['snapshot_miss_rate']:.2%}) matched further than "
        f"a window allowed"
    )
    yield (
        f"  {aware['rebuilds']:,} rebuilds, {show_count(aware['rebuild_token_equivalents'])} token-equivalents"
        + (f", {aware['rebuild_token_equivalents'] / aware['rebuilds']:,.0f} each" if aware["rebuilds"] else "")
    )
    most = max([*aware["gap_histogram"].values(), 1])
    for bound, count in aware["gap_histogram"].items():
        title = "more" if bound == "more" else f"gap <= {int(bound):,} tokens"
        yield f"  {title:<22} {count:>7,}  {'#' * -(-30 * count // most)}"


def _bill(f: Figures) -> Iterable[str]:
    bill = f["bill"]
    since = f" since {bill['since']}" if bill["since"] else ""
    yield (
        f"per million input tokens at {bill['prices']} prices{since} ({bill['evidence']}): hit {bill['hit_price']:g}, "
        f"miss {bill['miss_price']:g} {bill['currency']}"
    )
    for which, cost in bill["per_million_input_tokens"].items():
        title = which if which == "uncached" else f"window-{which}"
        yield f"  {title:<22} {cost:.5f} {bill['currency']}"


def _moved(cache: Figures, source: str, target: str, group: str | None = None) -> int:
    return sum(
        m["bytes"]
        for m in cache["moved"]
        if (m["source"], m["target"]) == (source, target) and group in (None, m["group"])
    )


def _both(f: Figures, name: str, form: str) -> list[str]:
    return [form.format(cache[name]) for cache in f["caches"].values()]


def _row(title: str, *values: str) -> str:
    cells = [f"{title:<{WIDTHS[0]}}", *(f"{v:>{w}}" for v, w in zip(values, WIDTHS[1:], strict=False))]
    return "".join([*cells, *(f"  {v}" for v in values[2:])]).rstrip()


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x {ratio:.2f}"
