"""The two data types that samplers, engine and planner share: embeddings of the samples, and batch plans.

Letters: N samples of the data set, M rows of embeddings, D dimensions, S batches of a plan, B samples per batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import ConfigError, PlanError
from mbcl.io.files import atomic_write
from mbcl.io.npz import read_arrays

CHUNK_ELEMENTS = 2**22
"""Maximum number of elements that one chunk of a check reads, to bound its temporary memory."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of two views of some samples, not normalised.

    Args:
        z1: (M, D) float with D >= 1, view 1. float16 and bfloat16 are converted to float32; float64 is kept.
        z2: (M, D) float, view 2, same dtype and device as ``z1``. The sides of pairs may have a width each, (M, D1) and
            (M, D2), for samplers that compare no side with the other (:func:`mbcl.samplers.check_widths`).
        indices: (M,) int64, the data-set position of each row; ``arange(M)`` if omitted.

    Raises:
        PlanError: if shapes, dtypes or devices do not fit, or an entry is not finite.
    """

    z1: Tensor
    z2: Tensor
    indices: Tensor = field(default=None)  # type: ignore[assignment]  # filled below, never None afterwards

    def __post_init__(self) -> None:
        for name in ("z1", "z2", "indices"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not (name == "indices" and value is None):
                raise PlanError(f"embeddings: {name} must be a torch tensor, found a {type(value).__name__}")
        if self.z1.ndim != 2 or self.z2.ndim != 2 or len(self.z1) != len(self.z2):
            found = f"found {tuple(self.z1.shape)} and {tuple(self.z2.shape)}"
            if self.z1.ndim == self.z2.ndim == 2:
                found += "; both sides must have one row for each sample"
            raise PlanError(f"embeddings must be two (M, D) tensors, {found}")
        if 0 in self.widths:
            found = f"found {tuple(self.z1.shape)} and {tuple(self.z2.shape)}"
            raise PlanError(f"embeddings must have at least one dimension, {found}")
        if self.z1.dtype != self.z2.dtype or self.z1.dtype not in FLOATS:
            raise PlanError(f"embeddings must share one float dtype, found {self.z1.dtype} and {self.z2.dtype}")
        if self.z1.device != self.z2.device:
            raise PlanError(f"embeddings must be on one device, found {self.z1.device} and {self.z2.device}")
        if self.z1.dtype in (torch.float16, torch.bfloat16):
            object.__setattr__(self, "z1", self.z1.float())
            object.__setattr__(self, "z2", self.z2.float())
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.z1)))  # type: ignore[unreachable]
        if self.indices.shape != (len(self.z1),) or self.indices.dtype != torch.int64:
            raise PlanError(
                f"indices must be ({len(self.z1)},) int64, found {tuple(self.indices.shape)} {self.indices.dtype}"
            )
        for name in ("z1", "z2"):
            bad = _rows_not_finite(getattr(self, name))
            if len(bad):
                row, sample = int(bad[0]), int(self.indices[bad[0]])
                place = f"row {row}" + (f", sample {sample}" if sample != row else "")
                raise PlanError(f"embeddings {name}: {len(bad)} of {len(self.z1)} rows are not finite, first {place}")

    def __len__(self) -> int:
        return len(self.z1)

    @property
    def widths(self) -> tuple[int, int]:
        """D of both sides."""
        return self.z1.shape[1], self.z2.shape[1]

    def ordered(self, num_samples: int) -> Embeddings:
        """Return the same embeddings, sorted so that row p holds data-set position p.

        Raises:
            PlanError: unless every position of ``range(num_samples)`` occurs exactly once.
        """
        positions = self.indices.cpu()
        in_range = len(positions) == 0 or bool((positions.min() >= 0) & (positions.max() < num_samples))
        if len(positions) != num_samples or not in_range or len(torch.unique(positions)) != num_samples:
            span = f", at positions {positions.min()} to {positions.max()}" if len(positions) else ""
            raise PlanError(
                f"embeddings must hold each of the {num_samples} samples once, found {len(positions)} rows "
                f"of {len(torch.unique(positions))} samples{span}; allowed are 0 to {num_samples - 1}"
            )
        expected = torch.arange(num_samples)
        if torch.equal(positions, expected):
            return self
        order = torch.argsort(positions).to(self.z1.device)
        return Embeddings(self.z1[order], self.z2[order], expected)

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Concatenate the rows of all parts in order; a single part is returned without a copy."""
        if len(parts) == 1:
            return parts[0]
        return Embeddings(
            torch.cat([part.z1 for part in parts]),
            torch.cat([part.z2 for part in parts]),
            torch.cat([part.indices for part in parts]),
        )


