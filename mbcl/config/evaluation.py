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
"""Draws of the views at most; their mean then has less than a twentieth of the spread of one draw."""
_CLASSIFIER_METRICS = ("knn", "probe")


def _refuse_duplicates(key: str, values: Sequence[object]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise PathConfigError(key, f"{value!r} is given twice")


class Corrupted(ConfigModel):
    """Retrieval under corruption."""

    meanings: list[Literal["within", "clean"]] = Field(default=["within", "clean"], min_length=1)
    """`within`, as published: among the corrupted versions of one image, view 1 of a corruption must find view 2 of the
    same corruption. `clean`: a corrupted image must find its original among all images."""
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    """Severities of the corruptions."""
    corruptions: list[str] | None = Field(default=None, min_length=1)
    """Names of corruptions; null: all fifteen, or all that `dir` holds. `within` needs at least two."""
    dir: str | None = None
    """Folder of the data set's official corrupted version, only with `split: test`; null: images are corrupted as
    needed."""

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
    """Neighbours that vote."""
    weighting: Literal["similarity", "uniform"] = "similarity"
    """Whether nearer neighbours count more."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the weights of `similarity`."""


class Probe(ConfigModel):
    """The linear probe, logistic regression; see :func:`mbcl.metrics.choose_probe`."""

    penalties: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0, 0.1, 0.01, 0.001, 0.0001], min_length=1)
    """Candidates, of which the best accuracy on the held-out share decides."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training features that chooses the penalty."""


class Evaluation(ConfigModel):
    """The measurements after training, made once, and those of its validations."""

    split: Literal["test", "validation", "train"] = "test"
    """The images to measure. `train` has the training images without the validation split; the published evaluation
    took all of them. `knn` and `probe` refuse it."""
    metrics: list[Metric] = Field(default=["retrieval"], min_length=1)
    """What is measured. `knn` and `probe` are fitted on the features of the training images."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of retrieval; `dot` as published."""
    draws: int = Field(default=20, ge=1, le=MAX_DRAWS)
    """Draws of the two views over which retrieval, also within corruptions, is a mean; the same draws for all seeds. G
    draws are consecutive pairs of G + 1 views of each image. 1 as published: one draw by the experiment's own seed."""
    validation_draws: int = Field(default=5, ge=1, le=MAX_DRAWS)
    """The same for the validations of the training."""
    validation_metrics: list[Literal["knn", "probe"]] = []
    """What a validation measures besides retrieval, on the validation images, fitted on the training images: for a
    search by `val/knn/top1` or `val/probe/top1`. Each validation then embeds the training images."""
    batch_size: int = Field(default=512, ge=1)
    """Images of a forward pass."""
    baselines: list[Baseline] = []
    """The same metrics of the `random` initial weights (published as epoch -1) and of raw `pixels`."""
    corrupted: Corrupted = Corrupted()
    """Retrieval under corruption."""
    knn: Neighbours = Neighbours()
    """The vote of the nearest training images."""
    probe: Probe = Probe()
    """The linear classifier."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Evaluation:
        _refuse_duplicates("metrics", self.metrics)
        _refuse_duplicates("baselines", self.baselines)
        _refuse_duplicates("validation_metrics", self.validation_metrics)
        fitted = [metric for metric in self.metrics if metric in _CLASSIFIER_METRICS]
        if fitted and self.split == "train":
            message = f"found train, the images that {fitted[0]} is fitted on; allowed with it: test, validation"
            raise PathConfigError("split", message)
        if "corrupted" in self.metrics and self.corrupted.dir is not None and self.split != "test":
            message = f"official corrupted sets are of the test images, but split is {self.split}"
            raise PathConfigError("corrupted.dir", message)
        return self
