"""Runs a stage's process: with a time limit, its output in a file, and everything it started ended with it."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    code: int | None  # None: it ran past its limit
    log: Path
    limit_seconds: float

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def why(self) -> str:
        """Why it did not pass."""
        if self.code is None:
            return f"stopped after {self.limit_seconds:.0f} s"
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit status {self.code}"

    @property
    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no output"


def run_logged(
    command: Sequence[str], log: Path, limit_seconds: float, cwd: Path, variables: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a command in a process group of its own; past the limit the whole group is killed. Output goes to `log`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Outcome(code, log, limit_seconds)
