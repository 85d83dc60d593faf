"""The disk tier against fio on the same disk, and against a file per object.

    python bench/store.py [--directory DIR] [--json FILE] [--rounds N] [--megabytes M] [--only NAME] [--recovery]

Puts and gets of records of 2, 4 and 8 MiB. Every round runs everything once, in an order drawn anew, for a disk shared with
others is never the same twice; the table has medians over the rounds, and as ratio the median of the ratios to fio within
rounds. All have the same number of operations in flight, the time of writing includes the final fdatasync, and reads are
cold and in random order. fio runs with two engines, psync (threads) and io_uring; the one that is better over all rounds
counts. Without fio, a loop of O_DIRECT calls from a pool of threads stands in. What the store reads is compared with what
was written, outside the measured time; it verifies its checksums, and in one of its rows its signatures, within it.

Caches of other projects take part where their packages can be imported: SGLang's file backend, called from the same number
of threads, and LMCache's file adapter with O_DIRECT, run and timed by `lmcache bench l2` (which does not sync).

--recovery measures how long opening takes: a sparse directory of many slots with a header in each.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from swa_attn.kvcache.store import SlabOptions, SlabStore, aligned_empty
from swa_attn.kvcache.store.buffers import ALIGNMENT
from swa_attn.kvcache.store.file_io import FileIO
from swa_attn.kvcache.store.record import Header, Space, checksum

MIB = 1 << 20
WAYS = ("write", "read")
SIZES = (2 * MIB, 4 * MIB, 8 * MIB)
IN_FLIGHT = 8
Rates = dict[str, float]  # "write", "read": MB/s; "write_cpu": CPU seconds per GB


def rest() -> None:
    """Before everything that is timed: disks behind a rate limit lend speed to whoever comes after a pause."""
    time.sleep(1.0)


def timed(work: Callable[[], None], nbytes: int) -> tuple[float, float]:
    """MB/s and CPU seconds per GB."""
    rest()
    cpu, start = time.process_time(), time.perf_counter()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return nbytes / seconds / 1e6, cpu_seconds / nbytes * 1e9


def rates(write: Callable[[], None], read: Callable[[], None], nbytes: int) -> Rates:
    (write_rate, write_cpu), (read_rate, read_cpu) = timed(write, nbytes), timed(read, nbytes)
    return {"write": write_rate, "read": read_rate, "write_cpu": write_cpu, "read_cpu": read_cpu}


class Payloads:
    """Records with random contents, each made different by its number, and buffers to read them into."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count
        self.nbytes = size * count
        self.sources = [aligned_empty(size) for _ in range(IN_FLIGHT)]
        rng = np.random.default_rng(0)
        for source in self.sources:
            source[:] = rng.integers(0, 256, size, dtype=np.uint8)
        self.targets = [aligned_empty(size) for _ in range(2 * IN_FLIGHT)]

    def source(self, i: int) -> np.ndarray:
        return self.sources[i % len(self.sources)]

    def order(self) -> list[int]:
        return random.sample(range(self.count), self.count)

    def check(self, i: int, data: np.ndarray) -> None:
        if not np.array_equal(data, self.source(i)):
            raise AssertionError(f"record {i} came back different")


def key(i: int) -> bytes:
    return i.to_bytes(16, "little")


