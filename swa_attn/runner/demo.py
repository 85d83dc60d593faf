"""`python -m swa_attn demo`: a coding assistant serves several users on one repository, with and without a prefix cache.

A small trained model (examples/tiny_hybrid) runs through the same engine, cache and ops that a large one would. The users
belong to teams, which do not share their cache, and device and host hold the work of one team at a time: so prefixes
come back from all three tiers. The session is run twice, once with the prefix cache and once without, and the completions
are compared token by token.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch

from ..kvcache import CacheStats, KVCache, LowerTiers
from ..kvcache.store import SlabOptions, SlabStore
from .config import ModelConfig
from .engine import Engine
from .loader import load_model
from .pricing import PRICES, bill, bill_without_cache
from .request import Completion
from .sampler import SamplingParams
from .tokenizer import ByteStream, ByteTokenizer
from .usage import Usage
from .workload import Workload, build_workload

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = CHECKOUT / "examples" / "tiny_hybrid"
BILLED_MODELS = ("MiMo-V2.5-Pro", "MiMo-V2.5", "DeepSeek-V4-Pro", "DeepSeek-V4-Flash")
PAGE_SIZE = 16
DISK_BYTES = 128 << 20
FIRST_SEED = 1000
SAMPLING = {"temperature": 0.5, "top_p": 0.9}  # a model this small repeats itself when greedy; seeds make it exact


@dataclass(frozen=True)
class Served:
    """One request of the session and what came of it."""

    user: str
    turn: int
    completion: Completion


def main(argv: list[str]) -> int:
    args = _parse(argv)
    try:
        return _run(args)
    except (OSError, ValueError, ImportError) as error:  # of a file that is missing or malformed, or of an argument
        print(f"swa_attn demo: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    say = _silent if args.json else _print
    model = load_model(args.model, dtype=torch.float32)  # exact enough to compare runs token by token
    config = model.config
    if config.vocab_size < ByteTokenizer.NUM_BYTES:
        raise ValueError(
            f"--model must know the {ByteTokenizer.NUM_BYTES} bytes as tokens, got {config.vocab_size} tokens"
        )
    workload = build_workload(args.repo.resolve(), args.users, args.turns, args.context_bytes)
    say(_introduction(args, config, workload))

    pages = _pages(config, args, workload)
    _engine(model, pages, config, cached=False).generate(
        [range(ByteTokenizer.NUM_BYTES)], SamplingParams(max_tokens=4)
    )  # warm up
    with tempfile.TemporaryDirectory(prefix="swa_attn_demo_") as folder, ExitStack() as stack:
        lower = _lower_tiers(config, pages, Path(folder), stack, say)
        engine = stack.enter_context(_engine(model, pages, config, cached=True, lower=lower))
        if lower.store is not None:
            say(
                f"on disk its KV is that of model {engine.cache.fingerprint[:16]}, the digest of configuration and weights"
            )
        start = time.perf_counter()
        served = run_session(engine, workload, args, say, show=not args.json)
        seconds = time.perf_counter() - start
        stats = engine.stats()
    say(f"\nThe same session without a prefix cache, to compare ({len(served)} requests)")
    start = time.perf_counter()
    plain = run_session(_engine(model, pages, config, cached=False), workload, args, say, show=False)
    seconds_without = time.perf_counter() - start

    result = report(served, plain, stats, seconds, seconds_without)
    print(json.dumps(result, indent=2) if args.json else format_report(result))
    return 0 if result["outputs_equal"] else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m swa_attn demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repo", type=Path, default=CHECKOUT, help="source tree to work on (default: this project)")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder with config.json and *.safetensors")
    parser.add_argument("--users", type=_positive, default=4)
    parser.add_argument("--teams", type=_positive, default=2, help="tenants that the users belong to, in turn")
    parser.add_argument("--turns", type=_positive, default=3)
    parser.add_argument("--max-tokens", type=_positive, default=96, help="bytes per completion")
    parser.add_argument("--context-bytes", type=_positive, default=4000, help="repository context in every prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _pages(config: ModelConfig, args: argparse.Namespace, workload: Workload) -> dict[str, int]:
    """Pages of a tier that has room for about one team: the longest conversation and a quarter."""
    said = max(sum(len(m.encode()) for m in messages) for messages in workload.messages.values())
    longest = len(workload.opening.encode()) + said + args.turns * args.max_tokens
    pages = -(-longest * 5 // 4 // PAGE_SIZE)
    return {group.name: pages if group.window is None else max(64, pages // 4) for group in config.kv_groups()}


def _engine(
    model: object, pages: Mapping[str, int], config: ModelConfig, cached: bool, lower: LowerTiers | None = None
) -> Engine:
    return Engine(
        model,
        config.kv_groups(),
        page_size=PAGE_SIZE,
        num_pages=pages,
        max_tokens_per_step=512,
        enable_prefix_cache=cached,
        eos_token_ids=config.eos_token_ids,
        lower=lower,
    )


def _lower_tiers(
    config: ModelConfig, device_pages: Mapping[str, int], folder: Path, stack: ExitStack, say: Callable[..., None]
) -> LowerTiers:
    """Host memory for a fifth more than the device, and a store in `folder` if its checksum library is installed."""
    pages = {group: count * 6 // 5 for group, count in device_pages.items()}
    layout, sizes = KVCache.store_layout(config.kv_groups(), PAGE_SIZE, torch.float32)
    options = SlabOptions(DISK_BYTES, segment_bytes=DISK_BYTES // 4, size_classes=sizes, workers=2)
    try:
        store = stack.enter_context(SlabStore(folder, options, namespace=b"demo", layout=layout))
    except (ImportError, OSError) as error:
        say(f"No disk tier: {error}")
        return LowerTiers(pages)
    return LowerTiers(pages, store, DISK_BYTES // 2)


def run_session(
    engine: Engine, workload: Workload, args: argparse.Namespace, say: Callable[..., None], *, show: bool
) -> list[Served]:
    """Every user's turns in order; the users of a team are served together, after its first one has warmed the cache."""
    tokenizer = ByteTokenizer()
    replies: dict[str, list[str]] = {user: [] for user in workload.messages}
    served = []
    num_turns = len(next(iter(workload.messages.values())))
    for turn in range(num_turns):
        for team, batch in _batches(list(workload.messages), args.teams, first_turn=turn == 0):
            prompts = [tokenizer.encode(workload.prompt(user, replies[user])) for user in batch]
            if show:
                lengths = ", ".join(str(len(p)) for p in prompts)
                say(f"\nturn {turn + 1}, team {team + 1}, {', '.join(batch)}: prompts of {lengths} tokens")
            streams = show and batch[0] == next(iter(workload.messages))
            stream = _Printer(workload.messages[batch[0]][turn]) if streams else None
            # torch's float32 products differ by a rounding with the batch, so that a draw within one of the edge between two
            # tokens may fall to either side. Other seeds then draw elsewhere.
            first = FIRST_SEED + len(served)
            params = [SamplingParams(max_tokens=args.max_tokens, **SAMPLING, seed=first + i) for i in range(len(batch))]
            completions = engine.generate(prompts, params, stream=stream, salt=f"team {team}")
            if stream:
                stream.close()
            for user, completion in zip(batch, completions, strict=True):
                replies[user].append(tokenizer.decode(completion.tokens))
                served.append(Served(user, turn + 1, completion))
            if not show:
                say(f"  {len(served)} requests done", end="\r")
    return served


