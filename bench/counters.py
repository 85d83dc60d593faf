"""What each CUDA kernel would ask of a card, counted exactly in the emulator, beside the least the case needs.

    python bench/counters.py [--json bench/results/cuda_counters.json] [--case P1] [--compute-capability 90]

Needs a checkout, a C++ compiler, ninja and pybind11; no GPU. Attention cases are one KV head of the model's layer, on the
share of the SMs that the other heads leave: kernels treat heads alike, so ratios are those of the whole layer. No speed
follows.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from swa_attn.testing import AttentionCase, emulated_backend
from swa_attn.testing.emulator import GLOBAL_READS, GLOBAL_WRITES
from swa_attn.testing.figures import Figures, measure

MIMO = AttentionCase(
    head_dim=192,
    v_head_dim=128,
    num_q_heads=8,
    num_kv_heads=1,
    window=128,
    page_size=64,
    sinks=True,
    dtype=torch.bfloat16,
)
MIMO_FULL = replace(MIMO, num_q_heads=16, window=None, sinks=False)
GPT_OSS = replace(MIMO, head_dim=64, v_head_dim=64)
GEMMA = replace(MIMO, head_dim=256, v_head_dim=256, num_q_heads=2, window=1024, sinks=False)
MISTRAL = replace(MIMO, head_dim=128, v_head_dim=128, num_q_heads=4, window=4096, sinks=False)
SWA_256 = replace(MISTRAL, num_q_heads=8, window=256)
FP8 = torch.float8_e4m3fn
SMS = 132
DECODES = tuple((1, k) for k in (129, 1000, 517, 128, 300, 2048, 777, 4096))
DEEP = tuple((1, k) for k in (8192, 5000))


def queries(q_len: int) -> tuple[tuple[int, int], ...]:
    """16 sequences: with 8 KV heads, no SM is idle."""
    return tuple((q_len, k) for _, k in DECODES) * 2


# name -> (op, case, SMs that this head has)
CASES = {
    "P1 MiMo SWA prefill 1x8192, page 64": ("prefill", replace(MIMO, seqs=((8192, 8192),)), SMS // 8),
    "P1 the same, page 16": ("prefill", replace(MIMO, seqs=((8192, 8192),), page_size=16), SMS // 8),
    "P1 the same, all pages on the host": ("prefill", replace(MIMO, seqs=((8192, 8192),), host=1.0), SMS // 8),
    "P2 MiMo SWA chunk 1x2048 after 4k": ("prefill", replace(MIMO, seqs=((2048, 6144),)), SMS // 8),
    "P4 MiMo full prefill 1x2048": ("prefill", replace(MIMO_FULL, seqs=((2048, 2048),)), SMS // 4),
    "P5 gpt-oss SWA prefill 1x8192": ("prefill", replace(GPT_OSS, seqs=((8192, 8192),)), SMS // 8),
    "P6 Gemma-3-12B SWA prefill 1x4096": ("prefill", replace(GEMMA, seqs=((4096, 4096),)), SMS // 8),
    "P8 Mistral SWA prefill 512 after 5.6k": ("prefill", replace(MISTRAL, seqs=((512, 6144),)), SMS // 8),
    "W 256, 128/128, prefill 1x4096": ("prefill", replace(SWA_256, seqs=((4096, 4096),)), SMS // 8),
    "D1 MiMo SWA decode, 8 sequences, page 64": ("decode", replace(MIMO, seqs=DECODES), SMS),
    "D1 the same, page 16": ("decode", replace(MIMO, seqs=DECODES, page_size=16), SMS),
    "D1 the same, all pages on the host": ("decode", replace(MIMO, seqs=DECODES, host=1.0), SMS),
    "D2 MiMo SWA decode, 16 x 4 query tokens": ("decode", replace(MIMO, seqs=queries(4)), SMS // 8),
    "D2 the same, 16 x 8 query tokens": ("decode", replace(MIMO, seqs=queries(8)), SMS // 8),
    "D3 MiMo full decode, splits": ("decode", replace(MIMO_FULL, seqs=DEEP), SMS),
    "D4 gpt-oss SWA decode": ("decode", replace(GPT_OSS, seqs=DECODES), SMS),
    "D5 Gemma-3-12B SWA decode": ("decode", replace(GEMMA, seqs=DECODES), SMS),
    "D7 MiMo SWA decode, float8 pages": ("decode", replace(MIMO, seqs=DECODES, cache_dtype=FP8), SMS),
}
COLUMNS = ("kv_ratio", "kv_sector_ratio", "visible_share", "query_ratio", "output_ratio")


def row(figures: Figures) -> dict[str, float | int]:
    counters = figures.counters
    return {
        "kv_bytes": figures.kv_bytes,
        "least_kv_bytes": figures.least_kv_bytes,
        **{name: round(getattr(figures, name), 4) for name in COLUMNS},
        "host_bytes": counters.bytes_read("host_pages"),
        "table_bytes": counters.bytes_read("tables"),
        "workspace_bytes": counters.bytes_read("workspace") + counters.bytes_written("workspace"),
        "bank_conflicts": counters.bank_conflicts(),
        "mma": counters.tallies["mma"],
        "wgmma": counters.tallies["wgmma"],
        "ex2_per_pair": round(counters.tallies["ex2"] / (figures.pairs * figures.case.num_q_heads), 3),
        "barriers": counters.tallies["barriers"],
    }


def append_kv() -> int:
    """A chunk of 64 tokens of MiMo's windowed layer into pages of 64. Returns the least bytes read and written."""
    key, value = (torch.randn(64, 8, dim).bfloat16() for dim in (192, 128))
    pools = [torch.zeros(3, 64, 8, dim, dtype=torch.bfloat16) for dim in (192, 128)]
    emulated_backend.append_kv(key, value, *pools, torch.arange(50, 114))
    return 2 * 2 * (key.numel() + value.numel()) + 8 * 64