def slab(directory: Path, payloads: Payloads, mac_key: bytes | None = None) -> Rates:
    stride = payloads.size + ALIGNMENT
    segment = min(1 << 30, ALIGNMENT + stride * payloads.count)
    capacity = segment * -(-payloads.count // ((segment - ALIGNMENT) // stride))
    writers = {"workers": IN_FLIGHT, "max_writers": IN_FLIGHT}
    options = SlabOptions(capacity, segment, (payloads.size,), **writers, mac_key=mac_key)
    with SlabStore(directory, options, namespace=b"bench") as store:

        def write() -> None:
            waiting = []
            for i in range(payloads.count):
                waiting.append(store.put(key(i), [payloads.source(i)]))
                if len(waiting) >= 2 * IN_FLIGHT and not waiting.pop(0).result():
                    raise AssertionError(store.stats())
            if not all(future.result() for future in waiting):
                raise AssertionError(store.stats())
            for file in directory.iterdir():
                sync(file)

        def read(check: bool = False) -> None:
            waiting = []
            free = list(payloads.targets)

            def finish() -> None:
                i, target, future = waiting.pop(0)
                if not future.result():
                    raise AssertionError(store.stats())
                if check:
                    payloads.check(i, target)
                free.append(target)

            for i in payloads.order():
                if not free:
                    finish()
                target = free.pop()
                waiting.append((i, target, store.get(key(i), [target])))
            while waiting:
                finish()

        found = rates(write, read, payloads.nbytes)
        read(check=True)
        return found


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.close(fd)


def drop_cache(directory: Path) -> None:
    for file in directory.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def file_per_object(directory: Path, payloads: Payloads, *, direct: bool) -> Rates:
    """Written under another name and renamed, as caches in files do. No checksum."""
    directory.mkdir()
    flag = os.O_DIRECT if direct else 0

    def write_one(i: int) -> None:
        path = directory / f"{i}.bin"
        fd = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | flag, 0o600)
        os.write(fd, payloads.source(i))
        os.fdatasync(fd)
        os.close(fd)
        path.with_suffix(".tmp").rename(path)

    def read_one(i: int) -> None:
        fd = os.open(directory / f"{i}.bin", os.O_RDONLY | flag)
        os.preadv(fd, [payloads.targets[i % len(payloads.targets)]], 0)
        os.close(fd)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        write, write_cpu = timed(lambda: list(pool.map(write_one, range(payloads.count))), payloads.nbytes)
        drop_cache(directory)
        read, read_cpu = timed(lambda: list(pool.map(read_one, payloads.order())), payloads.nbytes)
    return {"write": write, "read": read, "write_cpu": write_cpu, "read_cpu": read_cpu}


def fio(directory: Path, payloads: Payloads, *, engine: str) -> Rates:
    """On a preallocated file, past the page cache."""
    directory.mkdir()
    jobs, depth = (IN_FLIGHT, 1) if engine == "psync" else (1, IN_FLIGHT)
    size = payloads.nbytes // jobs
    common = [
        "fio", "--name=x", f"--filename={directory / 'file'}", f"--bs={payloads.size}", "--direct=1", f"--size={size}",
        f"--ioengine={engine}", f"--iodepth={depth}", "--thread", f"--numjobs={jobs}", f"--offset_increment={size}",
        "--group_reporting", "--fallocate=posix", "--output-format=json",
    ]  # fmt: skip
    found = {}
    for way, arguments in (("write", ["--rw=write", "--end_fsync=1"]), ("read", ["--rw=randread"])):
        rest()
        done = subprocess.run([*common, *arguments], capture_output=True, text=True, check=True)
        report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        found[way] = report[way]["bw_bytes"] / 1e6
    return found


def io_uring_works() -> bool:
    """Containers often forbid it."""
    with tempfile.NamedTemporaryFile() as file:
        command = ["fio", "--name=x", f"--filename={file.name}", "--size=4k", "--rw=read", "--ioengine=io_uring"]
        return subprocess.run(command, capture_output=True).returncode == 0


def direct_loop(directory: Path, payloads: Payloads) -> Rates:
    """The system calls of the store from as many threads, with nothing around them."""
    directory.mkdir()
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    os.posix_fallocate(fd, 0, payloads.nbytes)

    def write_one(i: int) -> None:
        os.pwritev(fd, [payloads.source(i)], i * payloads.size)

    def read_one(i: int) -> None:
        os.preadv(fd, [payloads.targets[i % len(payloads.targets)]], i * payloads.size)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:

        def write() -> None:
            list(pool.map(write_one, range(payloads.count)))
            os.fdatasync(fd)

        found = rates(write, lambda: list(pool.map(read_one, payloads.order())), payloads.nbytes)
    os.close(fd)
    return found


