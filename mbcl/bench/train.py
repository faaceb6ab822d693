"""``mbcl bench train``: the ladder from forward and backward passes alone to whole trainings of the same model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

from rich.console import Console

from mbcl import __version__
from mbcl.bench.measure import environment
from mbcl.bench.train_arms import run_arm
from mbcl.bench.train_run import STAGES, ArmRun
from mbcl.bench.train_settings import Arm, TrainBenchSettings
from mbcl.bench.usual_pipeline import lightly_is_installed
from mbcl.console import align_columns
from mbcl.console.stages import Stages
from mbcl.errors import ConfigError, MbclError, TrainingError, pluralize
from mbcl.io.store import Store, check_writable, open_store, write_text
from mbcl.planner.background import BackgroundProcess

RunArm = Callable[[Arm, TrainBenchSettings], ArmRun]


@dataclass(frozen=True)
class ArmReport:
    """An arm with its runs. The figures are medians over the runs."""

    arm: Arm
    runs: list[ArmRun] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Samples a second."""
        return median(run.samples_a_second for run in self.runs)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of an epoch by stage."""
        return {stage: median(run.seconds[stage] for run in self.runs) for stage in self.runs[0].seconds}

    def bytes(self, key: str) -> float | None:
        """Return the peak of ``memory`` or ``helpers``; None where the system does not count it."""
        peaks = [peak for run in self.runs if (peak := getattr(run, key)) is not None]
        return median(peaks) if peaks else None

    def record(self, reference: ArmReport | None) -> dict[str, Any]:
        """Return the report as plain data, with the ratio to the best ceiling."""
        speeds = [run.samples_a_second for run in self.runs]
        return {
            **asdict(self.arm),
            "samples_a_second": {"median": self.speed, "least": min(speeds), "most": max(speeds)},
            "ratio": self.speed / reference.speed if reference else None,
            "seconds": self.seconds,
            "memory": self.bytes("memory"),
            "helpers": self.bytes("helpers"),
            "runs": [asdict(run) for run in self.runs],
        }


class TrainBenchReport:
    """All arms that were measured; the best arm of the ceiling is the reference."""

    def __init__(self, settings: TrainBenchSettings) -> None:
        self.settings = settings
        self._by_label: dict[str, ArmReport] = {}
        self.left_out: list[str] = []

    @property
    def arms(self) -> list[ArmReport]:
        """The arms in the order in which they were measured."""
        return list(self._by_label.values())

    def add(self, arm: Arm, run: ArmRun) -> None:
        """Add a run of an arm."""
        self._by_label.setdefault(arm.label, ArmReport(arm)).runs.append(run)

    @property
    def reference(self) -> ArmReport | None:
        """The fastest arm of the ceiling; None if none was measured."""
        ceilings = [report for report in self.arms if report.arm.kind == "ceiling"]
        return max(ceilings, key=lambda report: report.speed, default=None)

    def record(self) -> dict[str, Any]:
        """Return the report as plain data."""
        reference = self.reference
        return {
            "mbcl": __version__,
            "environment": environment(self.settings.device) | {"torchvision": version("torchvision")},
            "settings": asdict(self.settings),
            "reference": reference.arm.label if reference else None,
            "arms": [report.record(reference) for report in self.arms],
            "left_out": self.left_out,
        }


def bench_train(settings: TrainBenchSettings) -> TrainBenchReport:
    """Measure every arm, each run in a process of its own; print a table, and write JSON if a file is given.

    If an arm fails, or the user interrupts, the arms that were measured are printed first.

    Raises:
        ConfigError: if a setting is out of range.
        TrainingError: if an arm failed.
    """
    settings.check()
    save = _saver(settings)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_headline(settings))
    report = TrainBenchReport(settings)
    try:
        with Stages() as stages:
            measure_arms(report, in_own_process, stages, save)
    finally:
        print_report(console, report)
    return report


def measure_arms(
    report: TrainBenchReport, run: RunArm, stages: Stages, save: Callable[[TrainBenchReport], None]
) -> None:
    """Measure the ceiling, then the other arms with the memory format and threads of the best ceiling.

    The arms take turns, run by run, so that other load on the machine slows all of them alike.

    Args:
        report: takes the runs; its settings are checked.
        run: measures an arm, in this process or in another one.
        stages: shows the progress.
        save: called after every run, so that an interrupted benchmark leaves what it measured.
    """
    settings = report.settings

    def measure(arms: Sequence[Arm]) -> None:
        for number in range(settings.runs):
            for arm in arms:
                stages.begin(f"{arm.label}, run {number + 1} of {settings.runs}")
                report.add(arm, run(arm, settings))
                save(report)

    measure(settings.ceilings())
    best = report.reference.arm if report.reference else None
    channels_last, threads = (best.channels_last, best.threads) if best else ("auto", max(settings.threads))
    others = settings.other_arms(channels_last=channels_last, threads=threads)
    if "lightly" in settings.arms and not lightly_is_installed():
        others = [arm for arm in others if arm.kind != "lightly"]
        report.left_out.append("lightly left out: it is not installed; pip install lightly")
    measure(others)
    save(report)


def in_own_process(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Run an arm in a process of its own, so that the peak of memory is the arm's.

    Raises:
        TrainingError: if the arm failed.
    """
    process = BackgroundProcess()
    try:
        run: ArmRun = process.submit(run_arm, arm, settings).result()
        process.close(graceful=True)
        return run
    except MbclError:
        raise
    except BrokenProcessPool as error:
        raise TrainingError(f"{arm.label}: its process ended, perhaps for lack of memory") from error
    except Exception as error:  # of torch, a loader's worker or lightly
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{arm.label}: {type(error).__name__}: {reason}") from error
    finally:
        process.close()


