"""Whether an evaluation can be had of these images: checked before training starts, and before evaluating."""

from __future__ import annotations

from mbcl.config.evaluation import Corrupted, Evaluation
from mbcl.data import CORRUPTIONS, ImageSet, check_corrupted, corrupted_available
from mbcl.data.datasets.request import Verify
from mbcl.engine.setup import SplitData
from mbcl.errors import ConfigError, nearest


def check_evaluation(settings: Evaluation, data: SplitData, *, name: str, verify: Verify = "warn") -> None:
    """Refuse an evaluation that these images cannot have.

    Args:
        settings: what is to be measured.
        data: the images.
        name: the data set's.
        verify: what is not official of a corrupted set is a warning, or an error.

    Raises:
        ConfigError: naming the key, what was found and what is allowed.
        DataError: if files of a corrupted set are missing or damaged, or are not of these images.
    """
    num_train, metrics = len(data.train), settings.metrics
    if "knn" in metrics and settings.knn.k > num_train:
        raise ConfigError(f"evaluation.knn.k: {settings.knn.k} is above the {num_train} training images of {name}")
    if "probe" in metrics and len(data.train.labels.unique()) < 2:
        raise ConfigError(f"evaluation.metrics: probe needs 2 classes, but the training images of {name} have one")
    if "repr" in metrics and len(data.part(settings.split)) < 2:
        raise ConfigError(f"evaluation.metrics: repr needs 2 images, but the {settings.split} part of {name} has one")
    if "corrupted" in metrics:
        _check_corrupted(settings.corrupted, data.test, name=name, verify=verify)


def _check_corrupted(settings: Corrupted, clean: ImageSet, *, name: str, verify: Verify) -> None:
    wanted = corruptions_of(settings, name)
    if settings.dir is None:
        return
    for severity, corruptions in wanted.items():
        for corruption in corruptions:
            try:
                check_corrupted(
                    name, dir=settings.dir, corruption=corruption, severity=severity, clean=clean, verify=verify
                )
            except ConfigError as error:
                raise type(error)(f"evaluation.corrupted.dir: {error}") from error


def corruptions_of(settings: Corrupted, name: str) -> dict[int, list[str]]:
    """By severity, the corruptions that are evaluated: those asked for, or all that there are.

    Args:
        settings: what is asked for.
        name: the clean data set's.

    Raises:
        DataError: if the official set's folder is not there.
        ConfigError: if it has not what is asked for, or there is no official set.
    """
    if settings.dir is None:
        return {severity: list(settings.corruptions or CORRUPTIONS) for severity in settings.severities}
    try:
        available = corrupted_available(name, settings.dir)
    except ConfigError as error:
        raise type(error)(f"evaluation.corrupted.dir: {error}") from error
    found = {}
    for severity in settings.severities:
        there = [corruption for corruption, severities in available.items() if severity in severities]
        missing = [corruption for corruption in settings.corruptions or [] if corruption not in there]
        if missing:
            raise ConfigError(
                f"evaluation.corrupted.corruptions: {settings.dir} has no {missing[0]!r} of severity {severity}; "
                f"{nearest(missing[0], there)}"
            )
        if len(there) < (2 if "within" in settings.meanings else 1):
            raise ConfigError(
                f"evaluation.corrupted.severities: {settings.dir} has {len(there)} corruptions of severity {severity}, "
                f"too few"
            )
        found[severity] = settings.corruptions or there
    return found
