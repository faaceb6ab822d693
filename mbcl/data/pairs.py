"""Pairs in memory: two sides of a sample, each with a row of numbers, such as a function and its docstring.

Letters: N pairs, B pairs of a batch, D1 and D2 numbers of the sides, W the larger of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.data.messages import shortened
from mbcl.data.samples import TWO_VIEWS, SampleSet, check_labels
from mbcl.data.views.counter_rng import uniforms
from mbcl.errors import ConfigError, DataError
from mbcl.seeding import derive, numpy_generator


@dataclass(frozen=True)
class PairSet(SampleSet):
    """Pairs with labels. The first view of a pair is its side 1, the second view its side 2.

    The model's input for B pairs has 2B rows: side 1 of all, then side 2 of all. The narrower side is padded with
    zeros to W numbers.

    Training and planning drop numbers of both sides at the rate ``dropout``, divided by what is left, so that their
    mean stays. Validation and evaluation measure the pairs as they are.

    Args:
        x1: (M, D1) float32, on any device; M is N unless ``rows`` selects the N of this set.
        x2: (M, D2) float32, on the same device.
        labels: (N,) int64, on the CPU.
        name: name of the data set, for messages.
        groups: (N,) int64, on the CPU: pairs of one group, such as one file, stay together when a part is split off;
            each pair is a group if None.
        dropout: rate, in [0, 1).
        labelled: whether the labels mean anything.
        classes: names of the labels; empty if there are none.
        sources: see :class:`SampleSet`.
        texts: one for each pair, for people; empty if there are none.
        device: the device of the views; that of ``x1`` if None.
        rows: (N,) int64 on the CPU, the row of each pair; the identity if None.

    Raises:
        DataError: if the set is empty, if shapes and dtypes do not match, or a number is not finite.
    """

    noun: ClassVar[str] = "pair"
    draws_when_measured: ClassVar[bool] = False
    why_unlabelled: ClassVar[str] = "in files without labels"

    x1: Tensor
    x2: Tensor
    labels: Tensor
    name: str
    groups: Tensor | None = None
    dropout: float = 0.0
    labelled: bool = True
    classes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    texts: tuple[str, ...] = field(default=(), repr=False)
    device: torch.device | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        for side, x in (("x1", self.x1), ("x2", self.x2)):
            if x.ndim != 2 or x.dtype != torch.float32 or x.shape[1] == 0:
                raise DataError(f"{self.name}: {side} must be (N, D) float32, found {tuple(x.shape)} {x.dtype}")
        if len(self.x1) != len(self.x2):
            raise DataError(f"{self.name}: x1 has {len(self.x1)} rows, x2 has {len(self.x2)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"data: dropout must be in [0, 1), found {self.dropout}")
        check_labels(self.name, self.noun, len(self), self.labels)

    def __len__(self) -> int:
        return len(self.x1 if self.rows is None else self.rows)

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of both sides, D1 and D2."""
        return self.x1.shape[1], self.x2.shape[1]

    @property
    def view_size(self) -> int:
        """W, the numbers of a view."""
        return max(self.channels)

    @property
    def shape_text(self) -> str:
        """The numbers of both sides."""
        return " + ".join(map(str, self.channels))

    def part(self, positions: Tensor) -> PairSet:
        """Return the subset at ``positions``, in that order. It shares this set's memory."""
        rows = positions if self.rows is None else self.rows[positions]
        groups = None if self.groups is None else self.groups[positions]
        texts = tuple(self.texts[position] for position in positions.tolist()) if self.texts else ()
        return replace(self, rows=rows, labels=self.labels[positions], groups=groups, texts=texts)

    def subset(self, positions: Tensor) -> PairSet:
        """Return the subset at ``positions``, in that order. It owns a copy of its numbers."""
        x1, x2 = self._gather(positions)
        return replace(self.part(positions), x1=x1, x2=x2, rows=None)

    def to(self, device: torch.device | str) -> PairSet:
        """Return the set with all its numbers on ``device``."""
        device = torch.device(device)
        if self.x1.device == device:
            return replace(self, device=device)
        x1, x2 = (x.to(device) for x in self._gather(torch.arange(len(self))))
        return replace(self, x1=x1, x2=x2, rows=None, device=device)

    @torch.no_grad()
    def views(self, positions: Tensor, *, seed: int, epoch: int, numbers: range = TWO_VIEWS) -> Tensor:
        """Return both sides with dropped numbers, (2B, W); see :meth:`SampleSet.views`."""
        assert numbers == TWO_VIEWS, f"{numbers}"
        if self.dropout == 0:
            return self.clean_views(positions)
        sides = []
        for side, x in enumerate(self._gather(positions)):
            drawn = uniforms(derive(seed, "dropout", epoch, side), positions, x.shape[1])
            kept = (drawn >= self.dropout).to(x.device)
            sides.append(x.mul_(kept).div_(1 - self.dropout))
        return self._stacked(sides[0], sides[1])

    def clean(self, positions: Tensor) -> Tensor:
        """Return both sides, (2B, W)."""
        return self.clean_views(positions)

    def clean_views(self, positions: Tensor) -> Tensor:
        """Return both sides, (2B, W)."""
        return self._stacked(*self._gather(positions))

    def by_sample(self, outputs: Tensor) -> Tensor:
        """Return the outputs of side 1 and side 2 of a pair beside each other, (2B, F) to (B, 2F)."""
        num = len(outputs) // 2
        return torch.cat([outputs[:num], outputs[num:]], dim=1)

    def split(self, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Split off whole groups in random order, until the second part has its share; both parts get a group."""
        if not 0.0 < fraction < 1.0:
            raise ConfigError(f"the fraction of a split must be in (0, 1), found {fraction}")
        groups = torch.arange(len(self)) if self.groups is None else self.groups
        _, inverse, counts = groups.unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            what = "pairs" if self.groups is None else "groups of them"
            why = "" if self.groups is None else "; the test part and the validation part take whole groups"
            raise ConfigError(f"data: a split of pairs needs at least 2 {what}, found {len(counts)}{why}")
        order = torch.from_numpy(numpy_generator(seed, purpose).permutation(len(counts)))
        before = counts[order].cumsum(0) - counts[order]
        second = order[: max(1, min(int((before < round(len(self) * fraction)).sum()), len(counts) - 1))]
        in_second = torch.isin(inverse, second)
        return (~in_second).nonzero()[:, 0], in_second.nonzero()[:, 0]

    def stored_bytes(self) -> dict[int, int]:
        """Return the bytes of both sides by their address."""
        return {x.data_ptr(): x.nbytes for x in (self.x1, self.x2)}

    def shown(self, positions: Tensor) -> list[dict[str, str]]:
        """Return the texts of pairs that have any, shortened, under ``text``."""
        if not self.texts:
            return super().shown(positions)
        return [{"text": shortened(self.texts[position])} for position in positions.tolist()]

    def contents(self) -> Iterator[bytes]:
        """Yield the bytes of both sides of each pair."""
        x1, x2 = (x.cpu().numpy() for x in self._gather(torch.arange(len(self))))
        return (a.tobytes() + b.tobytes() for a, b in zip(x1, x2, strict=True))

    def describe_input(self) -> dict[str, Any]:
        """Return the widths of both sides."""
        return {
            "widths": list(self.channels),
            "note": "2B rows: side 1 of all pairs, then side 2, the narrower side padded with zeros; or "
            "model.encoder.side(1) and .side(2) on the rows of one side",
        }

    def _gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rows = positions if self.rows is None else self.rows[positions.to(self.rows.device)]
        rows = rows.to(self.x1.device)
        return self.x1[rows], self.x2[rows]

    def _stacked(self, x1: Tensor, x2: Tensor) -> Tensor:
        rows = torch.cat([F.pad(x, (0, self.view_size - x.shape[1])) for x in (x1, x2)])
        return rows if self.device is None else rows.to(self.device)