def _batches(users: Sequence[str], teams: int, *, first_turn: bool) -> Iterator[tuple[int, Sequence[str]]]:
    """The members of each team in turn; the first member alone before the others have anything to share."""
    for team in range(min(teams, len(users))):
        members = users[team::teams]
        for batch in [members[:1], members[1:]] if first_turn else [members]:
            if batch:
                yield team, batch


class _Printer:
    """Shows one request's completion as it streams, after the end of its prompt; bold where there is a terminal."""

    def __init__(self, message: str) -> None:
        self.bytes = ByteStream()
        self.bold, self.plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        sys.stdout.write(message.strip("\n").replace("\n", "\n  ") + f"\n  {self.bold}")

    def __call__(self, index: int, token: int) -> None:
        if index == 0:
            sys.stdout.write(self.bytes.feed(token).replace("\n", "\n  "))
            sys.stdout.flush()

    def close(self) -> None:
        sys.stdout.write(f"{self.plain}\n")


def report(
    served: list[Served], plain: list[Served], stats: CacheStats, seconds: float, seconds_without: float
) -> dict:
    """Everything the demo has to say, as plain data."""
    usage = sum((s.completion.usage for s in served), Usage())
    different = [
        {"user": a.user, "turn": a.turn}
        for a, b in zip(served, plain, strict=True)
        if a.completion.tokens != b.completion.tokens
    ]
    return {
        "requests": [
            {
                "user": s.user,
                "turn": s.turn,
                **s.completion.usage.to_dict(),
                "time_to_first_token": s.completion.time_to_first_token,
                "time_to_first_token_without_cache": p.completion.time_to_first_token,
                "tokens_per_second": s.completion.tokens_per_second,
            }
            for s, p in zip(served, plain, strict=True)
        ],
        "usage": usage.to_dict(),
        "hit_rate": usage.cached_tokens / usage.prompt_tokens,
        "seconds": seconds,
        "seconds_without_cache": seconds_without,
        "pools": {
            name: {
                "peak_pages": pool.peak_in_use,
                "peak_pages_window_oblivious": pool.oblivious_peak,
                "bytes_per_page": pool.bytes_per_page,
                "cached_pages": pool.cached,
            }
            for name, pool in stats.pools.items()
        },
        "moved_bytes": [
            {"from": source.name.lower(), "to": target.name.lower(), "group": group, "bytes": count}
            for (source, target, group), count in stats.moved_bytes.items()
        ],
        "rebuilds": stats.num_rebuilds,
        "bills": [_billed(PRICES[name], usage) for name in BILLED_MODELS],
        "outputs_equal": not different,
        "different": different,
    }


