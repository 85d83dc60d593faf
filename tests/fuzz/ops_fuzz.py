"""Random calls of the ops, right ones and wrong ones, on one backend: every one must raise an error that names an argument,
or give the right answer, and write nothing else.

    python tests/fuzz/ops_fuzz.py --backend cpu --seconds 60 --seed 1
    python tests/fuzz/ops_fuzz.py --backend cpu --case 1/57                 # one call again, as a failing run prints it

The calls run in a process of their own, so that a crash or a hang is a finding like others. Triton and the emulated CUDA
kernels do not look at values themselves; they run with SWA_ATTN_CHECK_VALUES=1.
"""

import argparse
import contextlib
import os
import random
import selectors
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BACKENDS = ("reference", "cpu", "triton", "emulated")
LOOKS_AT_VALUES = ("reference", "cpu")
START_SECONDS = 600  # the emulator may have to be built


def worker(args: argparse.Namespace) -> int:
    """Calls until the time is over, each announced by its number; the first wrong one ends it."""
    sys.path[:0] = [str(ROOT), str(HERE)]
    import torch
    from calls import make_call
    from judge import WrongError, run

    import swa_attn

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    card = contextlib.nullcontext
    if args.backend == "emulated":
        from swa_attn import backends
        from swa_attn.testing import emulated_backend

        backends.register("emulated", emulated_backend)
        emulated_backend.attention_kernels(), emulated_backend.page_kernels()

        def card(seed: str) -> contextlib.AbstractContextManager:
            chance = random.Random(seed)
            arithmetic = chance.choice(("exact", "above", "below", "edges"))
            return emulated_backend.settings(compute_capability=chance.choice((80, 90)), arithmetic=arithmetic)

    end, number = time.monotonic() + args.seconds, 0
    print("ready", flush=True)
    with swa_attn.use_backend(args.backend), swa_attn.check_values(args.backend not in LOOKS_AT_VALUES):
        while args.case or time.monotonic() < end:
            seed = args.case or f"{args.seed}/{number}"
            print(f"case {seed}", flush=True)
            call = make_call(seed, args.backend)
            if args.case:
                print(call, flush=True)
            try:
                with card(seed):
                    run(call)
            except WrongError as error:
                print(f"WRONG: {error}\n{call}", flush=True)
                return 1
            number += 1
            if args.case:
                break
    print(f"done {number}", flush=True)
    return 0


def worker_command(args: argparse.Namespace) -> list[str]:
    command = [sys.executable, __file__, "--worker", "--backend", args.backend]
    return command + (
        ["--case", args.case] if args.case else ["--seconds", str(args.seconds), "--seed", str(args.seed)]
    )


def watch(args: argparse.Namespace, command: list[str]) -> int:
    """Runs a worker and says what became of it."""
    environment = os.environ | {"PYTHONFAULTHANDLER": "1", "TORCH_SHOW_CPP_STACKTRACES": "0"}
    if args.backend == "triton":
        environment["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    last, tail, patience, rest = None, [], START_SECONDS, b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not ready.select(patience):
                process.kill()
                tail.append(f"HANG: nothing for {patience} s")
                break
            some = os.read(
                process.stdout.fileno(), 1 << 16
            )  # not readline, which may keep a line that select cannot see
            if not some:
                break
            *lines, rest = (rest + some).split(b"\n")
            for line in map(bytes.decode, lines):
                if line.startswith("case "):
                    last, tail = line.split()[1], []
                elif line.startswith("ready"):
                    patience = args.patience
                else:
                    tail.append(line.rstrip())
    code = process.wait()
    print("\n".join(tail))
    if code == 0:
        return 0
    print(f"{args.backend}: case {last} ended the run (exit {code}). Again:")
    print(f"  python tests/fuzz/ops_fuzz.py --backend {args.backend} --case {last}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", help="seed/number of one call")
    parser.add_argument("--patience", type=float, default=60, help="seconds after which a call counts as hanging")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    return worker(args) if args.worker else watch(args, worker_command(args))


if __name__ == "__main__":
    sys.exit(main())