def sglang_file(directory: Path, payloads: Payloads) -> Rates:
    from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

    ranks = dict.fromkeys(("tp_rank", "pp_rank", "attn_cp_rank"), 0) | dict.fromkeys(("tp_size", "pp_size"), 1)
    flags = dict.fromkeys(("is_mla_model", "enable_storage_metrics", "is_page_first_layout"), False)
    config = HiCacheStorageConfig(**ranks, **flags, attn_cp_size=1, model_name="bench")
    backend = HiCacheFile(config, str(directory))
    sources = [torch.from_numpy(source) for source in payloads.sources]
    targets = [torch.from_numpy(target) for target in payloads.targets]

    def write() -> None:
        if not all(pool.map(lambda i: backend.set(str(i), sources[i % len(sources)]), range(payloads.count))):
            raise AssertionError("SGLang's file backend refused a page")
        list(pool.map(sync, directory.iterdir()))

    def read() -> None:
        done = pool.map(lambda i: backend.get(str(i), targets[i % len(targets)]), payloads.order())
        if any(page is None for page in done):
            raise AssertionError("SGLang's file backend lost a page")

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        (written, write_cpu), _ = timed(write, payloads.nbytes), drop_cache(directory)
        got, read_cpu = timed(read, payloads.nbytes)
    return {"write": written, "read": got, "write_cpu": write_cpu, "read_cpu": read_cpu}


