"""Planted mistakes in the kernels of csrc/cuda, and in those of csrc/cpu, to see that the tests find each of them.

    python tests/emulation/mutations.py [word in the name ...]

Works on a copy of the checkout in a temporary folder: there, one mistake after the other is made, the kernels are built
anew (with the emulator, or into the native library), and the mutation's tests must fail, by a report or by wrong numbers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attention_mutations import ATTENTION_MUTATIONS
from sm90_decode_mutations import SM90_DECODE_MUTATIONS
from sm90_prefill_mutations import SM90_PREFILL_MUTATIONS
from sm90_swa_prefill_mutations import SM90_SWA_PREFILL_MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
CUDA = "csrc/cuda"
PAGES = ("tests/emulation/test_page_kernels.py", "tests/ops/test_pages.py")
ATTENTION = tuple(
    f"tests/{name}.py"
    for name in (
        "emulation/test_attention_kernels",
        "ops/test_attention",
        "ops/test_invariance",
        "ops/test_error_bounds",
        "emulation/test_attention_counters",
    )
)
SM90_SWA_PREFILL = ("tests/emulation/test_sm90_swa_prefill.py", "tests/ops/test_attention.py")
SM90_DECODE = ("tests/emulation/test_sm90_decode.py", "tests/ops/test_attention.py")
SM90_PREFILL = (
    "tests/emulation/test_sm90_prefill.py",
    "tests/ops/test_attention.py",
    "tests/ops/test_error_bounds.py",
)


@dataclass(frozen=True)
class Mutation:
    """`old`, which must occur exactly once in `file`, becomes `new`; one of `tests` must fail, where it runs the kernels of
    the file: in the emulator, or on the backend `cpu`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = PAGES

    @property
    def backend(self) -> str:
        return "emulat" if self.file.startswith(CUDA) else "cpu"


APPEND, COPY, MERGE = (f"{CUDA}/kernels/smxx_{op}.cuh" for op in ("append_kv", "copy_pages", "merge_states"))
HOST_APPEND, HOST_COPY, HOST_MERGE = (file.removesuffix("h") for file in (APPEND, COPY, MERGE))
FP8, ELEMENT, POOL = f"{CUDA}/tile/fp8.cuh", f"{CUDA}/tile/element.cuh", f"{CUDA}/attention/page_pool.cuh"

CPU_ATTENTION, BOUNDS = "csrc/cpu/isa/attention.cpp", ("tests/ops/test_error_bounds.py",)

