"""How many faults were put into the store's I/O, and what came of them: the table of docs/store.md.

    python tests/kvcache/store/fault_report.py

Runs the scripted workload of test_store_faults.py once for every operation and every kind of fault, and damages single
records in every way.
"""

import logging
import tempfile
from pathlib import Path

from store_faults import FaultyIO
from test_store_faults import DAMAGES, Outcome, damaged_record, record_writes, scripted


def main() -> None:
    logging.disable()
    total = Outcome()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        rehearsal = FaultyIO()
        scripted(base / "rehearsal", rehearsal)
        print(f"the workload has {len(rehearsal.operations)} operations; one run for each, with that operation failing")
        print(f"{'fault':<10} {'injected':>8} {'right':>6} {'missed':>6} {'not opened':>10} {'wrong':>5}")
        for fault in (*FaultyIO.RAISING, *FaultyIO.WRITING):
            outcome, injected = Outcome(), 0
            for n in range(len(rehearsal.operations)):
                io = FaultyIO({n: fault}, slow_seconds=0.001)
                outcome.update(scripted(base / f"{fault}-{n}", io))
                io.flush()
                injected += len(io.hit)
            total.update(outcome)
            counts = (outcome[name] for name in ("right", "missed", "not opened", "wrong"))
            print("{:<10} {:>8} {:>6} {:>6} {:>10} {:>5}".format(fault, injected, *counts))
        print(f"served: {total['right']} right, {total['wrong']} wrong")
        print("single records damaged on their way to the disk, then read:")
        for fault in DAMAGES:
            writes = record_writes(base / f"{fault}-rehearsal")
            found = [damaged_record(base / f"{fault}-{i}-single", n, fault) for i, n in enumerate(writes)]
            print(f"{fault:<10} {len(found):>8} injected, {sum(found):>3} detected")


if __name__ == "__main__":
    main()
