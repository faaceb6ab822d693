"""Whether an evaluation can be had of these images: checked before training starts, and before evaluating."""

from __future__ import annotations

from mbcl.data import CORRUPTIONS, corrupted_available
from mbcl.engine.prepare import SplitData
from mbcl.errors import ConfigError, nearest
from mbcl.evaluation_settings import Corrupted, Evaluation


def check_evaluation(settings: Evaluation, data: SplitData, *, name: str) -> None:
    """Refuse an evaluation that these images cannot have.

    Args:
        settings: what is to be measured.
        data: the images.
        name: the data set's.

    Raises:
        ConfigError: naming the key, what was found and what is allowed.
    """
    num_train, metrics = len(data.train), settings.metrics
    if "knn" in metrics and settings.knn.k > num_train:
        raise ConfigError(f"evaluation.knn.k: {settings.knn.k} is above the {num_train} training images of {name}")
    if "probe" in metrics and len(data.train.labels.unique()) < 2:
        raise ConfigError(f"evaluation.metrics: probe needs 2 classes, but the training images of {name} have one")
    if "repr" in metrics and len(data.part(settings.split)) < 2:
        raise ConfigError(f"evaluation.metrics: repr needs 2 images, but the {settings.split} part of {name} has one")
    if "corrupted" in metrics:
        corruptions_of(settings.corrupted, name)


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