def _billed(prices: object, usage: Usage) -> dict:
    with_cache, without = bill(usage, prices).total, bill_without_cache(usage, prices).total
    return {
        "prices_of": prices.model,
        "currency": prices.currency,
        "since": prices.since.isoformat(),
        "evidence": prices.evidence,
        "with_cache": str(with_cache),
        "without_cache": str(without),
        "ratio": float(without / with_cache) if with_cache else None,
    }


def format_report(result: dict) -> str:
    lines = ["", "request            prompt     hit  (device   host   disk)    miss  output  first token   (no cache)"]
    for r in result["requests"]:
        hit, miss = r["prompt_cache_hit_tokens"], r["prompt_cache_miss_tokens"]
        tiers = r["prompt_tokens_details"].get("cached_tokens_details", {})
        device, host, disk = (tiers.get(tier, 0) for tier in ("device", "host", "disk"))
        lines.append(
            f"{r['user']:<9} turn {r['turn']:<2} {r['prompt_tokens']:>8} {hit:>7}  {device:>7} {host:>6} {disk:>6}"
            f" {miss:>8} {r['completion_tokens']:>7}"
            f" {r['time_to_first_token'] * 1000:>9.0f} ms {r['time_to_first_token_without_cache'] * 1000:>9.0f} ms"
        )
    usage = result["usage"]
    lines += [
        f"hit rate {result['hit_rate']:.1%}: {usage['prompt_cache_hit_tokens']} of {usage['prompt_tokens']} prompt tokens; "
        f"session {result['seconds']:.1f} s, without the cache {result['seconds_without_cache']:.1f} s",
        _speeds(result["requests"]),
        "",
        "bytes moved between tiers          full        windowed",
        *_moves(result["moved_bytes"]),
        "",
        "pages at the peak       in use   window-oblivious",
    ]
    for name, pool in result["pools"].items():
        lines.append(f"  {name:<18} {pool['peak_pages']:>9} {pool['peak_pages_window_oblivious']:>18}")
    peak = sum(p["peak_pages"] * p["bytes_per_page"] for p in result["pools"].values())
    oblivious = sum(p["peak_pages_window_oblivious"] * p["bytes_per_page"] for p in result["pools"].values())
    lines += [
        f"  {'bytes':<18} {_mebibytes(peak):>9} {_mebibytes(oblivious):>18}   ({oblivious / peak:.1f}x)",
        "",
        "bill of the session        with cache      without   ratio   (prices of)",
    ]
    for b in result["bills"]:
        note = "" if b["evidence"] == "reported" else f", {b['evidence']}"
        lines.append(
            f"  {b['prices_of']:<20} {_money(b, 'with_cache')} {_money(b, 'without_cache')} {b['ratio']:>6.1f}x"
            f"   ({b['since']}{note})"
        )
    if result["outputs_equal"]:
        lines += [
            "",
            f"All {len(result['requests'])} completions with the cache equal those without it, token by token.",
        ]
    else:
        where = ", ".join(f"{d['user']} turn {d['turn']}" for d in result["different"])
        lines += ["", f"MISMATCH: completions with the cache differ from those without it: {where}"]
    return "\n".join(lines)


def _speeds(requests: Sequence[dict]) -> str:
    speeds = sorted(r["tokens_per_second"] for r in requests if r["tokens_per_second"])
    return f"decoding at {speeds[0]:.0f} to {speeds[-1]:.0f} tokens/s per request" if speeds else "nothing to time"


def _moves(moved: Sequence[dict]) -> list[str]:
    totals: dict[tuple[str, str], dict[str, int]] = {}
    for move in moved:
        kind = "full" if move["group"] == "full" else "windowed"
        per_kind = totals.setdefault((move["from"], move["to"]), {"full": 0, "windowed": 0})
        per_kind[kind] += move["bytes"]
    return [
        f"  {f'{source} -> {target}':<22} {_mebibytes(n['full']):>14} {_mebibytes(n['windowed']):>14}"
        for (source, target), n in totals.items()
    ]


def _money(billed: dict, key: str) -> str:
    return f"{billed['currency']} {Decimal(billed[key]):>9.6f}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _introduction(args: argparse.Namespace, config: ModelConfig, workload: Workload) -> str:
    groups = "; ".join(
        f"{len(g.layers)} layers {'with full attention' if g.window is None else f'with a window of {g.window}'}"
        for g in config.kv_groups()
    )
    return (
        f"model {args.model.name}: {groups}\n"
        f"repository {args.repo.resolve().name}: {len(workload.opening.encode())} bytes of shared context, "
        f"{args.users} users in {min(args.teams, args.users)} teams, {args.turns} turns"
    )


def _print(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def _silent(text: str, end: str = "\n") -> None:
    pass
