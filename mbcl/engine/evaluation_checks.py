"""Checks that the data allow the configured evaluation, made before training starts and before evaluating."""

from __future__ import annotations

from mbcl.config.evaluation import Corrupted, Evaluation
from mbcl.data import CORRUPTIONS, ImageSet, check_corrupted, corrupted_available
from mbcl.data.datasets.request import Verify
from mbcl.data.samples import SampleSet
from mbcl.engine.setup import SplitData
from mbcl.errors import ConfigError, nearest, pluralize


def check_evaluation(settings: Evaluation, data: SplitData, *, name: str, verify: Verify = "warn") -> None:
    """Raise if these samples of the data set ``name`` do not allow the evaluation.

    ``verify``: whether unofficial files of a corrupted set are a warning or an error.

    Raises:
        ConfigError: naming the key, the value found and the values allowed.
        DataError: if files of a corrupted set are missing or damaged, or do not show these images.
    """
    num_train, noun = len(data.train), data.train.noun
    metrics = [*settings.metrics, *settings.validation_metrics]
    for metric in ("knn", "probe"):
        if metric in metrics and not data.train.labelled:
            why = f"the {noun}s of {name} are {data.train.why_unlabelled}"
            raise ConfigError(f"evaluation.metrics: {metric} needs labels, but {why}")
    if "knn" in metrics and settings.knn.k > num_train:
        training = pluralize(num_train, f"training {noun}")
        raise ConfigError(f"evaluation.knn.k: {settings.knn.k} is above the {training} of {name}")
    if "probe" in metrics and len(data.train.labels.unique()) < 2:
        raise ConfigError(f"evaluation.metrics: probe needs 2 classes, but the training {noun}s of {name} have one")
    if "repr" in metrics and len(data.part(settings.split)) < 2:
        raise ConfigError(f"evaluation.metrics: repr needs 2 {noun}s, but the {settings.split} part of {name} has one")
    if "corrupted" in metrics:
        _check_corrupted(settings.corrupted, images_of(data.test, "metrics: corrupted"), name=name, verify=verify)
    if "pixels" in settings.baselines:
        images_of(data.train, "baselines: pixels")


def images_of(samples: SampleSet, what: str) -> ImageSet:
    """Return the samples as images.

    Raises:
        ConfigError: if they are not, because ``what``, a key of the evaluation with its value, is only for images.
    """
    if not isinstance(samples, ImageSet):
        raise ConfigError(f"evaluation.{what} is for images, but {samples.name} holds {samples.noun}s")
    return samples


def _check_corrupted(settings: Corrupted, clean: ImageSet, *, name: str, verify: Verify) -> None:
    """Raise if the corrupted test images that the settings select are missing, damaged or not of ``clean``."""
    by_severity = corruptions_of(settings, name)
    if settings.dir is None:
        return
    for severity, corruptions in by_severity.items():
        for corruption in corruptions:
            try:
                check_corrupted(
                    name, dir=settings.dir, corruption=corruption, severity=severity, clean=clean, verify=verify
                )
            except ConfigError as error:
                raise type(error)(f"evaluation.corrupted.dir: {error}") from error


def corruptions_of(settings: Corrupted, name: str) -> dict[int, list[str]]:
    """Return the corruptions of the clean data set ``name`` by severity: the configured ones, or all available ones.

    Raises:
        DataError: if the folder of the official set does not exist.
        ConfigError: if it lacks a configured corruption or severity, or there is no official set.
    """
    if settings.dir is None:
        return {severity: list(settings.corruptions or CORRUPTIONS) for severity in settings.severities}
    try:
        available = corrupted_available(name, settings.dir)
    except ConfigError as error:
        raise type(error)(f"evaluation.corrupted.dir: {error}") from error
    selected = {}
    for severity in settings.severities:
        present = [corruption for corruption, severities in available.items() if severity in severities]
        missing = [corruption for corruption in settings.corruptions or [] if corruption not in present]
        if missing:
            raise ConfigError(
                f"evaluation.corrupted.corruptions: {settings.dir} has no {missing[0]!r} of severity {severity}; "
                f"{nearest(missing[0], present)}"
            )
        if len(present) < (2 if "within" in settings.meanings else 1):
            raise ConfigError(
                f"evaluation.corrupted.severities: {settings.dir} has "
                f"{pluralize(len(present), 'corruption')} of severity {severity}, too few"
            )
        selected[severity] = settings.corruptions or present
    return selected
