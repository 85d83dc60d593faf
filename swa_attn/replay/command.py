"""`python -m swa_attn replay TRACE`: what the cache would do with a recorded workload. See docs/replay.md."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..kvcache import Planner, SnapshotPolicy, Tier
from ..runner.config import ConfigError, ModelConfig
from ..runner.presets import PRESETS
from ..runner.pricing import PRICES, PriceList
from .capacity import LARGEST, Capacity, capacity_at
from .drive import FewestTokens, Replayed, Setup, replay
from .figures import Figures, cache_figures, cacheable, input_bill, structural
from .plot import plot
from .progress import Progress
from .report import report
from .sizes import parse_bytes, show_bytes
from .traces import TraceError
from .workload import Workload, infinite_cache, read_trace, workload_of

PLANNERS: dict[str, Callable[[], Planner]] = {"tokens": FewestTokens, "time": Planner}
DTYPES = ("bfloat16", "float16", "float32")
CAPACITY_START = 1 << 40
LARGEST_COUNT = (1 << 31) - 1  # of users, tokens, pages, requests


def main(argv: list[str]) -> int:
    args = _parse(argv)
    try:
        figures = run(args)
    except (TraceError, ConfigError, OSError, ValueError) as error:
        print(f"swa_attn replay: {error}", file=sys.stderr)
        return 2
    print(report(figures))
    try:
        if args.json is not None:
            args.json.write_text(json.dumps(figures, indent=2) + "\n")
        if args.plot is not None:
            args.plot.write_text(plot(figures))
    except OSError as error:
        print(f"swa_attn replay: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> Figures:
    """All figures of one command line."""
    _check_folders(args.json, args.plot)
    budgets = _budgets(args)
    config, name = _model(args.model)
    trace = read_trace(args.trace, block_size=args.block_size, share_prompts=args.share_prompts)
    workload = workload_of(trace, num_users=args.users, page_size=args.page_size, limit=args.limit)
    aware = _setup(args, config, workload.page_size)
    oblivious = aware.without_windows()
    progress = Progress(args.quiet)

    def drive(what: str, setup: Setup, tiers: dict[Tier, int]) -> Replayed:
        return replay(setup.cache(tiers), workload, progress(what, len(workload.prompts)))

    bound = infinite_cache(workload, progress("infinite cache", len(workload.prompts)))
    runs = {"aware": drive("window-aware", aware, budgets), "oblivious": drive("window-oblivious", oblivious, budgets)}
    unlimited = drive("window-aware without limits", aware, {Tier.DEVICE: LARGEST, Tier.HOST: LARGEST})
    caches = {
        "aware": cache_figures(aware, runs["aware"]),
        "oblivious": cache_figures(oblivious, runs["oblivious"]),
    }
    prices = PRICES[args.prices]
    figures: Figures = {
        "trace": _about_trace(args, trace.format, len(trace.conversations), workload, bound.input_tokens),
        "model": _about_model(name, aware),
        "options": _about_options(args),
        "budgets": {tier.name.lower(): num_bytes for tier, num_bytes in budgets.items()},
        "infinite_cache_hit_rate": bound.hit_rate,
        "caches": caches,
        "moved_ratio": caches["oblivious"]["moved_bytes"] / max(1, caches["aware"]["moved_bytes"]),
        "structural": structural(aware, unlimited),
        "cacheable_tokens_ratio": cacheable(caches["aware"]["resident_tokens"], caches["oblivious"]["resident_tokens"]),
        "bill": _bill(prices, {"aware": runs["aware"], "oblivious": runs["oblivious"]}),
        "capacity": [],
    }
    for target in args.capacity_at:
        figures["capacity"].append(_capacity(target, aware, oblivious, drive))
    return figures


def _check_folders(*files: Path | None) -> None:
    """Raises ValueError before the work rather than after it."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {str(file.parent)!r} to write to")
        if file is not None and file.is_dir():
            raise ValueError(f"{file}: expected a file to write to, got a folder")


def _capacity(target: float, aware: Setup, oblivious: Setup, drive: Callable) -> Figures:
    """Budgets of a single tier at an equal hit rate."""

    def search(which: str, setup: Setup) -> Capacity:
        def hit_rate(budget: int) -> float:
            size = "no limit" if budget == LARGEST else show_bytes(budget)
            return drive(f"capacity at {target}, window-{which}, {size}", setup, {Tier.DEVICE: budget}).hit_rate

        return capacity_at(target, hit_rate, CAPACITY_START)

    found = {"aware": search("aware", aware), "oblivious": search("oblivious", oblivious)}
    sizes = [c.num_bytes for c in found.values()]
    return {
        "hit_rate": target,
        **{f"{which}_bytes": c.num_bytes for which, c in found.items()},
        "ratio": sizes[1] / sizes[0] if None not in sizes else None,
        "runs": {which: [list(r) for r in c.runs if r[0] != LARGEST] for which, c in found.items()},
    }


def _bill(prices: PriceList, runs: dict[str, Replayed]) -> Figures:
    tokens = runs["aware"].input_tokens
    return {
        "prices": prices.model,
        "currency": prices.currency,
        "hit_price": float(prices.hit),
        "miss_price": float(prices.miss),
        "since": prices.since.isoformat() if prices.since else None,
        "evidence": prices.evidence,
        "per_million_input_tokens": {
            "uncached": float(input_bill(prices, tokens, tokens)),
            **{which: float(input_bill(prices, tokens, run.recomputed_tokens)) for which, run in runs.items()},
        },
    }


