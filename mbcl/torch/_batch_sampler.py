"""The batch sampler that yields planned batches to a ``DataLoader``.

Letters: N samples of the data set, S batches of an epoch, B samples of a global batch, W ranks, b = B / W.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler

from mbcl.errors import CheckpointError, ConfigError
from mbcl.functional import check_count
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Ids, Sampler, with_groups
from mbcl.torch._progress import Count, parse_state, place
from mbcl.torch._short_batch import check_short_batch, left_out_of, num_short
from mbcl.torch._sources import (
    FixedPlan,
    PlanSource,
    SamplerPlans,
    build_sampler,
    source_of,
)


class PlannedBatchSampler(BatchSampler):
    """A batch sampler whose batches are planned: ``DataLoader(dataset, batch_sampler=PlannedBatchSampler(plan))``.

    **Epochs.** Call :meth:`set_epoch` before each epoch, as for a ``DistributedSampler``. An epoch of a plan or of a
    plan file has the same batches each time: in the order of the plan in epoch 0, and in an order drawn from the plan's
    seed and the epoch later. An epoch of a function or a :class:`~mbcl.torch.Replanner` has that epoch's batches.

    **Ranks.** Every rank yields its columns, r*b to (r+1)*b, of the same global batches. B must be a multiple of W.

    **Resuming.** :meth:`state_dict` counts the batches that were *yielded* in this epoch, whoever took them. A
    ``DataLoader`` without workers takes a batch when the loop asks for one, and torchdata's ``StatefulDataLoader``
    takes account of its workers, so both need nothing more. A plain ``DataLoader`` with workers takes up to
    ``num_workers * prefetch_factor`` batches ahead of the loop. Such a loop tells what it has trained on::

        for step, batch in enumerate(loader, start=batches.step):
            ...
            state = batches.state_dict(step + 1)

    After :meth:`load_state_dict` the next iteration begins behind the last batch counted, and the one after it at the
    first. The state holds no rank: it may be loaded on another number of ranks.

    Args:
        plan: a plan; the path of a file that ``mbcl plan`` or :meth:`BatchPlan.save` wrote; a function from epoch to
            plan, which must return the same plan for the same epoch where a training is to be resumed; or a
            :class:`~mbcl.torch.Replanner`.
        rank: r; by default the rank of torch.distributed's process group, 0 without one. The process group may be made
            after the batch sampler, as frameworks do.
        world_size: W; by default that of the process group, 1 without one.
        num_samples: N, for a plan, a file or a function: positions are checked against it, and :attr:`left_out` and
            ``drop_last=False`` need it. A plan that leaves a batch or more of the samples out is warned of, unless its
            sampler may do so, as ``osgd`` and ``walk``.
        drop_last: whether the samples that no batch holds (:attr:`left_out`, N mod B for most samplers) are left out of
            the epoch. If not, they are a last, short batch, in ascending order, of which every rank has its columns.

    Raises:
        ConfigError: if an argument does not fit the others. With ``drop_last=False`` also if the plan repeats samples,
            leaves a batch or more of them out, or keeps sources together; if the short batch is a single sample, which
            has no negatives; or if W ranks cannot share it equally.
        PlanError: if a file is no plan.
    """

    def __init__(
        self,
        plan: BatchPlan | Path | str | Callable[[int], BatchPlan] | PlanSource,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        num_samples: int | None = None,
        drop_last: bool = True,
    ) -> None:
        if num_samples is not None:
            check_count("num_samples", num_samples)
        if not isinstance(drop_last, bool):
            raise ConfigError(f"drop_last must be true or false, found {drop_last!r}")
        self.source = source_of(plan, num_samples)
        self._place = rank, world_size
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0
        """The batch that the next iteration begins with, counted from the epoch's first."""
        self._count: Count | None = None
        self._digest = ""
        self._finished: int | None = None
        if self.source.batch_size is not None:
            self._check_width(self.source.batch_size)
        if not drop_last:
            check_short_batch(self.source, self.epoch, self.world_size)

    @classmethod
    def from_sampler(
        cls,
        sampler: str | Sampler,
        embeddings: Embeddings | None = None,
        *,
        num_samples: int | None = None,
        apart: Ids | None = None,
        together: Ids | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = True,
        **parameters: object,
    ) -> PlannedBatchSampler:
        """Make a batch sampler of the plans of a sampler, a new one each epoch, from embeddings that stay the same.

        Every rank makes the plan itself, from the embeddings that it is given, which must be equal on all ranks.
        Different processors may round differently; a :class:`~mbcl.torch.Replanner` plans on one rank.

        Args:
            sampler: a sampler, or a name with the parameters of :func:`mbcl.samplers.build`, among them ``batch_size``.
            embeddings: of all N samples; None if the sampler needs none.
            num_samples: N; by default the number of embeddings.
            apart: (N,) ids, as :meth:`mbcl.samplers.Sampler.plan` takes them.
            together: (N,) ids, likewise; an epoch then has the batches that the sources fill.
            seed: of the plans.
            rank: see the class.
            world_size: see the class.
            drop_last: see the class.
            parameters: of the named sampler.

        Raises:
            ConfigError: as the class and :func:`mbcl.samplers.build` raise it.
            PlanError: if the embeddings do not hold each sample once.

        Example:
            >>> batches = PlannedBatchSampler.from_sampler("shuffle", num_samples=5, batch_size=2)
            >>> len(batches), [len(batch) for batch in batches], len(batches.left_out)
            (2, [2, 2], 1)
        """
        made = with_groups(build_sampler(sampler, parameters), apart=apart, together=together)
        if made.needs_embeddings and embeddings is None:
            raise ConfigError(f"sampler {made.name!r} plans from embeddings; give embeddings=mbcl.Embeddings(z1, z2)")
        if num_samples is None:
            if embeddings is None:
                raise ConfigError(f"sampler {made.name!r}: num_samples is needed where no embeddings are given")
            num_samples = len(embeddings)
        check_count("num_samples", num_samples)
        check_count("seed", seed, least=0)
        source = SamplerPlans(made, embeddings if made.needs_embeddings else None, num_samples, seed)
        return cls(source, rank=rank, world_size=world_size, drop_last=drop_last)

    # -- what a DataLoader uses --------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """The rank r whose columns are yielded."""
        return place(*self._place)[0]

    @property
    def world_size(self) -> int:
        """The number W of ranks that share each batch."""
        return place(*self._place)[1]

    @property
    def num_samples(self) -> int | None:
        """The samples of the data set, N; None if they are not known."""
        return self.source.num_samples

    @property
    def sampler(self) -> PlannedBatchSampler:  # type: ignore[override]  # not an attribute
        """The batch sampler itself: Lightning and accelerate tell a batch sampler's sampler the epoch."""
        return self

    @property
    def batch_size(self) -> int:  # type: ignore[override]  # not an attribute: some plans are made later
        """The samples of a batch of this rank, b."""
        width = self.source.batch_size or self._plan(self.epoch).batches.shape[1]
        return width // self.world_size

    def __len__(self) -> int:
        """The batches of a whole epoch, wherever an iteration begins. A function's plan is made for it."""
        return self.source.num_batches(self.epoch) + bool(self._num_short(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the epoch's batches, from where :meth:`load_state_dict` points or from the first."""
        # A DataLoader with workers makes an iterator and drops it unused, so nothing happens before the first batch.
        if self._finished == self.epoch and not isinstance(self.source, FixedPlan):
            warnings.warn(f"epoch {self.epoch} has the same batches again: set_epoch was not called", stacklevel=2)
        epoch, (rank, size) = self.epoch, place(*self._place)
        self._num_short(epoch)
        count = self._count_from(epoch, self.start, self._digest)
        self._count, self.start = count, 0
        while (row := self._row(epoch, count.yielded)) is not None:
            share = len(row) // size
            count.add(row)
            yield row[rank * share : (rank + 1) * share].tolist()
        self._finished = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from 0. The epoch of a loaded state keeps the state's batch."""
        check_count("epoch", epoch, least=0)
        if epoch != self.epoch:
            self.epoch, self.start, self._count, self._digest = epoch, 0, None, ""

    # -- resuming ----------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The batches of the epoch that were yielded, in the newest iteration or, before it, in the loaded state."""
        return self.start if self._count is None else self._count.yielded

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Return where the training stands, as plain values.

        Args:
            step: the batches of this epoch that the loop has trained on, counted from the epoch's first; by default
                :attr:`step`, those yielded. A loop in front of a ``DataLoader`` with workers must give it.

        Raises:
            ConfigError: if more batches are given than were yielded.
        """
        if step is None:
            step = self.step
        if check_count("step", step, least=0) > self.step:
            raise ConfigError(f"step: {step} batches are given, {self.step} were yielded in epoch {self.epoch}")
        if self._count is None and step == self.start:
            digest = self._digest
        elif self._count is not None and step == self._count.yielded:
            digest = self._count.digest
        else:
            digest = self._counted(self.epoch, step).digest
        return {"epoch": self.epoch, "step": step, "digest": digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the last batch of a :meth:`state_dict`; the first batch checks that the plan is the same.

        Raises:
            CheckpointError: if it is no such state; at the first batch, if the plan has other batches.
        """
        self.epoch, self.start, self._digest = parse_state(state)
        self._count = self._finished = None

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that the plan has the batches of a state, for loops that skip them themselves.

        Raises:
            CheckpointError: as :meth:`load_state_dict` and the first batch after it do.
        """
        self._count_from(*parse_state(state))

    def _count_from(self, epoch: int, step: int, digest: str) -> Count:
        """Return the count of an iteration that begins behind ``step`` batches, those of a state."""
        count = self._counted(epoch, step)
        if count.yielded != step or (step and count.digest != digest):
            raise CheckpointError(
                f"the state was saved after {step} batches of epoch {epoch} of another plan; a Replanner has a state "
                "of its own"
            )
        return count

    def _counted(self, epoch: int, step: int) -> Count:
        """Return the count of the epoch's first ``step`` batches, or of all if there are fewer."""
        count = Count()
        while count.yielded < step and (row := self._row(epoch, count.yielded)) is not None:
            count.add(row)
        return count

    # -- the batches -------------------------------------------------------------------------------------------------

    def _row(self, epoch: int, step: int) -> Tensor | None:
        """Return a global batch, (B,) positions or those of the short batch; None behind the last."""
        number = self.source.num_batches(epoch)
        if step < number:
            return self._plan(epoch, step).batches[step]
        return left_out_of(self.source, epoch) if step == number and self._num_short(epoch) else None

    def _plan(self, epoch: int, step: int = 0) -> BatchPlan:
        plan = self.source.plan(epoch, step)
        if self.source.batch_size is None:
            self._check_width(plan.batches.shape[1])
        return plan

    @property
    def left_out(self) -> Tensor:
        """The positions that no planned batch of this epoch holds, (n,) int64, ascending: mostly N mod B of them.

        With ``drop_last`` they are not trained on in this epoch, otherwise they are its last batch. The epoch is
        planned for it, if that has not happened; with a :class:`~mbcl.torch.Replanner` on several ranks that is a
        collective call.

        Raises:
            ConfigError: if N is not known, or if the epoch is planned in parts and the last is not planned yet.
        """
        return left_out_of(self.source, self.epoch)

    def _num_short(self, epoch: int) -> int:
        """The samples of the epoch's short batch; 0 if there is none."""
        return 0 if self.drop_last else num_short(self.source, epoch, self.world_size)

    def _check_width(self, width: int) -> None:
        if width % (size := self.world_size):
            raise ConfigError(f"{size} ranks cannot share batches of {width} samples equally")
