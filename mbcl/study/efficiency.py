"""The efficiency of a sweep: the share of the machine's time that trials spent in epochs and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from mbcl.study.record import Efficiency, StudyRecord


def sweep_efficiency(
    study: StudyRecord,
    trials: Iterable[str],
    epoch_seconds: Callable[[str], float],
    *,
    num_devices: float,
    devices_per_trial: float,
    device: Literal["core", "GPU"],
    wall: float,
) -> Efficiency:
    """Sum up the time of the trials of one run.

    Args:
        study: the record, with the seconds of every trial that has ended.
        trials: the trials that ended in this run.
        epoch_seconds: returns the seconds of a trial's epochs, by its name; at most its whole time counts, because a
            resumed trial did some of them in an earlier run. 0 for a trial without epochs, whose training counts.
        num_devices: number of cores or GPUs of the machine or cluster.
        devices_per_trial: number of them on which a trial computes.
        device: the kind of device.
        wall: seconds of the run.
    """
    busy = work = 0.0
    for trial in trials:
        seconds = study.trials[trial].seconds
        total = seconds.get("total", 0.0)
        busy += total
        work += min(total, (epoch_seconds(trial) or seconds.get("training", 0.0)) + seconds.get("evaluation", 0.0))
    scale = devices_per_trial
    return Efficiency(devices=num_devices, device=device, wall=wall, work=work * scale, busy=busy * scale)
