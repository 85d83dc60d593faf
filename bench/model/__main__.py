"""`python -m bench.model`: the table, and the same as JSON."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from . import CARDS, predictions

COLUMNS = ("memory", "link", "products", "shared", "softmax", "overlapped", "serial")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description="Predicted times, in microseconds.")
    parser.add_argument("--json", type=Path, help="write the predictions here, too")
    arguments = parser.parse_args()
    print(f"{'us':5}{'case':9}{'kernel':18}" + "".join(f"{name:>11}" for name in COLUMNS))
    rows = [asdict(prediction) for prediction in predictions()]
    for row in rows:
        times = "".join(f"{row[f'{name}_us']:11.1f}" for name in COLUMNS)
        print(f"{row['card']:5}{row['case']:9}{row['kernel']:18}{times}")
    if arguments.json:
        document = {"assumed": [asdict(card) for card in CARDS], "predicted": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
