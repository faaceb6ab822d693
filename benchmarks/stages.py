"""Where the seconds of a study went: per setting, mean over its seeds, from ``results.csv``.

python benchmarks/stages.py results/digits
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

STAGES = ("startup", "training", "evaluation", "ray", "total")


def main(folder: str) -> None:
    """Print a table for the documents."""
    with (Path(folder) / "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "finished"]
    print("| sampler | trials | " + " | ".join(STAGES) + " |")
    print("| --- " * (len(STAGES) + 2) + "|")
    groups = {row["sampler"]: [r for r in rows if r["sampler"] == row["sampler"]] for row in rows}
    for name, group in [*groups.items(), ("all", rows)]:
        means = [sum(float(row[f"seconds/{stage}"]) for row in group) / len(group) for stage in STAGES]
        print(f"| {name} | {len(group)} | " + " | ".join(f"{mean:.1f} s" for mean in means) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
