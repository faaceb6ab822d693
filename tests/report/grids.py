"""A study by hand that sweeps a temperature and samplers, with controls of equal forward passes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from report.studies import study, trial

from mbcl.study.record import StudyRecord, TrialRecord

TAUS = (0.05, 0.1, 0.2, 0.5)


def temperatures(
    taus: Sequence[float] = TAUS, samplers: Sequence[str] = ("refined", "chain"), seeds: int = 8, name: str = "grid"
) -> StudyRecord:
    """``shuffle`` and other samplers at each temperature, which the samplers' own is tied to.

    A sampler is worse where the temperature is low and better where it is high, by a value of its own, and each seed
    has noise. A longer ``shuffle`` is the control of the others.
    """
    noise = random.Random(0)
    trials: list[TrialRecord] = []
    controls = {tau: len(taus) * (1 + len(samplers)) + number for number, tau in enumerate(taus)}
    for sampler in ("shuffle", *samplers, "longer"):
        for tau in taus:
            planned = sampler in samplers
            block = {"name": sampler, "pool": 128, "temperature": tau} if planned else {"name": "shuffle"}
            gain = 0.02 * math.log10(tau / 0.15) + 0.003 * len(sampler) if planned else 0.004 * (sampler == "longer")
            setting = controls[tau] if sampler == "longer" else len(trials) // seeds
            for seed in range(seeds):
                found = trial(
                    len(trials),
                    setting,
                    seed,
                    block,
                    0.6 + gain + noise.gauss(0, 0.004),
                    is_control=sampler == "longer",
                    equal_passes=controls[tau] if planned else None,
                )
                found.parameters["objective.temperature"] = tau
                if sampler == "longer":
                    found.parameters["train.epochs"] = 14
                share = 0.1 + (0.1 + tau / 10 + noise.gauss(0, 0.01)) * planned
                found.metrics |= {"train/same_class": share, "plan/lift": 1.2 + tau if planned else None}
                trials.append(found)
    return study(trials, name=name)
