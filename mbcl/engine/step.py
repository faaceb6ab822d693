"""One training step: views, encoder, gather, objective, backward, optimiser.

Ranks' losses are summed. With candidates, a rank's loss is the sum over its own anchors, divided by the number
of anchors in the global batch, so the sum over ranks is the loss of the whole batch. With the distribution ``local`` a
rank's loss is the mean over its own part, divided by W, so the sum is the mean over the whole batch. The gather's
backward sums over ranks, so each rank's gradients are its samples' share of the whole batch's. DDP averages them over
the W ranks, so there the loss is multiplied by W first; where chunks are accumulated without DDP, they are summed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mbcl.config.train import Accumulation
from mbcl.data.samples import SampleSet
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.grad_cache import ChunkedEncoder
from mbcl.engine.precision import Compute
from mbcl.functional import raise_half
from mbcl.models import ContrastiveModel
from mbcl.objectives import Candidates, Objective, StatefulObjective
from mbcl.seeding import derive


@dataclass(frozen=True, eq=False)
class StepOutput:
    """The output of a step, detached.

    Args:
        loss: scalar, this rank's share; the sum over ranks is the loss.
        positions: (b,) int64 CPU tensor, this rank's samples.
        z1: (b, D) their projections of view 1, float32 or better.
        z2: (b, D) of view 2.
        skipped: whether the weights were not updated, because the gradients were not finite: fp16's scaler tries
            smaller scales.
    """

    loss: Tensor
    positions: Tensor
    z1: Tensor
    z2: Tensor
    skipped: bool = False


@dataclass
class Learner:
    """The training state that a step updates, with everything that the update needs.

    ``network`` is the model as training calls it: wrapped in DDP on several ranks, and compiled if configured. Cached
    accumulation calls the encoder and projector of ``model`` directly. ``synchronised`` says whether batch norms use
    the statistics of the global batch.
    """

    model: ContrastiveModel
    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    images: SampleSet
    world: World
    seed: int
    compute: Compute = field(default_factory=Compute)
    accumulation: Accumulation = field(default_factory=Accumulation)
    synchronised: bool = True

    def __post_init__(self) -> None:
        self.scaler = self.compute.scaler()
        self._chunked = ChunkedEncoder(self.model.encoder, self.world, autocast=self.compute.autocast)

    def share_statistics(self) -> None:
        """Average the running statistics over the ranks where batch norms are not synchronised. A collective call.

        It is required before the statistics are used or stored.
        """
        if not self.synchronised:
            collectives.average_buffers(self.model, self.world)

    @staticmethod
    def views_seed(seed: int) -> int:
        """Derive the seed of the training views' stream from the experiment's seed."""
        return derive(seed, "views")

    def step(self, batch: Tensor, *, epoch: int, lr: float) -> StepOutput:
        """Train on one global batch, on the views of ``epoch``.

        ``batch`` holds (B,) int64 data-set positions on the CPU. The number of ranks divides B and the chunk size.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        key = ViewKey(self.seed, epoch)
        if self.accumulation.mode == "cached":
            output = self._cached_accumulation(batch, key)
        else:
            output = self._plain_accumulation(batch, key)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return replace(output, skipped=True) if self.scaler.get_scale() < scale else output

    def _views(self, positions: Tensor, key: ViewKey) -> Tensor:
        """Compute the views, (2b, ...) in the dtype of the weights: all first views, then all second views."""
        views = two_views(self.images, positions, key).to(next(self.model.parameters()).dtype)
        return self.compute.layout(views)

    def _local_part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch or chunk."""
        return batch.chunk(self.world.size)[self.world.rank]

    # -- the batch at once, or plain accumulation: chunks with independent losses --------------------------------------

    def _plain_accumulation(self, batch: Tensor, key: ViewKey) -> StepOutput:
        """Run forward and backward of every chunk: the gradients are the mean over the chunks."""
        chunks = batch.split(self.accumulation.chunk_size or len(batch))
        outputs = []
        for index, chunk in enumerate(chunks):
            # Accumulate without DDP's all-reduce; the last chunk's backward performs it.
            single = self.world.size == 1 or index + 1 == len(chunks)
            with nullcontext() if single else cast(DistributedDataParallel, self.network).no_sync():
                positions = self._local_part(chunk)
                with self.compute.autocast():
                    projections = self.network(self._views(positions, key))
                z1, z2 = raise_half(projections).chunk(2)
                loss = self._loss(z1, z2, positions, chunk) / len(chunks)
                self.scaler.scale(loss * self.world.size).backward()
            outputs.append(StepOutput(loss.detach(), positions, z1.detach(), z2.detach()))
        return _concat_chunks(outputs)

    # -- cached accumulation (GradCache): the loss of the whole batch, the encoder in chunks ---------------------------

    def _cached_accumulation(self, batch: Tensor, key: ViewKey) -> StepOutput:
        """Run the encoder in chunks without graphs, the loss on the whole batch, then the chunks with graphs."""
        assert self.accumulation.chunk_size is not None
        positions = self._local_part(batch)
        chunks = positions.split(self.accumulation.chunk_size // self.world.size)
        features = self._chunked.forward([self._views(chunk, key) for chunk in chunks])
        cached = [part.requires_grad_() for part in features]
        halves = [part.chunk(2) for part in cached]
        with self.compute.autocast():
            projections = self.model.projector(torch.cat([a for a, _ in halves] + [b for _, b in halves]))
        z1, z2 = raise_half(projections).chunk(2)
        loss = self._loss(z1, z2, positions, batch)
        self.scaler.scale(loss).backward()
        self._chunked.backward([cast(Tensor, part.grad) for part in cached])
        collectives.sum_gradients(self.model.parameters(), self.world)
        return StepOutput(loss.detach(), positions, z1.detach(), z2.detach())

    # -- the objective -------------------------------------------------------------------------------------------------

    def _loss(self, z1: Tensor, z2: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        """Compute this rank's share of the loss of a batch or chunk; updates the per-sample state on all ranks."""
        candidates = self._candidates(z1, z2, batch)
        loss: Tensor = self.objective(z1, z2, positions.to(z1.device), candidates=candidates)
        if self.objective.distribution == "local":
            loss = loss / self.world.size
        if candidates is not None and isinstance(self.objective, StatefulObjective):
            assert candidates.indices is not None
            assert self.objective.pending is not None
            self.objective.commit(candidates.indices, collectives.all_gather_ragged(self.objective.pending, self.world))
        return loss

    def _candidates(self, z1: Tensor, z2: Tensor, batch: Tensor) -> Candidates | None:
        """Gather all ranks' projections with gradient, for objectives that contrast across ranks; None otherwise."""
        if self.world.size == 1 or self.objective.distribution == "local":
            return None
        gathered = collectives.gather_with_grad(torch.stack([z1, z2], dim=1), self.world)
        indices = batch.to(z1.device) if self.objective.distribution == "state" else None
        return Candidates(gathered[:, 0], gathered[:, 1], offset=self.world.rank * len(z1), indices=indices)


def _concat_chunks(parts: Sequence[StepOutput]) -> StepOutput:
    """Combine the outputs of one step's chunks: sum the losses, concatenate the rest."""
    if len(parts) == 1:
        return parts[0]
    loss = torch.stack([part.loss for part in parts]).sum()
    positions, z1, z2 = (torch.cat([getattr(part, key) for part in parts]) for key in ("positions", "z1", "z2"))
    return StepOutput(loss, positions, z1, z2)


def wrap_ddp(model: ContrastiveModel, world: World) -> nn.Module:
    """Wrap the model in DDP if there are several ranks.

    Buffers are not broadcast: synchronised batch norm keeps them equal, so a broadcast between the forward and the
    backward pass would be a redundant collective.
    """
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # torch 2.14 renamed the option and warns about the old name.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    option: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, **option)
