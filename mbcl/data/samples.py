"""Samples in memory: what training and evaluation ask of a data set, whatever its samples are made of.

Letters: N samples, B samples of a batch, V views.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from mbcl.errors import DataError

S = TypeVar("S", bound="SampleSet")

Channels: TypeAlias = int | tuple[int, int]
"""The width of an encoder's input: the channels of images, or the widths of both sides of pairs."""
TWO_VIEWS = range(2)
_SHOWN = 3


class SampleSet(ABC):
    """Samples with two views and a label each. Position p of a batch plan is sample p.

    The input of a model is one tensor. The two views of B samples are its 2B rows: all first views, then all second
    views.
    """

    noun: ClassVar[str]
    """What a sample is called in messages."""
    draws_when_measured: ClassVar[bool]
    """Whether retrieval is measured on augmented views, so that it varies from draw to draw."""
    name: str
    labels: Tensor
    """(N,) int64 on the CPU. Pretraining never reads them."""
    labelled: bool = True
    """Whether the labels mean anything; otherwise all are 0."""
    why_unlabelled: ClassVar[str]
    """Why the labels of a set mean nothing, for messages: its samples are so."""
    classes: tuple[str, ...] = ()
    """Class names, indexed by label; empty if there are none."""
    files: tuple[str, ...] = ()
    """A name of each sample; empty if there are none."""
    sources: Mapping[str, str] = {}
    """What the samples were made from, with versions or digests, where other sources make other samples."""

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @property
    @abstractmethod
    def channels(self) -> Channels:
        """The width of the encoder's input."""

    @property
    @abstractmethod
    def view_size(self) -> int:
        """The numbers of a view, apart from its channels."""

    @property
    @abstractmethod
    def shape_text(self) -> str:
        """The shape of a stored sample, for messages."""

    @abstractmethod
    def part(self: S, positions: Tensor) -> S:
        """Return the subset at ``positions`` ((M,) int64), in that order. It shares this set's memory."""

    @abstractmethod
    def subset(self: S, positions: Tensor) -> S:
        """Return the subset at ``positions`` ((M,) int64), in that order. It owns a copy of its samples."""

    @abstractmethod
    def to(self: S, device: torch.device | str) -> S:
        """Return the set with ``device`` as the device of its views."""

    @abstractmethod
    def views(self, positions: Tensor, *, seed: int, epoch: int, numbers: range = TWO_VIEWS) -> Tensor:
        """Return augmented views of the samples at (B,) int64 positions on the CPU, one after another.

        They are (VB, ...) float32 for V numbers. A view is a pure function of (seed, epoch, position, number). Samples
        that are measured as they are have no other numbers than 0 and 1.
        """

    @abstractmethod
    def clean(self, positions: Tensor) -> Tensor:
        """Return the model's input for the samples without augmentation: B rows, or 2B where both views differ."""

    @abstractmethod
    def clean_views(self, positions: Tensor) -> Tensor:
        """Return both views without augmentation, in the form of :meth:`views`."""

    @abstractmethod
    def by_sample(self, outputs: Tensor) -> Tensor:
        """Return one row of outputs for each sample, from a model's outputs for :meth:`clean`."""

    @abstractmethod
    def split(self, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Split the positions into two disjoint parts, two ascending int64; ``fraction`` is the second part's share.

        Raises:
            ConfigError: if the fraction is not in (0, 1), or there are too few samples.
        """

    @abstractmethod
    def stored_bytes(self) -> dict[int, int]:
        """Return the bytes of memory by address, without memory-mapped ones. Subsets may share them."""

    @abstractmethod
    def contents(self) -> Iterator[bytes]:
        """Yield the content of each sample, equal for equal samples."""

    @abstractmethod
    def describe_input(self) -> dict[str, Any]:
        """Return what an exported model expects as its input."""

    def shown(self, positions: Tensor) -> list[dict[str, str]]:
        """Return what a person can see of the samples at some positions: ``picture`` or ``text``, or nothing."""
        return [{} for _ in positions]

    def to_eval_draws(self, draws: int) -> int:
        """Return the draws over which a metric is a mean: one where all would be the same."""
        return draws if self.draws_when_measured else 1


@dataclass(frozen=True)
class Splits:
    """The training and test parts of a data set. :func:`split_validation` splits the training part further.

    ``pixels_sha256``: the digest of all pixels where it is known, as that of a pack is; see :mod:`mbcl.data.content`.
    """

    train: SampleSet
    test: SampleSet
    pixels_sha256: str | None = field(default=None, kw_only=True)


def check_labels(name: str, noun: str, num: int, labels: Tensor) -> None:
    """Raise DataError unless there are samples, and as many int64 labels."""
    if num == 0:
        raise DataError(f"{name}: it holds no {noun}s")
    if labels.shape != (num,) or labels.dtype != torch.int64:
        raise DataError(f"{name}: {num} {noun}s need as many int64 labels, found {tuple(labels.shape)} {labels.dtype}")


def validation_positions(train: SampleSet, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the positions of the training and validation samples of :func:`split_validation`, two ascending int64."""
    return train.split(fraction, seed, "validation")


def split_validation(train: S, fraction: float = 0.1, *, seed: int) -> tuple[S, S]:
    """Split a training set into disjoint training and validation sets, seeded; images are stratified by label.

    Both parts keep the order of the whole set. Positions start at 0 in each.

    Raises:
        ConfigError: if the fraction is not in (0, 1), or there are fewer than two samples.
    """
    positions, held_out = validation_positions(train, fraction, seed=seed)
    return train.part(positions), train.part(held_out)


def differing_sources(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Describe the first sources that differ, such as versions of packages; empty if none does.

    Example:
        >>> differing_sources({"numpy": "2.3.0", "torch": "2.14.0"}, {"numpy": "2.4.0", "torch": "2.14.0"})
        'numpy was 2.3.0, now 2.4.0'
    """
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    shown = [f"{name} was {earlier.get(name, 'absent')}, now {now.get(name, 'absent')}" for name in names[:_SHOWN]]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "; ".join(shown + more)
