"""The CPU backend against gathering the visible pages and calling PyTorch's scaled_dot_product_attention.

    python bench/cpu_ops.py [--json FILE] [--rounds N]

Windowed layers of MiMo-V2, gpt-oss and Gemma-3-12B: prefill of one sequence of 2048 tokens, decode of 16 sequences at 4096
tokens. Ours and every form of the peer run interleaved in one process; the table has medians. SDPA has no sinks, so the
peer is spared that work; its fastest form counts. A case whose result is wrong is an error, not a number.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import swa_attn
from swa_attn import native

# kind, sequences, new tokens of each, context
KINDS = (("prefill", 1, 2048, 2048), ("decode", 16, 1, 4096))


@dataclass(frozen=True)
class Layer:
    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int
    sinks: bool


LAYERS = (
    Layer("MiMo-V2", 64, 8, 192, 128, 128, True),
    Layer("gpt-oss", 64, 8, 64, 64, 128, True),
    Layer("Gemma-3-12B", 16, 8, 256, 256, 1024, False),
)


@dataclass
class Case:
    layer: Layer
    kind: str  # prefill | decode
    dtype: torch.dtype
    page_size: int
    num_seqs: int
    q_len: int
    context: int

    def __post_init__(self) -> None:
        layer = self.layer
        generator = torch.Generator().manual_seed(0)
        pages_per_seq = -(-self.context // self.page_size)
        num_pages = self.num_seqs * pages_per_seq

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        self.k_cache = randn(num_pages, self.page_size, layer.num_kv_heads, layer.head_dim)
        self.v_cache = randn(num_pages, self.page_size, layer.num_kv_heads, layer.v_head_dim)
        order = torch.randperm(num_pages, generator=generator)
        self.block_table = order.view(self.num_seqs, pages_per_seq).int()
        self.seqlens_k = torch.full((self.num_seqs,), self.context, dtype=torch.int32)
        self.cu_seqlens_q = torch.arange(self.num_seqs + 1, dtype=torch.int32) * self.q_len
        self.q = randn(self.num_seqs * self.q_len, layer.num_q_heads, layer.head_dim)
        self.sinks = torch.randn(layer.num_q_heads, generator=generator) if layer.sinks else None

    def ours(self, sinks: Tensor | None = None) -> Tensor:
        options = {"window": self.layer.window, "sinks": sinks}
        if self.kind == "decode":
            q = self.q.unflatten(0, (self.num_seqs, self.q_len))
            return swa_attn.decode(q, self.k_cache, self.v_cache, self.block_table, self.seqlens_k, **options)[0]
        where = self.k_cache, self.v_cache, self.block_table, self.seqlens_k, self.cu_seqlens_q
        return swa_attn.prefill(self.q, *where, **options)[0]

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs."""
        first = self.context - self.q_len
        return self.num_seqs * sum(min(self.layer.window, first + i + 1) for i in range(self.q_len))

    @property
    def flops(self) -> int:
        return 2 * self.pairs * self.layer.num_q_heads * (self.layer.head_dim + self.layer.v_head_dim)

    @property
    def bytes(self) -> int:
        """Q and O once, and each visible K and V once."""
        layer, dims = self.layer, self.layer.head_dim + self.layer.v_head_dim
        keys = min(self.context, layer.window + self.q_len - 1)
        return self.num_seqs * dims * self.dtype.itemsize * (keys * layer.num_kv_heads + self.q_len * layer.num_q_heads)


def gather(case: Case, first_key: int) -> tuple[Tensor, Tensor, int]:
    """K and V `[num_seqs, Hkv, keys, dim]` of the pages from the one with `first_key` on, and the first position."""
    page = first_key // case.page_size
    table = case.block_table[:, page:].flatten()

    def take(cache: Tensor) -> Tensor:
        rows = cache.index_select(0, table).view(case.num_seqs, -1, *cache.shape[2:])
        return rows[:, : case.context - page * case.page_size].transpose(1, 2)

    return take(case.k_cache), take(case.v_cache), page * case.page_size


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, form: str) -> Tensor:
    """SDPA in one of its forms. `expand` repeats KV heads, `gqa` lets SDPA do it, `pad` widens V to K's head dim."""
    v_head_dim = v.shape[-1]
    if "pad" in form:
        v = F.pad(v, (0, k.shape[-1] - v_head_dim))
    if "expand" in form:
        group = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa="gqa" in form)[..., :v_head_dim]


def masked(case: Case, form: str) -> Tensor:
    """All queries against all gathered keys, under a band mask."""
    k, v, start = gather(case, max(0, case.context - case.q_len - case.layer.window + 1))
    positions = torch.arange(case.context - case.q_len, case.context)[:, None]
    distance = positions - torch.arange(start, case.context)[None, :]
    mask = (distance >= 0) & (distance < case.layer.window)
    q = case.q.unflatten(0, (case.num_seqs, case.q_len)).transpose(1, 2)
    return attention(q, k, v, mask, form).transpose(1, 2).reshape(-1, *case.q.shape[1:2], case.layer.v_head_dim)


