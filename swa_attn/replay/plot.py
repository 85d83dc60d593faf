"""The main figures of a replay as one picture: hit rate by tier, bytes moved, gaps of snapshot misses."""

from pathlib import PurePath

from .figures import Figures
from .sizes import show_bytes
from .svg import INK, MUTED, box, document, legend, line, text

WIDTH = 940
LEFT, RIGHT = 150, 80  # of the bars: names before, amounts after
TIER_COLORS = {"device": "#1b6ca8", "host": "#4aa3c7", "disk": "#a8d5e5"}
GROUP_COLORS = ("#1b6ca8", "#e08e45", "#7a9e5b")
OBLIVIOUS_COLOR, GAP_COLOR = "#b0b7bf", "#e08e45"
NAMES = {"aware": "window-aware", "oblivious": "window-oblivious"}
BAR, THIN_BAR, GAP_BETWEEN = 26, 18, 12


def plot(figures: Figures) -> str:
    """An SVG document."""
    trace, model = figures["trace"], figures["model"]
    tiers = ", ".join(f"{tier} {show_bytes(n)}" for tier, n in figures["budgets"].items())
    users = f", {trace['users']} users" if trace["users"] else ""
    title = f"{PurePath(trace['path']).name}: {trace['requests']:,} requests{users}"
    gaps = 258 + 60 + max(1, len(_ways(figures))) * (2 * THIN_BAR + GAP_BETWEEN)
    shapes = [
        text(24, 34, title, size=17, bold=True),
        text(24, 54, f"{model['name']}, {model['dtype']}; {tiers}", color=MUTED),
        *_hit_rates(figures, 98),
        *_bytes_moved(figures, 258),
        *_gaps(figures, gaps),
    ]
    return document(WIDTH, gaps + 180, title, shapes)


def _hit_rates(f: Figures, top: float) -> list[str]:
    tiers = list(f["budgets"])
    shapes = [text(24, top, "Hit rate by tier", size=14, bold=True)]
    shapes += legend(LEFT + 250, top, [(tier, TIER_COLORS[tier]) for tier in tiers], 80)
    width, y = WIDTH - LEFT - RIGHT, top + 20
    bottom = y + 2 * (BAR + GAP_BETWEEN)
    for tenth in range(0, 11, 2):
        x = LEFT + width * tenth / 10
        shapes += [line(x, y - 4, x, bottom), text(x, bottom + 15, f"{tenth / 10:.1f}", anchor="middle", color=MUTED)]
    for which, cache in f["caches"].items():
        shapes.append(text(LEFT - 10, y + BAR * 0.68, NAMES[which], anchor="end"))
        x: float = LEFT
        for tier in tiers:
            share = cache["hit_rate_by_tier"][tier]
            shapes.append(box(x, y, width * share, BAR, TIER_COLORS[tier], f"{tier}: {share:.4f}"))
            x += width * share
        shapes.append(text(LEFT + width + 10, y + BAR * 0.68, f"{cache['hit_rate']:.4f}", bold=True))
        y += BAR + GAP_BETWEEN
    bound = f["infinite_cache_hit_rate"]
    x = LEFT + width * bound
    shapes.append(line(x, top + 12, x, bottom + 20, INK, dashed=True))
    shapes.append(text(x, bottom + 33, f"infinite cache {bound:.4f}", anchor="middle", size=11, color=MUTED))
    return shapes


def _bytes_moved(f: Figures, top: float) -> list[str]:
    aware, oblivious = f["caches"]["aware"], f["caches"]["oblivious"]
    groups = list(f["model"]["bytes_per_token"])
    colors = dict(zip(groups, GROUP_COLORS, strict=False))
    shapes = [text(24, top, "Bytes moved between tiers", size=14, bold=True)]
    entries = [*((f"aware, {g}", colors[g]) for g in groups), ("oblivious", OBLIVIOUS_COLOR)]
    shapes += legend(LEFT + 250, top, entries, 110)
    ways = _ways(f)
    most = max([*(_moved(c, way) for c in (aware, oblivious) for way in ways), 1])
    width, y, bar = WIDTH - LEFT - RIGHT - 90, top + 18, THIN_BAR
    for way in ways:
        shapes.append(text(LEFT - 10, y + bar * 1.25, f"{way[0]} \u2192 {way[1]}", anchor="end"))
        x, parts = float(LEFT), []
        for group in groups:
            amount = _moved(aware, way, group)
            shapes.append(box(x, y, width * amount / most, bar, colors[group], f"{group}: {show_bytes(amount)}"))
            parts.append(f"{group} {show_bytes(amount)}")
            x += width * amount / most
        shapes.append(text(x + 6, y + bar * 0.74, f"{show_bytes(_moved(aware, way))} ({', '.join(parts)})", size=11))
        amount = _moved(oblivious, way)
        shapes.append(box(LEFT, y + bar, width * amount / most, bar, OBLIVIOUS_COLOR))
        shapes.append(text(LEFT + width * amount / most + 6, y + bar * 1.74, show_bytes(amount), size=11))
        y += 2 * bar + GAP_BETWEEN
    if not ways:
        shapes.append(text(LEFT, y + bar, "none: there is one tier", color=MUTED))
    return [*shapes, line(LEFT, top + 14, LEFT, max(y, top + 30), MUTED)]


def _gaps(f: Figures, top: float) -> list[str]:
    aware = f["caches"]["aware"]
    histogram = aware["gap_histogram"]
    title = f"Snapshot misses by gap in tokens: {aware['snapshot_miss_rate']:.2%} of requests"
    shapes = [text(24, top, title, size=14, bold=True)]
    height, y, width = 110, top + 26, WIDTH - LEFT - RIGHT
    most, step = max([*histogram.values(), 1]), width / len(histogram)
    for i, (bound, count) in enumerate(histogram.items()):
        x, tall = LEFT + i * step, height * count / most
        shapes.append(box(x + 4, y + height - tall, step - 8, tall, GAP_COLOR, f"{count:,} requests"))
        shapes.append(text(x + step / 2, y + height - tall - 5, f"{count:,}", anchor="middle", size=11))
        name = "more" if bound == "more" else f"\u2264 {int(bound):,}"
        shapes.append(text(x + step / 2, y + height + 16, name, anchor="middle", size=11, color=MUTED))
    return [*shapes, line(LEFT, y + height, LEFT + width, y + height, MUTED)]


def _ways(f: Figures) -> list[tuple[str, str]]:
    """From which tier to which anything was moved."""
    return list({(m["source"], m["target"]): None for c in f["caches"].values() for m in c["moved"]})


def _moved(cache: Figures, way: tuple[str, str], group: str | None = None) -> int:
    return sum(m["bytes"] for m in cache["moved"] if (m["source"], m["target"]) == way and group in (None, m["group"]))