def _rows_not_finite(z_MD: Tensor) -> Tensor:
    """Return the ascending indices of rows that contain NaN or an infinity."""
    rows = max(1, CHUNK_ELEMENTS // z_MD.shape[1])
    return (~torch.cat([torch.isfinite(part).all(dim=1) for part in z_MD.split(rows)])).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of an epoch or a part of it: the samples that meet in each training step.

    Args:
        batches: (S, B) int64 CPU tensor of data-set positions, one row per batch, in training order.
        sampler: the name of the sampler that made the plan.
        seed, epoch, round: the seed, epoch and round for which the plan was made.
        scores: (S,) float64 CPU tensor, the loss by which the sampler ranked each batch, or None.
        batch_conflicts: (S,) int64 CPU tensor, the number of pairs of a sample and another one that ``skip``, a margin
            or ``apart`` excludes and that share the batch nevertheless; None if nothing is to be kept apart.
    """

    batches: Tensor
    sampler: str
    seed: int = 0
    epoch: int = 0
    round: int = 0
    scores: Tensor | None = None
    batch_conflicts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.batches.ndim != 2 or self.batches.dtype != torch.int64 or self.batches.device.type != "cpu":
            raise PlanError(
                f"batches must be an (S, B) int64 CPU tensor, found {tuple(self.batches.shape)} "
                f"{self.batches.dtype} on {self.batches.device}"
            )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def conflicts(self) -> int | None:
        """The conflicts of all batches; None if nothing is to be kept apart."""
        return None if self.batch_conflicts is None else int(self.batch_conflicts.sum())

    @property
    def digest(self) -> str:
        """32 hexadecimal digits (BLAKE2b) that are equal if and only if the batches are equal, in shape and order."""
        content = np.ascontiguousarray(self.batches.numpy(), dtype="<i8")
        return hashlib.blake2b(repr(content.shape).encode() + content.tobytes(), digest_size=16).hexdigest()

    def coverage(self, num_samples: int) -> float:
        """Return the fraction of the data set that the plan visits, in [0, 1]."""
        return len(torch.unique(self.batches)) / num_samples

    def validate(self, num_samples: int, *, distinct: bool) -> BatchPlan:
        """Return the plan itself if it is valid.

        Args:
            num_samples: N; every position must be in ``range(N)``.
            distinct: whether the sampler guarantees that the plan visits no sample twice.

        Raises:
            PlanError: if the plan is empty, or a position is out of range, or repeated in a batch, or (``distinct``) in
                the plan.
        """
        if self.batches.numel() == 0:
            raise PlanError(f"{self.sampler}: the plan is empty")
        low, high = int(self.batches.min()), int(self.batches.max())
        if low < 0 or high >= num_samples:
            raise PlanError(f"{self.sampler}: positions must be in 0..{num_samples - 1}, found {low}..{high}")
        rows = self.batches.sort(dim=1).values
        if bool((rows[:, 1:] == rows[:, :-1]).any()):
            raise PlanError(f"{self.sampler}: a batch holds a sample twice")
        if distinct and len(torch.unique(self.batches)) != self.batches.numel():
            raise PlanError(f"{self.sampler}: the plan visits a sample twice")
        return self

    def to_bytes(self) -> bytes:
        """Return the content of the file that :meth:`save` writes."""
        stream = BytesIO()
        np.savez(
            stream,
            batches=self.batches.numpy().astype(np.int32),
            sampler=np.array(self.sampler),
            seed=np.array(self.seed),
            epoch=np.array(self.epoch),
            round=np.array(self.round),
            scores=np.zeros(0) if self.scores is None else self.scores.numpy(),
            digest=np.array(self.digest),
        )
        return stream.getvalue()

    def save(self, path: Path | str) -> None:
        """Write the plan as ``.npz`` (batches as int32) atomically, see :func:`mbcl.io.files.atomic_write`."""
        with atomic_write(Path(path)) as stream:
            stream.write(self.to_bytes())

    @staticmethod
    def load(path: Path | str) -> BatchPlan:
        """Read a plan that :meth:`save` wrote.

        Raises:
            PlanError: if the file is not a plan or its digest does not match its batches.
        """
        try:
            stored = read_arrays(path, ("batches", "sampler", "seed", "epoch", "round", "scores", "digest"))
        except ConfigError as error:
            raise PlanError(f"not a batch plan: {error}") from error
        batches, scores = stored["batches"], stored["scores"]
        if batches.ndim != 2 or batches.dtype.kind != "i" or scores.ndim != 1 or scores.dtype != np.float64:
            raise PlanError(
                f"not a batch plan: {path}: batches are {batches.shape} {batches.dtype}, scores {scores.shape} "
                f"{scores.dtype}; expected (S, B) int32 and (S,) float64"
            )
        numbers = {name: stored[name] for name in ("seed", "epoch", "round")}
        if any(array.ndim or array.dtype.kind not in "iu" for array in numbers.values()):
            raise PlanError(f"not a batch plan: {path}: seed, epoch and round must be whole numbers")
        if stored["sampler"].ndim or stored["sampler"].dtype.kind != "U" or not str(stored["sampler"]).isprintable():
            raise PlanError(f"not a batch plan: {path}: sampler must be a name")
        plan = BatchPlan(
            batches=torch.from_numpy(batches.astype(np.int64)),
            sampler=str(stored["sampler"]),
            seed=int(numbers["seed"]),
            epoch=int(numbers["epoch"]),
            round=int(numbers["round"]),
            scores=torch.from_numpy(scores) if len(scores) else None,
        )
        if str(stored["digest"]) != plan.digest:
            raise PlanError(f"{path}: the plan's digest does not match its batches")
        return plan