def _setup(args: argparse.Namespace, config: ModelConfig, page_size: int) -> Setup:
    groups = config.kv_groups()
    if all(g.window is not None for g in groups):
        raise ValueError("--model: the model has no full-attention layers, so there is nothing to compare")
    policy = SnapshotPolicy(
        slack_pages=args.slack,
        branches=args.branches,
        every=args.every,
        demote_superseded=args.demote,
    )
    plan = PLANNERS[args.planner]
    lower = torch.float8_e4m3fn if args.fp8_lower else None
    dtype = getattr(torch, args.dtype)
    return Setup(groups, page_size, dtype, policy, lambda: plan(rebuild=args.rebuild), lower)


def _model(name: str) -> tuple[ModelConfig, str]:
    """A preset, or the model of a config.json (or of a folder with one)."""
    if name in PRESETS:
        return ModelConfig.preset(name), name
    path = Path(name)
    if not path.exists():
        raise ValueError(f"--model: expected a config.json or one of {', '.join(PRESETS)}, got {name!r}")
    return ModelConfig.from_file(path / "config.json" if path.is_dir() else path), name


def _budgets(args: argparse.Namespace) -> dict[Tier, int]:
    given = {Tier.DEVICE: args.device, Tier.HOST: args.host, Tier.DISK: args.disk}
    budgets = {tier: num_bytes for tier, num_bytes in given.items() if num_bytes}
    if Tier.DEVICE not in budgets:
        raise ValueError("--device: the device tier cannot be left out")
    if Tier.DISK in budgets and Tier.HOST not in budgets:
        raise ValueError("--host: a disk tier needs a host tier above it")
    return budgets


def _about_trace(
    args: argparse.Namespace, kind: str, num_conversations: int, workload: Workload, input_tokens: int
) -> Figures:
    sessions = num_conversations > 0
    return {
        "path": str(args.trace).encode("utf-8", "replace").decode(),
        "format": kind,
        "requests": len(workload.prompts),
        "warm_up_requests": workload.num_warm_up,
        "input_tokens": input_tokens,
        "conversations": num_conversations if sessions else None,
        "users": args.users if sessions else None,
        "shared_prompts": args.share_prompts if sessions else None,
        "block_size": workload.block_size,
        "page_size": workload.page_size,
        "outputs_replayed": False,
    }


def _about_model(name: str, setup: Setup) -> Figures:
    snapshot = sum(
        -(-(g.window - 1) // setup.page_size) * setup.page_size * g.bytes_per_token(setup.dtype)
        for g in setup.groups
        if g.window is not None
    )
    dtype = str(setup.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "bytes_per_token": setup.bytes_per_token, "snapshot_bytes": snapshot}


def _about_options(args: argparse.Namespace) -> Figures:
    names = ("slack", "rebuild", "branches", "every", "demote", "fp8_lower", "planner")
    return {name: getattr(args, name) for name in names}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="swa_attn replay",
        description="Drive the cache's tree, policies and accounting with a recorded workload, without a model.",
    )
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("trace", type=Path, help="requests in Mooncake's format or the run-length session format, plain or gzip")
    add("--model", default="mimo-v2.5-pro", help=f"{', '.join(PRESETS)}, or a config.json (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of keys and values (default: %(default)s)")
    add(
        "--device", type=_bytes, default="300GB", metavar="BYTES", help="device memory for pages (default: %(default)s)"
    )
    add("--host", type=_bytes, default="1TB", metavar="BYTES", help="0 for none (default: %(default)s)")
    add("--disk", type=_bytes, default="4TB", metavar="BYTES", help="0 for none (default: %(default)s)")
    who = parser.add_argument_group("workload")
    add = who.add_argument
    add("--users", type=_positive, default=256, help="at once, for sessions (default: %(default)s)")
    add(
        "--share-prompts",
        action=flag,
        default=True,
        help="conversations with tool and system prompts of equal sizes begin with the same blocks",
    )
    add("--block-size", type=_positive, metavar="TOKENS", help="of a trace in Mooncake's format (default: 512)")
    add("--page-size", type=_positive, metavar="TOKENS", help="default: 64 if that divides the block, else the block")
    add("--limit", type=_positive, metavar="N", help="only the first N requests")
    policy = parser.add_argument_group("policy of the window-aware cache")
    add = policy.add_argument
    add("--slack", type=_natural, default=2, metavar="PAGES", help="before the window at ends (default: %(default)s)")
    add("--rebuild", action=flag, default=True, help="recompute missing windows exactly from cached full pages")
    add("--branches", action=flag, default=True, help="snapshots where prompts were seen to part")
    add("--every", type=_positive, metavar="TOKENS", help="snapshots at such intervals too")
    add("--demote", action=flag, default=True, help="evict the ends of earlier turns first")
    add("--fp8-lower", action="store_true", help="full-attention pages below the device in 8 bits")
    add(
        "--planner",
        choices=list(PLANNERS),
        default="tokens",
        help="tokens: reuse all that is cached; time: as an engine does, what is predicted to be fastest, for both caches "
        "(default: %(default)s)",
    )
    out = parser.add_argument_group("results")
    add = out.add_argument
    add(
        "--capacity-at",
        type=_rate,
        action="append",
        default=[],
        metavar="HIT_RATE",
        help="also search the budgets of a single tier that reach this hit rate; may be given again; many runs",
    )
    add("--prices", choices=list(PRICES), default="MiMo-V2.5-Pro", help="price list of the bill (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the main figures there")
    add("--quiet", action="store_true", help="no progress on standard error")
    return parser.parse_args(argv)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, minimum: int) -> int:
    if not text.isdecimal() or len(text) > 20 or not minimum <= int(text) <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"expected an integer from {minimum} to {LARGEST_COUNT}, got {text[:40]!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"expected a hit rate between 0 and 1, got {text[:40]!r}")
    return rate
