"""All checks and measurements that need a GPU, in stages, for a machine that is lent for some minutes.

    PYTHONPATH=. python benchmarks/gpu.py --out results/gpu [--stages tests plans ...] [--seconds 540] [--toy]

Needs torch, torchvision, numba, scikit-learn, kornia, pydantic, PyYAML, rich and no Ray. Each case prints its result
and writes it to STAGE.json in the output folder at once, so a kill loses the case that runs. A case that fails is
recorded, and the next one runs; the exit code is then 1. After ``--seconds`` no further case starts, and the record
says so. ``--toy`` runs the stages on one thread of the CPU at toy size, as a test does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NEEDED = ("torch", "torchvision", "numba", "numpy", "scipy", "sklearn", "PIL", "kornia", "pydantic", "yaml", "rich")
EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
ENVIRONMENT = "environment"


class OutOfTime(Exception):
    """The seconds of ``--seconds`` are over."""


class Session:
    """The options of this run, and the record of each stage in a file.

    Args:
        out: the folder of the files.
        toy: whether to run at toy size.
        device: where to compute.
        seconds: after these no case starts.
    """

    def __init__(self, out: Path, *, toy: bool, device: str, seconds: float) -> None:
        self.out, self.toy, self.device = out, toy, device
        self.failed = False
        self._end = time.monotonic() + seconds
        self._records: dict[str, dict[str, Any]] = {}

    @property
    def seconds_left(self) -> float:
        """Seconds until no further case starts."""
        return self._end - time.monotonic()

    def check_time(self) -> None:
        """Raise OutOfTime if no time is left."""
        if self.seconds_left <= 0:
            raise OutOfTime

    def put(self, stage: str, name: str, result: Any) -> None:
        """Record a result in the stage's file."""
        self._records.setdefault(stage, {})[name] = result
        self._write(stage)

    def drop(self, stage: str, name: str) -> None:
        """Remove a result from the stage's record."""
        self._records[stage].pop(name, None)

    def _write(self, stage: str) -> None:
        """Write the stage's file, which is replaced in one move."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{stage}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(self._records[stage], indent=1))
        unfinished.replace(path)

    def case(self, stage: str, name: str, measure: Callable[[], Any], brief: Callable[[Any], str] = str) -> None:
        """Measure, record and print one case; record an error instead of raising it.

        Args:
            stage: names the file.
            name: of the case in the file.
            measure: returns the result as plain data.
            brief: formats the result for the console.
        """
        start = time.monotonic()
        try:
            self.check_time()
            print(f"{stage}: {name} ...", flush=True)
            result = measure()
        except OutOfTime:
            self.put(stage, f"{name}, left out", "the seconds of --seconds are over")
            print(f"{stage}: {name}: left out, the seconds of --seconds are over", flush=True)
            return
        except Exception as error:  # of torch, of CUDA, of a compiler: the next case may well run
            self.failed = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"
            self.put(stage, f"{name}, failed", reason)
            print(f"{stage}: {name}: FAILED {reason}", flush=True)
            return
        self.put(stage, name, result)
        print(f"{stage}: {name}: {brief(result)} [{time.monotonic() - start:.1f} s]", flush=True)


def environment(device: str) -> dict[str, Any]:
    """The names and versions of device, driver and libraries."""
    import os

    import torch

    import mbcl
    from mbcl.bench import measure

    record: dict[str, Any] = {"mbcl": mbcl.__version__, "cores": os.cpu_count(), **measure.environment(device)}
    for library in ("torchvision", "triton", "kornia", "pillow", "pytest", "lightly", "ray"):
        try:
            record[library] = version(library)
        except PackageNotFoundError:
            record[library] = None
    record |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record |= {"capability": f"{properties.major}.{properties.minor}", "gpu_bytes": properties.total_memory}
        record["multiprocessors"] = properties.multi_processor_count
        record["tf32"] = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages and return the exit code: 0, 1 (a case failed) or 2 (bad input)."""
    from gpu_stages import STAGES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", default="results/gpu", help="folder of the JSON files")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    parser.add_argument("--seconds", type=float, default=540, help="no case starts after these (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="run all stages at toy size on the CPU")
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f"these packages are missing: {', '.join(missing)}")
    import torch

    device = "cpu" if options.toy else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        return _refuse("torch finds no GPU here; --toy runs all stages at toy size on the CPU")
    if options.toy:
        torch.set_num_threads(1)
    session = Session(Path(options.out), toy=options.toy, device=device, seconds=options.seconds)
    session.case(ENVIRONMENT, "libraries", lambda: environment(device))
    for name in options.stages:
        STAGES[name](session)
    print(f"{options.out}: " + ", ".join(sorted(path.name for path in session.out.glob("*.json"))))
    return EXIT_FAILED if session.failed else 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
