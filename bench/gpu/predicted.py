"""What the model of the kernels' times (bench/model) says of each case at this run's ceilings, and how far off it is."""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.model import Card, chosen, measured_card, predict

from .bench import Row
from .cases import Ceilings, all_cases
from .machine import Machine

BACKEND = "cuda"  # whose choice of kernels the model knows


@dataclass(frozen=True)
class Comparison:
    """One case: microseconds predicted for the kernel that the cuda backend runs, and those it took, if it was timed.

    The errors are measured over predicted. Above 1 for `serial`, something waits that the schedule does not show; below 1
    for `overlapped`, a ceiling or the model is wrong.
    """

    case: str
    kernel: str
    overlapped_us: float
    serial_us: float
    measured_us: float | None = None
    overlapped_error: float | None = None
    serial_error: float | None = None


def card_of(machine: Machine, ceilings: Ceilings) -> Card:
    """This machine's card as the model takes it."""
    return measured_card(
        machine.card, ceilings, machine.num_sms, machine.smem_bytes, compute_capability=machine.compute_capability
    )


def compare(card: Card, rows: Iterable[Row]) -> list[Comparison]:
    """For the cases that have a row of the cuda backend, in the table's order."""
    ours = {row.case: row for row in rows if row.implementation == BACKEND}
    found = []
    for case in all_cases():
        work = chosen(case, card) if case.name in ours else None
        if not work:
            continue
        expected, us = predict(work, case, card), ours[case.name].us
        overlapped, serial = expected.overlapped_us, expected.serial_us
        errors = (us / overlapped, us / serial) if us else (None, None)
        found.append(Comparison(case.name, work.kernel, overlapped, serial, us, *errors))
    return found


HEADING = (
    f"{'case':<9} {'kernel':<18} {'overlapped us':>14} {'serial us':>10} {'measured us':>12} "
    f"{'/ overlapped':>13} {'/ serial':>9}"
)


def lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The table; its last two columns are the model's errors."""
    found = [HEADING]
    for c in comparisons:
        line = f"{c.case:<9} {c.kernel:<18} {c.overlapped_us:14.1f} {c.serial_us:10.1f}"
        if c.measured_us:
            line += f" {c.measured_us:12.1f} {c.overlapped_error:13.2f} {c.serial_error:9.2f}"
        else:
            line += f" {'not measured':>12}"
        found.append(line)
    return found