def copy_pages(float8: bool) -> int:
    """Two pages of four layers from the device to the host, as they are or as scaled float8."""
    src = torch.randn(4, 3, 64, 8, 128).bfloat16()
    dst = torch.zeros(4, 5, 64, 8, 128, dtype=FP8 if float8 else torch.bfloat16)
    scale = torch.zeros(4, 5, 8) if float8 else None
    emulated_backend.copy_pages(src, dst, torch.tensor([2, 0]), torch.tensor([1, 4]), dst_scale=scale)
    elements = 4 * 2 * 64 * 8 * 128
    return elements * (3 if float8 else 4) + 2 * 2 * 8 + (4 * 2 * 8 * 4 if float8 else 0)


def merge_states() -> int:
    """Two partials of 64 rows and 64 heads of 128."""
    outs = [torch.randn(64, 64, 128).bfloat16() for _ in range(3)]
    lses = [torch.randn(64, 64) for _ in range(3)]
    emulated_backend.merge_states(outs[0], lses[0], outs[1], lses[1], sinks=None, out=outs[2], lse=lses[2])
    return 3 * (outs[0].numel() * 2 + lses[0].numel() * 4)


PAGE_CASES = {
    "append_kv, 64 tokens": append_kv,
    "copy_pages, 2 pages x 4 layers": lambda: copy_pages(float8=False),
    "copy_pages to float8": lambda: copy_pages(float8=True),
    "merge_states, 64 x 64 rows": merge_states,
}


def page_row(case: Callable[[], int]) -> dict[str, float | int]:
    least = case()
    counters = emulated_backend.last_run.counters
    moved = counters.traffic(ops=(*GLOBAL_READS, *GLOBAL_WRITES))
    return {
        "bytes": moved.bytes,
        "least_bytes": least,
        "ratio": round(moved.bytes / least, 4),
        "sector_ratio": round(moved.sectors / moved.min_sectors, 4),
        "bytes_per_lane": round(moved.bytes / moved.lanes, 2),
        "bank_conflicts": counters.bank_conflicts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--compute-capability", type=int, default=80, help="of the card: 90 for Hopper's kernels")
    arguments = parser.parse_args()
    chosen = {name: case for name, case in CASES.items() if arguments.case.lower() in name.lower()}
    chosen_pages = {name: case for name, case in PAGE_CASES.items() if arguments.case.lower() in name.lower()}
    if not chosen and not chosen_pages:
        parser.error(f"--case: no case is called {arguments.case!r}; there are: {', '.join([*CASES, *PAGE_CASES])}")
    results: dict[str, dict] = {}
    if chosen_pages:
        print(f"{'case':42}{'bytes/least':>12}{'sectors':>8}{'per lane':>9}{'conflicts':>10}")
    for name, page_case in chosen_pages.items():
        r = results[name] = page_row(page_case)
        print(
            f"{name:42}{r['ratio']:12.3f}{r['sector_ratio']:8.2f}{r['bytes_per_lane']:9.1f}{r['bank_conflicts']:10}",
            flush=True,
        )
    if chosen:
        print(
            f"{'case':42}{'KV/least':>9}{'sectors':>8}{'visible':>8}{'Q':>6}{'out':>6}{'conflicts':>10}{'ex2/pair':>9}"
        )
    for name, (op, case, num_sms) in chosen.items():
        start = time.time()
        with emulated_backend.settings(compute_capability=arguments.compute_capability):
            r = results[name] = row(measure(op, case, num_sms=num_sms))
        print(
            f"{name:42}{r['kv_ratio']:9.3f}{r['kv_sector_ratio']:8.2f}{r['visible_share']:8.3f}{r['query_ratio']:6.2f}"
            f"{r['output_ratio']:6.2f}{r['bank_conflicts']:10}{r['ex2_per_pair']:9.2f}   ({time.time() - start:.0f} s)",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
