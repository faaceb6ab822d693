"""Plans that are made again while a loop trains.

Letters: N samples of the data set, S batches of an epoch, B samples of a global batch, D dimensions, W ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mbcl.errors import CheckpointError, ConfigError
from mbcl.functional import check_choice, check_count
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner import (
    LocalPlanService,
    PlanKey,
    PlannedBatches,
    plan_of,
    plan_state,
    planned_of,
    planned_state,
)
from mbcl.samplers import Ids, Sampler, Shuffle, check_widths, groups_of, with_groups
from mbcl.torch._embedding import Embed
from mbcl.torch._embedding_source import EmbeddingSource
from mbcl.torch._schedule import Schedule
from mbcl.torch._sources import PlanSource, build_sampler, extended, taken

ROWS = ("positions", "z1", "z2", "times", "begun")
"""What the state of a cache that is not empty holds."""


class Replanner(PlanSource):
    """Plans the batches of a training from its own embeddings, again and again: ``PlannedBatchSampler(replanner)``.

    A plan is made when the batch sampler reaches the batch that it begins with: the first of an epoch, or every n-th
    of its steps. A ``DataLoader`` with workers takes batches ahead of the loop, so it makes a plan in mid-epoch up to
    ``num_workers * prefetch_factor`` steps early, from the embeddings of that moment.

    **Embeddings.** ``fresh``: ``embed`` computes all of them for every plan. ``cached``: the loop hands over those
    that it trains with, by :meth:`observe`; ``embed`` computes those of the first plan. Without ``embed`` the batches
    are those of ``shuffle`` until each of the N samples was observed, which takes an epoch, or a few where N mod B
    samples are left out of each.

    **Several ranks.** Every rank makes the same calls in the same order. The ranks share the work of ``embed``, rank 0
    plans, and all receive its plan with its digest. The plan does not depend on W, if ``embed`` returns the same on
    every rank. The world is torch.distributed's process group at the first plan, observation or loaded state.

    **Beside training.** With ``background`` each plan is made while the batches of the one before are trained on, by
    one process of rank 0 with one thread, from the embeddings of the moment at which it begins. So embeddings are one
    plan older; the first two plans come from the same ones. If the process dies, the training process makes the plan.

    Args:
        sampler: a name, with the parameters of :func:`mbcl.samplers.build`, among them ``batch_size``; or a sampler.
        num_samples: N.
        embed: called with (m,) int64 data-set positions on the CPU, at most ``embed_batch_size``, without gradients;
            returns the embeddings of two views, (m, D) float each, in this order; the sides of pairs may have a width
            each, see :class:`mbcl.Embeddings`. The positions are drawn at random for each plan, so that batch norm in
            training mode sees all classes. The modes of the model (``eval``, autocast) are its own business. Ranks
            call it a different number of times, so it must not communicate: it calls ``ddp.module``, not a DDP model,
            which synchronises its buffers in the forward pass.
        embeddings: ``fresh`` or ``cached``; by default ``fresh`` with ``embed``, ``cached`` without.
        apart, together: (N,) ids, as :meth:`mbcl.samplers.Sampler.plan` takes them. They hold for the batches of
            ``shuffle``, too. With ``together`` an epoch has the batches that the sources fill.
        seed: of the plans.
        every, unit: plan every so many epochs or steps. Epochs between two planned ones have the same batches as the
            last. Steps count within an epoch, which then may visit a sample twice, or not at all.
        warmup_epochs: the first epochs, which have the batches of ``shuffle``.
        background: whether plans are made beside training.
        epochs: of the training: ``background`` plans none behind the last. By default one plan is made that none uses.
        embed_batch_size: the most samples of a call of ``embed``.
        device: where embeddings are kept; on a GPU, samplers that can plan there do.
        parameters: of the named sampler.

    Raises:
        ConfigError: if an argument does not fit the others.
    """

    def __init__(
        self,
        sampler: str | Sampler,
        *,
        num_samples: int,
        embed: Embed | None = None,
        embeddings: str | None = None,
        apart: Ids | None = None,
        together: Ids | None = None,
        seed: int = 0,
        every: int = 1,
        unit: str = "epoch",
        warmup_epochs: int = 0,
        background: bool = False,
        epochs: int | None = None,
        embed_batch_size: int = 1024,
        device: torch.device | str = "cpu",
        **parameters: object,
    ) -> None:
        self.sampler = with_groups(build_sampler(sampler, parameters), apart=apart, together=together)
        batch_size = self.sampler.batch_size
        check_choice("unit", unit, ("epoch", "step"))
        if not self.sampler.needs_embeddings:
            raise ConfigError(
                f"sampler {self.sampler.name!r} plans without embeddings: PlannedBatchSampler.from_sampler"
            )
        self.sampler.check(check_count("num_samples", num_samples))
        groups = groups_of(self.sampler)
        self._shuffle = with_groups(Shuffle(batch_size=batch_size), apart=groups.apart, together=groups.together)
        length, steps = (each.plan_length(num_samples) for each in (self.sampler, self._shuffle))
        whole = self.sampler.no_repeats and self.sampler.covers_all and length == steps and groups.together is None
        super().__init__(num_samples, batch_size, is_partition=whole and unit == "epoch")
        check_count("every", every)
        self._schedule = Schedule(
            steps=steps,
            part=min(every, steps) if unit == "step" else steps,
            every=1 if unit == "step" else every,
            warmup_epochs=check_count("warmup_epochs", warmup_epochs, least=0),
            epochs=None if epochs is None else check_count("epochs", epochs),
            plan_length=length,
        )
        self._seed = check_count("seed", seed, least=0)
        self._num_samples = num_samples
        self._background = background
        self._embeddings = EmbeddingSource(
            embed,
            embeddings,
            num_samples=num_samples,
            steps=steps,
            seed=seed,
            embed_batch_size=embed_batch_size,
            device=device,
        )
        self._plan: BatchPlan | None = None
        """The batches of the current epoch as far as they are planned; in its ``epoch`` they were planned."""
        self._pending: PlanKey | None = None
        self._ahead: PlannedBatches | None = None
        """The next plan, if it was received ahead."""
        self._asked: PlanKey | None = None
        """The newest plan that was requested ahead, or would have been if enough samples had been observed."""
        self.newest: PlannedBatches | None = None
        """The newest plan from embeddings that was taken up, with its ``loss``, ``lift`` and ``seconds``, or None."""

    @cached_property
    def _service(self) -> LocalPlanService:
        return LocalPlanService(num_samples=self._num_samples, seed=self._seed, world=self._embeddings.world)

    # -- what the loop calls -------------------------------------------------------------------------------------------

    def observe(self, indices: Tensor, z1: Tensor, z2: Tensor) -> None:
        """Hand over the embeddings of a step, for later plans. Every rank calls it once a step.

        Args:
            indices: (m,) int64, the data-set positions of this rank's rows, all different, on any device.
            z1: (m, D) float, their embeddings of view 1, with or without gradient, not normalised or normalised.
            z2: (m, D), of view 2; of the sides of pairs each may have its width, see :class:`mbcl.Embeddings`.

        Raises:
            ConfigError: if shapes or positions do not fit, or if the embeddings are ``fresh`` ones.
        """
        self._embeddings.observe(indices, z1, z2)
        check_widths(self.sampler, (z1.shape[1], z2.shape[1]))

    def close(self) -> None:
        """End the background process."""
        self._pending = None
        self._service.close()

    def __enter__(self) -> Replanner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the batches of an epoch ---------------------------------------------------------------------------------------

    def num_batches(self, epoch: int) -> int:
        return self._schedule.steps

    def plan(self, epoch: int, step: int = 0) -> BatchPlan:
        """Return the batches of an epoch as far as they are planned, at least ``step`` + 1. A collective call.

        Raises:
            MbclError: on every rank alike, if the embeddings or the plan are invalid.
        """
        shard = None
        if not self._is_current(epoch):
            self._plan = None
        while self._plan is None or len(self._plan) <= step:
            shard = self._extend(epoch)
        self._request_ahead(epoch, shard)
        return self._plan

    def _is_current(self, epoch: int) -> bool:
        """Tell whether the plan is that of an epoch. One of ``shuffle`` is for its own epoch only."""
        plan = self._plan
        if plan is None or plan.epoch == epoch:
            return plan is not None
        return plan.sampler != Shuffle.name and plan.epoch == self._schedule.planned_in(epoch)

    def _extend(self, epoch: int) -> Embeddings | None:
        """Add the next part to the epoch's plan; returns the embeddings, if they were made for it."""
        before = self._plan
        done = 0 if before is None else len(before)
        schedule = self._schedule
        key = schedule.key(epoch, done)
        end = schedule.steps if key is None else min(done + schedule.part, schedule.steps)
        made, shard = (None, None) if key is None else self._obtain(key)
        if made is not None:
            part, self.newest = made.plan, made
        else:
            shuffled = self._shuffle.plan(self._num_samples, seed=self._seed, epoch=epoch)
            part = taken(shuffled, slice(done, end))
        self._plan = part if before is None else extended(before, part)
        return shard

    def _request_ahead(self, epoch: int, shard: Embeddings | None) -> None:
        """Request the plan that is due after the epoch's plan so far, from these embeddings or from current ones."""
        if not self._background or self._plan is None:
            return
        key = self._schedule.next_key(epoch, len(self._plan))
        if key is None or key == self._asked:
            return
        self._settle()
        self._asked = key
        if shard is None:
            shard = self._embeddings.shard(key)
        if shard is not None:
            self._service.request(key, shard, self.sampler, ahead=True)
            self._pending = key

    def _obtain(self, key: PlanKey) -> tuple[PlannedBatches | None, Embeddings | None]:
        """Return the plan of a key, None if too few samples were observed, and the embeddings, if made for it."""
        self._settle()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead.plan.epoch, ahead.plan.round) == (key.epoch, key.round):
            return ahead, None
        self._asked = None
        shard = self._embeddings.shard(key)
        if shard is None:
            return None, None
        self._service.request(key, shard, self.sampler)
        return self._service.receive(key), shard

    def _settle(self) -> None:
        """Wait for the pending plan, if there is one."""
        if self._pending is not None:
            key, self._pending = self._pending, None
            self._ahead = self._service.receive(key)

    # -- resuming ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plans and observed embeddings that later batches need, as tensors and plain values.

        It waits for a plan on its way. A collective call, with the same result on every rank. Save it beside the
        :meth:`PlannedBatchSampler.state_dict`.
        """
        self._settle()
        return {
            "plan": {} if self._plan is None else plan_state(self._plan),
            "ahead": {} if self._ahead is None else planned_state(self._ahead),
            "asked": [] if self._asked is None else [self._asked.epoch, self._asked.round, self._asked.rounds],
            "num_samples": self._num_samples,
            **self._embeddings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`, which any number of ranks may have saved.

        Raises:
            CheckpointError: if it is no such state, or of another number of samples or batch size.
        """
        try:
            plan = plan_of(state["plan"]) if state["plan"] else None
            ahead = planned_of(state["ahead"]) if state["ahead"] else None
            asked = PlanKey(*state["asked"]) if state["asked"] else None
            num_samples, observed = int(state["num_samples"]), int(state["observed"])
            rows = {key: state["cache"][key] for key in ROWS} if state["cache"] else {}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"not a state of a Replanner: {type(error).__name__}: {error}") from error
        for batches in (made.batches for made in (plan, ahead.plan if ahead else None) if made is not None):
            if batches.shape[1] != self.sampler.batch_size or batches.max() >= self._num_samples:
                raise CheckpointError(
                    f"the state is of another training: its batches of {batches.shape[1]} hold positions up to "
                    f"{int(batches.max())}; here they are of {self.sampler.batch_size}, of {self._num_samples} samples"
                )
        if num_samples != self._num_samples:
            found = f"of {num_samples} samples, here they are {self._num_samples}"
            raise CheckpointError(f"the state is of another training: {found}")
        self._embeddings.load_state_dict(observed, rows)
        self._pending = None
        self._plan, self._ahead, self._asked = plan, ahead, asked