def lmcache_file(directory: Path, payloads: Payloads) -> Rates:
    directory.mkdir()
    adapter = json.dumps({"type": "fs", "base_path": str(directory), "use_odirect": True})
    command = [
        "-m", "lmcache.cli.main", "bench", "l2", "--l2-adapter", adapter, "--format", "json", "--l1-align-bytes", "4096",
        "--data-size-kb", str(payloads.size >> 10), "--num-keys", "32", "--rounds", str(max(1, payloads.count // 32)),
    ]  # fmt: skip
    quiet = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
    rest()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=quiet, check=True)
    report = json.loads(done.stdout[done.stdout.index("{\n") : done.stdout.rindex("}") + 1])["metrics"].values()
    rate = {one["operation"]: one["throughput_avg_mbps"] * MIB / 1e6 for one in report if "operation" in one}
    return {"write": rate["Store"], "read": rate["Load"]}


def contestants() -> dict[str, Callable[[Path, Payloads], Rates]]:
    found: dict[str, Callable[[Path, Payloads], Rates]] = {}
    if shutil.which("fio"):
        for engine in ("psync", "io_uring") if io_uring_works() else ("psync",):
            found[f"fio {engine}"] = functools.partial(fio, engine=engine)
    found |= {
        "O_DIRECT loop": direct_loop,
        "slab store": slab,
        "slab store, signed": functools.partial(slab, mac_key=bytes(32)),
        "file per object, O_DIRECT": functools.partial(file_per_object, direct=True),
        "file per object, buffered": functools.partial(file_per_object, direct=False),
    }
    for name, package, runner in (
        ("SGLang file backend", "sglang", sglang_file),
        ("LMCache fs adapter, O_DIRECT", "lmcache", lmcache_file),
    ):
        if importlib.util.find_spec(package):
            found[name] = runner
        else:
            print(f"{name}: {package} is not installed")
    return found


def throughput(base: Path, rounds: int, megabytes: int, runners: dict[str, Callable], rulers: list[str]) -> list[dict]:
    results = []
    for size in SIZES:
        payloads = Payloads(size, max(IN_FLIGHT, megabytes * MIB // size // IN_FLIGHT * IN_FLIGHT))
        runs: dict[str, list[Rates]] = defaultdict(list)
        for _ in range(rounds):
            for name in random.sample(list(runners), len(runners)):
                directory = base / "run"
                runs[name].append(runners[name](directory, payloads))
                shutil.rmtree(directory)
        medians = {name: {way: statistics.median(run[way] for run in runs[name]) for way in WAYS} for name in runners}
        for name in runners:
            row: dict = {"name": name, "bytes": size, "count": payloads.count, **medians[name]}
            for way in WAYS:
                ruler = max(rulers, key=lambda other: medians[other][way])
                ratios = (run[way] / reference[way] for run, reference in zip(runs[name], runs[ruler]))
                row[f"{way}_ruler"] = ruler
                row[f"{way}_ratio"] = statistics.median(ratios)
            if "write_cpu" in runs[name][0]:
                row["write_cpu"] = statistics.median(run["write_cpu"] for run in runs[name])
            results.append({**row, "runs": runs[name]})
            cpu = f"{row['write_cpu']:6.2f}" if "write_cpu" in row else "     -"
            print(
                f"{size // MIB:>2} MiB {name:<30} {row['write']:>7.0f} {row['write_ratio']:>6.2f}"
                f" {row['read']:>7.0f} {row['read_ratio']:>6.2f} {cpu}",
                flush=True,
            )
    return results


def recovery(base: Path, slots: int = 16384, payload: int = 2 * MIB) -> dict:
    """Opens a store whose every slot has a header. The payloads are holes, which opening does not read."""
    directory = base / "run"
    stride = payload + ALIGNMENT
    segment = ALIGNMENT + 512 * stride
    count = slots // 512
    options = SlabOptions(count * segment, segment, (payload,))
    namespace = b"bench"

    class Sparse(FileIO):
        def allocate(self, fd: int, nbytes: int) -> None:
            os.ftruncate(fd, nbytes)

    with SlabStore(directory, options, namespace=namespace, io=Sparse()) as store:
        engine = store._engine
        space, block = Space.of(namespace, b""), aligned_empty(ALIGNMENT)
        for number, one in enumerate(engine._directory.owned):
            one.cut(payload)
            for slot in range(one.format.num_slots):
                where = (number * 512 + slot, one.format.identity, slot)
                header = Header(space, key(where[0]), payload, checksum([b""]), *where).pack()
                block[: len(header)] = memoryview(header)
                one.file.write([block], one.format.offset(slot))
    for file in directory.iterdir():
        sync(file)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with SlabStore(directory, options, namespace=namespace, io=Sparse()) as store:
            seconds.append(time.perf_counter() - start)
            if store.stats().records != slots:
                raise AssertionError(store.stats())
    shutil.rmtree(directory)
    nbytes = slots * stride
    median = statistics.median(seconds)
    found = {"slots": slots, "payload": payload, "seconds": median, "seconds_per_100_gb": median * 100e9 / nbytes}
    print(f"opening {slots} slots of {payload // MIB} MiB ({nbytes / 1e9:.0f} GB): {median:.2f} s, ", end="")
    print(f"{found['seconds_per_100_gb']:.2f} s per 100 GB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: where temporary files go)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512, help="written and read per case")
    parser.add_argument("--only", help="run fio and those whose name contains this")
    parser.add_argument("--recovery", action="store_true", help="measure opening instead of throughput")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=args.directory))
    report: dict = {"machine": platform.machine(), "cores": os.cpu_count(), "rounds": args.rounds}
    try:
        if args.recovery:
            report["recovery"] = recovery(base)
        else:
            runners = contestants()
            rulers = [name for name in runners if name.startswith("fio")] or ["O_DIRECT loop"]
            if args.only:
                runners = {name: run for name, run in runners.items() if name in rulers or args.only in name}
            print(f"{'MB/s':>6} {'':<30} {'write':>7} {'ratio':>6} {'read':>7} {'ratio':>6} CPU s/GB written")
            report["throughput"] = throughput(base, args.rounds, args.megabytes, runners, rulers)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