def banded(case: Case, form: str) -> Tensor:
    """One sequence from its start: blocks of W queries against their own and the previous W keys, as a batch."""
    window = case.layer.window
    k, v, _ = gather(case, 0)
    blocks = case.context // window

    def with_previous(x: Tensor) -> Tensor:
        x = x[0].unflatten(1, (blocks, window)).transpose(0, 1)  # [blocks, Hkv, W, dim]
        return torch.cat([torch.cat([torch.zeros_like(x[:1]), x[:-1]]), x], dim=2)

    i, j = torch.arange(window)[:, None] + window, torch.arange(2 * window)[None, :]
    mask = ((i >= j) & (i - j < window)).expand(blocks, 1, -1, -1).clone()
    mask[0, :, :, :window] = False
    q = case.q.unflatten(0, (blocks, window)).transpose(1, 2)
    return attention(q, with_previous(k), with_previous(v), mask, form).transpose(1, 2).flatten(0, 1)


def peers(case: Case) -> dict[str, Callable[[], Tensor]]:
    forms = ["gqa", "expand"]
    if case.layer.head_dim != case.layer.v_head_dim:
        forms += ["gqa+pad", "expand+pad"]
    found = {f"masked {f}": lambda f=f: masked(case, f) for f in forms}
    if case.kind == "prefill":
        found |= {f"banded {f}": lambda f=f: banded(case, f) for f in forms}
    return found


def check(case: Case, peer: Callable[[], Tensor]) -> None:
    """Ours without sinks against a peer, both against each other's rounding; raises if they disagree."""
    expected = peer().reshape(-1).float()
    got = case.ours(None).reshape(-1).float()
    error = (got - expected).norm() / expected.norm()
    limit = 1e-2 if case.dtype == torch.bfloat16 else 1e-5
    if not error < limit:
        raise AssertionError(f"{case.kind} {case.layer.name}: relative error {error:.2e} against SDPA, allowed {limit}")


def median_times(functions: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Milliseconds per call, interleaved: every round runs each function once."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t[1:]) * 1000 for name, t in times.items()}


def ceilings() -> dict[str, float]:
    """What this machine reaches: GEMM in GFLOP/s per dtype, and a large copy in GB/s."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        times = median_times({"gemm": lambda a=a, b=b: a @ b}, 9)
        found[f"gemm_{str(dtype).removeprefix('torch.')}_gflops"] = 2 * 2048**3 / times["gemm"] / 1e6
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)
    found["copy_gbs"] = 2 * source.nbytes / median_times({"copy": lambda: target.copy_(source)}, 9)["copy"] / 1e6
    return found


def run(case: Case, rounds: int) -> dict:
    candidates = peers(case)
    check(case, next(iter(candidates.values())))
    # Forms that are far behind in a first look are not worth the time of all rounds.
    first = median_times(candidates, 2)
    close = {name: f for name, f in candidates.items() if first[name] < 3 * min(first.values())}
    times = median_times({"ours": lambda: case.ours(case.sinks), **close}, rounds)
    ours = times.pop("ours")
    best = min(times, key=times.get)
    return {
        "layer": case.layer.name,
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "page_size": case.page_size,
        "ours_ms": ours,
        "peer_ms": times[best],
        "peer_form": best,
        "ratio": times[best] / ours,
        "gflops": case.flops / ours / 1e6,
        "gbs": case.bytes / ours / 1e6,
        "geometry": asdict(case.layer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kind", choices=[kind for kind, *_ in KINDS])
    args = parser.parse_args()
    limits = ceilings()
    level = native.cpu_level()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()} {level}; ", end="")
    print(", ".join(f"{name} {value:.0f}" for name, value in limits.items()))
    print(f"{'case':<38} {'ours ms':>8} {'peer ms':>8} {'ratio':>6} {'GFLOP/s':>8} {'GB/s':>6}  peer")
    results = []
    with torch.inference_mode(), swa_attn.use_backend("cpu"):
        for kind, num_seqs, q_len, context in KINDS:
            if args.kind not in (None, kind):
                continue
            for layer in LAYERS:
                for dtype in (torch.bfloat16, torch.float32):
                    for page_size in (16, 64):
                        r = run(Case(layer, kind, dtype, page_size, num_seqs, q_len, context), args.rounds)
                        results.append(r)
                        name = f"{kind} {layer.name} {r['dtype']} page {page_size}"
                        print(
                            f"{name:<38} {r['ours_ms']:>8.3f} {r['peer_ms']:>8.3f} {r['ratio']:>5.2f}x"
                            f" {r['gflops']:>8.0f} {r['gbs']:>6.1f}  {r['peer_form']}",
                            flush=True,
                        )
    if args.json:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "level": level, "machine": _machine()}
        args.json.write_text(json.dumps({**facts, "ceilings": limits, "results": results}, indent=2) + "\n")


def _machine() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