MUTATIONS = (
    Mutation(
        "cpu: weights rounded twice",
        CPU_ATTENTION,
        "    Product::pack(scores, kTileKeys, weights);",
        "    for (int64_t j = 0; j < kTileKeys; ++j)\n"
        "      scores[j] = from_bfloat16(to_bfloat16(scores[j] * 1.5f)) / 1.5f;\n"
        "    Product::pack(scores, kTileKeys, weights);",
        BOUNDS,
    ),
    Mutation(
        "cpu: lse off by 1e-4", CPU_ATTENTION, "+ std::log(total_[row]);", "+ std::log(total_[row]) + 1e-4f;", BOUNDS
    ),
    Mutation("cpu: sink counted twice", CPU_ATTENTION, "p_.sinks ? std::exp(", "p_.sinks ? 2 * std::exp(", BOUNDS),
    Mutation(
        "cpu: window narrower by one", CPU_ATTENTION, "position - p_.window + 1)", "position - p_.window + 2)", BOUNDS
    ),
    *(Mutation(name, f"{CUDA}/{file}", old, new, ATTENTION) for name, file, old, new in ATTENTION_MUTATIONS),
    *(
        Mutation(name, f"{CUDA}/{file}", old, new, SM90_SWA_PREFILL)
        for name, file, old, new in SM90_SWA_PREFILL_MUTATIONS
    ),
    *(Mutation(name, f"{CUDA}/{file}", old, new, SM90_DECODE) for name, file, old, new in SM90_DECODE_MUTATIONS),
    *(Mutation(name, f"{CUDA}/{file}", old, new, SM90_PREFILL) for name, file, old, new in SM90_PREFILL_MUTATIONS),
    Mutation("append: negative slots are written", APPEND, "mapped < 0 ||", "mapped < -7 ||"),
    Mutation("append: no upper bound of slots", APPEND, "page >= int64_t(pool.num_device_pages)", "page > (1LL << 40)"),
    Mutation("append: only device pages", APPEND, " + pool.num_host_pages", ""),
    Mutation("append: keys by the element", HOST_APPEND, "wide = {", "wide = {false && "),
    Mutation("append: values are never stored", APPEND, "unsigned(p.num_tokens), 2)", "unsigned(p.num_tokens), 1)"),
    Mutation("append: key's stride for values", APPEND, ": p.value_head_stride", ": p.key_head_stride"),
    Mutation("append: one scale for all heads", APPEND, "* num_heads + head]", "* num_heads]"),
    Mutation("append: page index in 32 bits", POOL, "pool.device + page_id *", "pool.device + int(page_id) * (int)"),
    Mutation(
        "pool: host pages with device strides", POOL, "slot * pool.host_slot_stride", "slot * pool.device_slot_stride"
    ),
    Mutation("pool: the first host page is a device page", POOL, "page_id < pool", "page_id <= pool"),
    Mutation("append: host alignment not looked at", HOST_APPEND, "count * size_of(to), pool.host", "1, pool.host"),
    Mutation("append: token alignment not looked at", HOST_APPEND, "count * size_of(from), rows", "1, rows"),
    Mutation(
        "append: device alignment not looked at", HOST_APPEND, "count * size_of(to), pool.device", "1, pool.device"
    ),
    Mutation("copy: source alignment not looked at", HOST_COPY, "all_aligned(bytes, p.src", "all_aligned(1, p.src"),
    Mutation(
        "scaled copy: source alignment not looked at", HOST_COPY, "count * size_of(p.src_dtype), p.src", "1, p.src"
    ),
    Mutation(
        "scaled copy: target alignment not looked at", HOST_COPY, "count * size_of(p.dst_dtype), p.dst", "1, p.dst"
    ),
    Mutation("fp8: half rounds up", FP8, "0x7ffff + (size >> 20 & 1)", "0x80000"),
    Mutation("fp8: no saturation", FP8, "if (size > kLargest) size = kLargest;", ""),
    Mutation("fp8: NaN saturates", FP8, "if (size > kInfinity) return sign | 0x7f;", ""),
    Mutation(
        "fp8: subnormals are rounded like normals", FP8, "size < kSmallestNormal", "size < (kSmallestNormal >> 1)"
    ),
    Mutation("fp8: decoding loses the sign", FP8, "(byte & 0x80) << 24 |", ""),
    Mutation("fp8: decoding makes NaN a number", FP8, "if ((byte & 0x7f) == 0x7f) return NAN;", ""),
    Mutation("element: the scale multiplies", ELEMENT, "x /= scale", "x *= scale"),
    Mutation("copy: negative sources are read", COPY, "from < 0 || ", ""),
    Mutation("copy: negative targets are written", COPY, "to < 0 || ", ""),
    Mutation("copy: no upper bound of sources", COPY, "from >= p.num_src_pages || ", ""),
    Mutation("copy: no upper bound of targets", COPY, " || to >= p.num_dst_pages", ""),
    Mutation("copy: target pages by the source's stride", COPY, "to * p.dst_stride[1]", "to * p.src_stride[1]"),
    Mutation("copy: only the first chunk of a page", COPY, "int(piece % chunks) * kThreads", "0 * kThreads"),
    Mutation(
        "copy: one unit too many is read",
        COPY,
        "if (unit >= units) break;\n      const int row = unit / rows.units;",
        "if (unit > units) break;\n      const int row = unit / rows.units;",
    ),
    Mutation(
        "copy: scales of the source page's neighbour",
        COPY,
        "from * p.src_scale_stride[1]",
        "to * p.src_scale_stride[1]",
    ),
    Mutation(
        "copy: scales do not come along", COPY, "page.dst_scale && piece", "page.dst_scale && p.dim == 0 && piece"
    ),
    Mutation("copy: rows merged though the target has gaps", HOST_COPY, " || rows.dst_stride[i] != row_bytes", ""),
    Mutation("copy: rows merged though the source has gaps", HOST_COPY, "rows.src_stride[i] != row_bytes || ", ""),
    Mutation("copy: target alignment not looked at", HOST_COPY, "all_aligned(bytes, p.dst,", "all_aligned(1, p.dst,"),
    Mutation(
        "quantize: no barrier before the maximum is read",
        COPY,
        "warp_max[ptx::warp_id()] = x;\n  ptx::sync_threads();",
        "warp_max[ptx::warp_id()] = x;",
    ),
    Mutation(
        "quantize: no barrier after the maximum is read", COPY, "  ptx::sync_threads();\n  return x;", "  return x;"
    ),
    Mutation("quantize: the first warp's maximum", COPY, "warp < kThreads / 32; ++warp", "warp < 1; ++warp"),
    Mutation("quantize: magnitudes with their sign", COPY, "fabsf(From::get(in, i))", "From::get(in, i)"),
    Mutation("quantize: zero pages divide by zero", COPY, "kSmallestScale = 1e-12f", "kSmallestScale = 0.f"),
    Mutation("quantize: head 0 only", COPY, "dst_scale[head] = scale;", "dst_scale[0] = scale;"),
    Mutation("quantize: no room for the maxima", COPY, "int64_t(sizeof(SharedStorage)) + page_bytes", "page_bytes"),
    Mutation("merge: empty partials are read", MERGE, "if (weights.reads_b) b =", "b ="),
    Mutation("merge: the sink counts in lse", MERGE, "logf(a + b)", "logf(denominator)"),
    Mutation("merge: no sink", MERGE, "denominator += expf", "denominator += 0.f * expf"),
    Mutation("merge: the row's own sink", MERGE, "sink[head]", "sink[0]"),
    Mutation("merge: +inf is a partial like others", MERGE, "lse == INFINITY ? -INFINITY : lse", "lse"),
    Mutation("merge: b's heads lie as a's", MERGE, "head * p.b.out_head_stride", "head * p.a.out_head_stride"),
    Mutation("merge: lse taken for contiguous", MERGE, "head * part.lse_head_stride", "head"),
    Mutation("merge: weights without the maximum", MERGE, "expf(lse_b - largest)", "expf(lse_b)"),
    Mutation(
        "merge: alignment of out not looked at", HOST_MERGE, "p.out, {int64_t(p.dim) * size_of(p.dtype)}", "nullptr, {}"
    ),
    Mutation("merge: alignment of b not looked at", HOST_MERGE, "is_wide(p.a) && is_wide(p.b) &&", "is_wide(p.a) &&"),
)


