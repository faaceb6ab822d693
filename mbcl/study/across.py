"""Several studies together, with their data sets as the tasks: the interquartile mean of normalised gains.

Definitions follow rliable (Agarwal et al., NeurIPS 2021): the interquartile mean is the mean of the middle half of all
runs of all tasks, and its interval comes from a bootstrap that is stratified by task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mbcl.errors import ConfigError
from mbcl.seeding import numpy_generator
from mbcl.study.comparisons import EQUAL_STEPS, Comparison, compare
from mbcl.study.metric_glossary import direction
from mbcl.study.paired import ALPHA, MIN_PAIRS
from mbcl.study.record import WEIGHTS, StudyRecord
from mbcl.study.settings import settings_of
from mbcl.study.statistics import primary_metrics

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Gain:
    """The gain of a setting over the baseline in several studies; see :func:`gains_across`.

    ``iqm`` is the interquartile mean with its 95 % interval, ``improvement`` the mean over the studies of the
    probability of improvement, and ``means`` has the mean gain of each study.
    """

    label: str
    baseline_label: str
    iqm: float
    ci_low: float
    ci_high: float
    improvement: float
    means: tuple[float, ...]
    n: int


def interquartile_mean(gains_TN: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the interquartile mean of gains (T tasks, N pairs) and its 95 % interval.

    The interval is the percentile interval of a bootstrap with a fixed seed that draws N pairs of every task.

    Example:
        >>> interquartile_mean(np.array([[0.0, 1.0], [1.0, 9.0]]))[0]
        1.0
    """
    tasks, pairs = gains_TN.shape
    draws_STN = numpy_generator(0, "bootstrap", tasks, pairs).integers(pairs, size=(NUM_RESAMPLES, tasks, pairs))
    resampled_STN = np.take_along_axis(gains_TN[None], draws_STN, axis=2)
    means_S = stats.trim_mean(resampled_STN.reshape(NUM_RESAMPLES, -1), 0.25, axis=1)
    low, high = np.quantile(means_S, [ALPHA / 2, 1 - ALPHA / 2])
    return float(stats.trim_mean(gains_TN, 0.25, axis=None)), float(low), float(high)


def gains_across(studies: Sequence[StudyRecord]) -> tuple[str, list[Gain]]:
    """Return the headline metric of the studies and the gains of every setting that all of them compare.

    Settings are matched by their label and that of their baseline. A gain is a paired difference over the mean of the
    baseline of its study, positive if the setting is better. Every study needs the same number of pairs of a setting,
    so that all count alike.
    Settings that a search has chosen are left out, as are controls of equal forward passes and settings with fewer than
    :data:`~mbcl.study.paired.MIN_PAIRS` pairs: of two studies with 2, 3 and 6 normal pairs the bootstrap's interval
    holds the true mean in 66, 85 and 91 %.

    Raises:
        ConfigError: if two studies are on the same data, or the studies have different headline metrics, or one that no
            end of is better, or no setting in common with enough pairs; or if their numbers of pairs differ.
    """
    _check_tasks(studies)
    metrics = {next(iter(primary_metrics(study)), "nothing") for study in studies}
    metric = sorted(metrics)[0]
    if len(metrics) > 1 or not direction(metric):
        raise ConfigError(
            f"studies measure {', '.join(sorted(metrics))}; together they need one headline, better up or down"
        )
    by_labels = [
        {
            (c.label, c.baseline_label): c
            for c in compare(study, metric)
            if c.n >= MIN_PAIRS and not c.chosen_by and c.control == EQUAL_STEPS
        }
        for study in studies
    ]
    common = [labels for labels in by_labels[0] if all(labels in comparisons for comparisons in by_labels)]
    if not common:
        raise ConfigError(f"studies have no setting in common with {MIN_PAIRS} pairs of seeds at least in each")
    return metric, [_gain(studies, [comparisons[labels] for comparisons in by_labels]) for labels in common]


def _check_tasks(studies: Sequence[StudyRecord]) -> None:
    """Check that data sets can be the tasks: trainings on one data set would count as independent ones.

    Data are known by the digest of their content and labels, so other versions of one data set are not recognised.

    Raises:
        ConfigError: naming two studies with a data set in common.
    """
    owner: dict[str, StudyRecord] = {}
    for study in studies:
        digests = {digest for name, found in study.data.items() if not name.startswith(WEIGHTS) for digest in found}
        if shared := digests & owner.keys():
            raise ConfigError(
                f"{owner[min(shared)].name} and {study.name} are on the same data; gains are common to data sets, so "
                "give one study of each"
            )
        owner |= dict.fromkeys(digests, study)


def _gain(studies: Sequence[StudyRecord], comparisons: Sequence[Comparison]) -> Gain:
    first = comparisons[0]
    sizes = [c.n for c in comparisons]
    if len(set(sizes)) > 1:
        numbers = ", ".join(f"{study.name} {size}" for study, size in zip(studies, sizes, strict=True))
        raise ConfigError(f"{first.label}: studies need equal numbers of pairs of seeds, found {numbers}")
    rows = []
    for study, comparison in zip(studies, comparisons, strict=True):
        baseline = next(s for s in settings_of(study) if s.id == comparison.baseline).values_of(first.metric)
        mean = float(np.mean(baseline))
        if mean <= 0:
            raise ConfigError(f"{study.name}: a gain is a share of the baseline's mean {first.metric}, found {mean:g}")
        rows.append(np.array(comparison.differences) * direction(first.metric) / mean)
    gains_TN = np.array(rows)
    improvements = [c.improvement or 0.0 for c in comparisons]
    return Gain(
        first.label,
        first.baseline_label,
        *interquartile_mean(gains_TN),
        improvement=float(np.mean(improvements)),
        means=tuple(gains_TN.mean(axis=1).tolist()),
        n=first.n,
    )
