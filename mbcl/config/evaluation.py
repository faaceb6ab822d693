"""The ``evaluation`` block of an experiment: the measurements after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.data import CORRUPTIONS
from mbcl.errors import nearest

Metric = Literal["retrieval", "corrupted", "knn", "probe", "repr"]
Baseline = Literal["random", "pixels"]
MAX_DRAWS = 1000
"""Draws of the views at most; their mean then has a thirtieth of the spread of one draw."""
_CLASSIFIER_METRICS = ("knn", "probe")


def _refuse_duplicates(key: str, values: Sequence[object]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise PathConfigError(key, f"{value!r} is given twice")


class Corrupted(ConfigModel):
    """Retrieval under corruption.

    ``meanings``: the retrieval tasks. ``within``, as published: among the corrupted versions of one image, view 1 of a
    corruption must find view 2 of the same corruption. ``clean``: a corrupted image must find its original among all
    images.

    ``severities``: any of 1 to 5. ``corruptions``: null for all.

    ``dir``: the folder of the data set's official corrupted version; null then means all corruptions of that version.
    Without ``dir``, images are corrupted as needed.
    """

    meanings: list[Literal["within", "clean"]] = Field(default=["within", "clean"], min_length=1)
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    corruptions: list[str] | None = Field(default=None, min_length=1)
    dir: str | None = None

    @model_validator(mode="after")
    def _corruptions_fit(self) -> Corrupted:
        for key in ("meanings", "severities", "corruptions"):
            _refuse_duplicates(key, getattr(self, key) or [])
        if self.corruptions is None:
            return self
        unknown = [name for name in self.corruptions if name not in CORRUPTIONS]
        if unknown and self.dir is None:
            hint = nearest(unknown[0], CORRUPTIONS)
            raise PathConfigError("corruptions", f"unknown corruption {unknown[0]!r}; {hint}")
        if len(self.corruptions) < 2 and "within" in self.meanings:
            message = f"found only {self.corruptions[0]!r}, but meaning within tells corruptions apart"
            raise PathConfigError("corruptions", message)
        return self


class Neighbours(ConfigModel):
    """The k-nearest-neighbour vote; see :func:`mbcl.metrics.knn`."""

    k: int = Field(default=20, ge=1)
    weighting: Literal["similarity", "uniform"] = "similarity"
    temperature: float = Field(default=0.07, gt=0)


class Probe(ConfigModel):
    """The linear probe, logistic regression; see :func:`mbcl.metrics.choose_probe`.

    ``penalties``: the candidates; the best accuracy on the share ``held_out`` of the training features decides.
    """

    penalties: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0, 0.1, 0.01, 0.001, 0.0001], min_length=1)
    held_out: float = Field(default=0.2, gt=0, lt=1)


class Evaluation(ConfigModel):
    """The measurements after training, made once.

    ``split``: the images to measure. ``train`` has the training images without the validation split; the published
    evaluation took all of them.

    ``metrics``: any of ``retrieval``, ``corrupted``, ``knn``, ``probe``, ``repr``. The classifiers, ``knn`` and
    ``probe``, are fitted on the features of the training images.

    ``similarity``: the similarity of retrieval; ``dot`` as published.

    ``draws``: draws of the two views over which retrieval, also within corruptions, is a mean; the same draws for all
    seeds. 1 as published: one draw by the experiment's own seed. ``validation_draws``: the same for the validation
    during training.

    ``baselines``: the same metrics for the ``random`` initial weights (published as epoch -1) and for raw ``pixels``.
    """

    split: Literal["test", "validation", "train"] = "test"
    metrics: list[Metric] = Field(default=["retrieval"], min_length=1)
    similarity: Literal["cosine", "dot"] = "cosine"
    draws: int = Field(default=20, ge=1, le=MAX_DRAWS)
    validation_draws: int = Field(default=5, ge=1, le=MAX_DRAWS)
    batch_size: int = Field(default=512, ge=1)
    baselines: list[Baseline] = []
    corrupted: Corrupted = Corrupted()
    knn: Neighbours = Neighbours()
    probe: Probe = Probe()

    @model_validator(mode="after")
    def _keys_fit(self) -> Evaluation:
        _refuse_duplicates("metrics", self.metrics)
        _refuse_duplicates("baselines", self.baselines)
        fitted = [metric for metric in self.metrics if metric in _CLASSIFIER_METRICS]
        if fitted and self.split == "train":
            message = f"found train, the images that {fitted[0]} is fitted on; allowed with it: test, validation"
            raise PathConfigError("split", message)
        if "corrupted" in self.metrics and self.corrupted.dir is not None and self.split != "test":
            message = f"official corrupted sets are of the test images, but split is {self.split}"
            raise PathConfigError("corrupted.dir", message)
        return self