def _saver(settings: TrainBenchSettings) -> Callable[[TrainBenchReport], None]:
    """Return a function that writes the report to ``--json``, or does nothing without it.

    Raises:
        ConfigError: if the file exists already, or cannot be written.
    """
    if settings.json is None:
        return lambda report: None
    folder, _, name = settings.json.rpartition("/")
    if not name:
        raise ConfigError(f"--json: expected a file, found the folder {settings.json}")
    store: Store = open_store(folder or ("/" if settings.json.startswith("/") else "."))
    check_writable(store, "--json")
    if store.exists(name) and not settings.overwrite:
        raise ConfigError(f"--json: {settings.json} is there already; add --overwrite, or choose another file")
    return lambda report: write_text(store, name, json.dumps(report.record(), indent=1))


# -- printing ----------------------------------------------------------------------------------------------------------


def _headline(settings: TrainBenchSettings) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in environment(settings.device).items())
    compile_ = ", compiled" if settings.compile else ""
    return (
        f"mbcl {__version__}, {versions}\n"
        f"{settings.encoder}, {settings.image_size} pixels, B = {settings.batch_size}, {settings.samples} samples, "
        f"{settings.precision}{compile_}, {settings.device}; medians over {pluralize(settings.runs, 'run')} of "
        f"{pluralize(settings.epochs, 'epoch')}"
    )


def print_report(console: Console, report: TrainBenchReport) -> None:
    """Print a line for every arm that was measured."""
    if not report.arms:
        return
    stages = [stage for stage in STAGES if any(stage in arm.seconds for arm in report.arms)]
    header = ["arm", "images a second", "min", "max", "ratio", *(f"{stage} s" for stage in stages), "memory", "helpers"]
    lines = [header, *(_line(arm, report.reference, stages) for arm in report.arms)]
    for line in (*align_columns(lines, 1), *report.left_out):
        console.print(line, markup=False)
    if report.reference:
        console.print(f"ratio: to {report.reference.arm.label}; seconds: of an epoch", markup=False)


def _line(arm: ArmReport, reference: ArmReport | None, stages: Sequence[str]) -> list[str]:
    record: Mapping[str, Any] = arm.record(reference)
    speeds = [f"{record['samples_a_second'][key]:,.0f}" for key in ("median", "least", "most")]
    ratio = "" if record["ratio"] is None else f"{record['ratio']:.3f}"
    seconds = [f"{arm.seconds[stage]:.3f}" if stage in arm.seconds else "" for stage in stages]
    memory = ["" if record[key] is None else f"{record[key] / 2**20:,.0f} MiB" for key in ("memory", "helpers")]
    return [arm.arm.label, *speeds, ratio, *seconds, *memory]
