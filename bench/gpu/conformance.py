"""Is the card what the emulator says it is? The same small kernels on both, on the same inputs, primitive by primitive.

    python -m bench.gpu.conformance [--library FILE] [--json FILE]

Without a library (and a card) the emulator's half runs alone: it must raise no report.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from swa_attn.testing.emulator import Buffer, Emulator

from .libraries import KERNELS, Card
from .probes import Arguments, Probe, all_probes


@dataclass
class Result:
    probe: str
    primitives: tuple[str, ...]
    bound: str
    error: float | None = None  # share of the bound; None: the card's half did not run
    problem: str = ""  # why it failed

    @property
    def passed(self) -> bool:
        return not self.problem


def outputs(arguments: Arguments) -> list[Tensor]:
    return [a.tensor for a in arguments.values() if isinstance(a, Buffer) and a.writable]


def run_probe(probe: Probe, emulator: Emulator | None, card: Card | None) -> Result:
    """Runs whichever halves are there; a half that raises fails the probe and says so."""
    result = Result(probe.name, probe.primitives, probe.bound)
    written = {}
    for where, launcher in (("emulator", emulator), ("card", card)):
        if launcher is None:
            continue
        arguments = probe.arguments()
        try:
            run = launcher.launch(probe.kernel, **arguments)
            if where == "emulator":
                run.check()
        except (RuntimeError, AssertionError, ValueError) as problem:
            result.problem = f"{where}: {problem}"
            return result
        written[where] = outputs(arguments)
    if len(written) == 2:
        result.error = probe.error(written["emulator"], written["card"])
        if not result.error <= 1:
            result.problem = f"card and emulator differ: {result.error:.3g} of the bound"
    return result


def make_emulator() -> Emulator:
    return Emulator(sorted(KERNELS.glob("*.cpp")), include=[KERNELS])  # as the tests build it


HEADING = f"{'probe':<32} {'bound':<42} {'used':>8}  primitives"


def format_result(result: Result) -> str:
    """What a probe covers, the bound, and how much of it was used."""
    used = "not run" if result.error is None else "equal" if result.error == 0 else f"{result.error:.3f}"
    used = used if result.passed else "FAILED"
    line = f"{result.probe:<32} {result.bound:<42} {used:>8}  {' '.join(result.primitives)}"
    return line + (f"\n    {result.problem}" if result.problem else "")


def save(results: list[Result], running: str, file: Path) -> None:
    """After every probe, so that one that hangs costs only itself and what follows; `running` names the next one."""
    rows = [asdict(r) | {"passed": r.passed} for r in results]
    file.write_text(json.dumps({"running": running, "probes": rows}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--library", dest="kernels", type=Path, help="the kernels, built for the card; else the emulator runs alone"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args(argv)
    card = Card(args.kernels) if args.kernels else None
    has_sm90 = card is not None and torch.cuda.get_device_capability() == (9, 0)
    emulator, results, probes = make_emulator(), [], all_probes()
    print(HEADING)
    for probe in probes:
        if args.json:
            save(results, probe.name, args.json)
        results.append(run_probe(probe, emulator, card if has_sm90 or not probe.needs_sm90 else None))
        print(format_result(results[-1]), flush=True)
    if args.json:
        save(results, "", args.json)
    failed = sum(not r.passed for r in results)
    compared = sum(r.error is not None for r in results)
    print(f"{len(results)} probes, {compared} compared with the card, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
