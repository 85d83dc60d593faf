"""`python -m swa_attn COMMAND`: see COMMANDS. Each command is imported only when it is asked for."""

import importlib
import os
import sys

from . import backends

COMMANDS = {
    "info": ("swa_attn.info", "versions, build, devices, and which backend will run which op and why"),
    "demo": ("swa_attn.runner.demo", "a coding session on a small hybrid model, with and without a prefix cache"),
    "replay": (
        "swa_attn.replay.command",
        "what the tiered cache would do with a recorded workload, and what that saves",
    ),
}


def _unknown_backend() -> str | None:
    """What is wrong with the name in the environment, before a command meets it at its first op. One that is known and
    cannot run is the command's to explain."""
    name = os.environ.get("SWA_ATTN_BACKEND")
    try:
        if name:
            backends.load(name)
    except ValueError as error:
        return f"SWA_ATTN_BACKEND: {error}"
    except ImportError:
        pass
    return None


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        if (problem := _unknown_backend()) is not None:
            print(problem, file=sys.stderr)
            return 2
        try:
            return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130  # what a shell expects of a program ended by Ctrl-C
    print("usage: python -m swa_attn COMMAND [options]\n\ncommands:")
    for name, (_, summary) in COMMANDS.items():
        print(f"  {name:<8} {summary}")
    if argv and argv[0] not in ("-h", "--help"):
        print(f"\nunknown command {argv[0]!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
