"""``mbcl bench ray``: the overhead of Ray for a study of small trials, to the first step and per trial."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mbcl import __version__
from mbcl.bench.measure import environment
from mbcl.engine.metrics_log import read_rows
from mbcl.errors import ConfigError, TrainingError, pluralize
from mbcl.functional import check_count
from mbcl.io.store import LocalStore, open_store, write_text
from mbcl.orchestration.study import EXIT_FINISHED, EXIT_INTERRUPTED, StudyOptions, WriteReport, run
from mbcl.study.record import TrialRecord, read_study

FILE = "ray.json"
NAME = "bench"
STAGES = {
    "startup": "from Tune's call to the training function: planner, controller and worker start",
    "prepare": "from there to the first step: data, model, the rest of the training function",
    "epochs": "training, with validation and checkpoints",
    "evaluation": "the evaluation task",
    "other": "between these: workers end, answers travel",
}


@dataclass(frozen=True, kw_only=True)
class RayBenchSettings:
    """The settings of the benchmark; see ``mbcl bench ray --help``."""

    trials: int
    sampler: str
    out: str | None
    overwrite: bool

    def check(self) -> None:
        """Refuse a number of trials that is out of range, and an output file that exists.

        Raises:
            ConfigError: one line with the value and what is allowed.
        """
        check_count("--trials", self.trials)
        if self.out and open_store(self.out).exists(FILE) and not self.overwrite:
            raise ConfigError(f"{self.out}/{FILE}: is there already; add --overwrite, or choose another --out")


def space_of(settings: RayBenchSettings) -> dict[str, Any]:
    """Return a space of one setting with ``settings.trials`` seeds: one epoch each on 300 digits."""
    sampler = {"name": settings.sampler} | ({"k": 4} if settings.sampler == "spectral" else {})
    return {
        "seeds": list(range(settings.trials)),
        "experiment": {
            "data": {"name": "digits", "max_samples": 300},
            "projector": {"hidden": 64, "dim": 16},
            "schedule": {"warmup_epochs": 0},
            "train": {"epochs": 1, "batch_size": 16},
            "track": [],
        },
        "space": {"sampler": {"grid": [sampler]}},
        "resources": {"max_concurrent_trials": 1},
    }


def stages_of(record: TrialRecord, epochs: float) -> dict[str, float]:
    """Return the seconds of a trial by the keys of :data:`STAGES`; their sum is the trial's total.

    Args:
        record: the record of a finished trial.
        epochs: seconds of its epochs, with validation and checkpoints.
    """
    seconds = record.seconds
    stages = {
        "startup": seconds["startup"],
        "prepare": seconds["training"] - epochs,
        "epochs": epochs,
        "evaluation": seconds["evaluation"],
    }
    return stages | {"other": seconds["total"] - sum(stages.values())}


def bench_ray(settings: RayBenchSettings, write_report: WriteReport) -> int:
    """Run a study of tiny trials on a local Ray, print a table, and write ``ray.json`` if ``settings.out`` is given.

    Returns:
        The exit code of the study, 0 or 130.

    Raises:
        ConfigError: if a setting is out of range.
        TrainingError: if a trial failed.
    """
    settings.check()
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / f"{NAME}.yaml"
        space.write_text(yaml.safe_dump(space_of(settings)))
        start = time.perf_counter()
        code = run(StudyOptions(space, results_dir=folder, temporary=True), write_report)
        wall = time.perf_counter() - start
        if code == EXIT_INTERRUPTED:
            return code
        if code != EXIT_FINISHED:
            raise TrainingError("the study that is measured failed, for the reason above")
        store = LocalStore(Path(folder) / NAME)
        trials = [
            stages_of(record, sum(float(row["time/total"] or 0) for row in read_rows(store.child(f"trials/{key}"))))
            for key, record in read_study(store).trials.items()
        ]
    summary = summarize(trials, wall)
    console = Console(highlight=False)
    console.print(_table(trials, summary))
    for line in (
        f"the study took {wall:.1f} s; outside its trials {summary['outside']:.1f} s: starting and stopping Ray, "
        "checking the data, the report",
        f"a trial after the first costs {summary['overhead']:.1f} s beyond its epochs and its evaluation",
        f"this process held {summary['memory_mib']:.0f} MiB at most",
    ):
        console.print(line, soft_wrap=True)
    if settings.out:
        content = {"version": __version__, "environment": environment("cpu"), "settings": asdict(settings)}
        write_text(open_store(settings.out), FILE, json.dumps(content | summary | {"trials": trials}, indent=1))
        console.print(f"{settings.out}/{FILE}", soft_wrap=True, markup=False)
    return EXIT_FINISHED


def summarize(trials: Sequence[dict[str, float]], wall: float) -> dict[str, float]:
    """Summarize the stages of all trials, which ran one at a time, and the duration of the study.

    Args:
        trials: seconds by stage of each trial, see :func:`stages_of`, in the order in which the trials ran.
        wall: seconds of the study.

    Returns:
        Seconds: ``wall``; ``outside`` of all trials; ``first_step``, until the first step of the first trial;
        ``first_step_later``, the mean of this over later trials; ``overhead``, the mean over later trials of all but
        epochs and evaluation. ``memory_mib`` is the peak resident memory of this process in MiB.

    Example:
        >>> one = {"startup": 5.0, "prepare": 1.0, "epochs": 3.0, "evaluation": 1.0, "other": 2.0}
        >>> summarize([one, {**one, "startup": 3.0}], 30.0)["overhead"]
        6.0
    """
    later = list(trials[1:]) or list(trials)
    return {
        "wall": wall,
        "outside": wall - sum(sum(stages.values()) for stages in trials),
        "first_step": trials[0]["startup"] + trials[0]["prepare"],
        "first_step_later": mean(stages["startup"] + stages["prepare"] for stages in later),
        "overhead": mean(sum(stages.values()) - stages["epochs"] - stages["evaluation"] for stages in later),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _table(trials: Sequence[dict[str, float]], summary: dict[str, float]) -> Table:
    later = list(trials[1:])
    table = Table(title=f"seconds of a trial, {pluralize(len(trials), 'trial')}, one at a time")
    for column in ("stage", "first trial", "later, mean", "what it is"):
        table.add_column(column, justify="left" if column in ("stage", "what it is") else "right")

    def format_mean(values: list[float]) -> str:
        return f"{mean(values):.2f}" if values else "-"

    for stage, meaning in STAGES.items():
        table.add_row(stage, f"{trials[0][stage]:.2f}", format_mean([stages[stage] for stages in later]), meaning)
    table.add_section()
    first_steps = [stages["startup"] + stages["prepare"] for stages in later]
    table.add_row("to the first step", f"{summary['first_step']:.2f}", format_mean(first_steps), "startup and prepare")
    totals = [sum(stages.values()) for stages in later]
    table.add_row("a trial", f"{sum(trials[0].values()):.2f}", format_mean(totals), "all of it")
    return table