class Copy:
    """A copy of the checkout in which mistakes are made."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("csrc", "swa_attn", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def run_tests(self, tests: tuple[str, ...], backend: str = "emulat") -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", backend, *tests]
        if backend == "cpu":
            self._run([sys.executable, "csrc/build.py", "cpu"]).check_returncode()
        return self._run(command)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def survives(self, mutation: Mutation) -> str | None:
        """None when a test failed, else what happened instead."""
        file = self.folder / mutation.file
        original = file.read_text()
        count = original.count(mutation.old)
        if count != 1:
            return f"{mutation.old!r} occurs {count} times in {mutation.file}"
        file.write_text(original.replace(mutation.old, mutation.new))
        try:
            result = self.run_tests(mutation.tests, mutation.backend)
        finally:
            file.write_text(original)
        if "BuildError" in result.stdout:
            return "it does not compile:\n" + result.stdout[-3000:]
        return None if result.returncode == 1 else f"no test failed:\n{result.stdout[-500:]}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for tests, backend in {(m.tests, m.backend) for m in chosen}:
            result = copy.run_tests(tests, backend)
            if result.returncode:
                print("the tests fail without any mutation:\n" + result.stdout[-3000:])
                return 1
        for mutation in chosen:
            problem = copy.survives(mutation)
            failures += problem is not None
            print(f"{'killed  ' if problem is None else 'SURVIVED'} {mutation.name}", flush=True)
            if problem:
                print(problem)
    print(f"{len(chosen) - failures} of {len(chosen)} killed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
