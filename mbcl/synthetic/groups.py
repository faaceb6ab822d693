"""Groups of methods: the runs of several samplers and all seeds, vectorised in one computation.

Letters: 2 the views u and v, S seeds, R runs (methods times seeds), N samples, D dimensions, K batches of a step, B
samples per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from mbcl.samplers import OSGDExhaustive, hardest_batches
from mbcl.synthetic.points import Points, similarities
from mbcl.synthetic.selections import Method
from mbcl.synthetic.settings import Accumulate, Settings


@dataclass(frozen=True, eq=False)
class State:
    """The state of a method after a step.

    Args:
        x_2SND: (2, S, N, D) float, a copy of its points.
        batch_loss_S: (S,) the loss of the last batch before its update; for one update on several batches, their mean.
        updates: the number of gradient updates so far.
        samples: the number of samples seen so far, counted once for every batch that contains them.
    """

    x_2SND: Tensor
    batch_loss_S: Tensor
    updates: int
    samples: int


class OneUpdate:
    """A method that makes one update per step, on all batches of the step.

    Args:
        method: ``full``, ``all_batches``, or any method whose batches are known when a step begins.
        start_2SND: (2, S, N, D) float.
        settings: give the seeds and the learning rate.
        accumulate: whether the loss is the sum or the mean of the batches' losses.
    """

    def __init__(self, method: Method, start_2SND: Tensor, settings: Settings, accumulate: Accumulate) -> None:
        self.methods = [method]
        self._points = Points(start_2SND)
        self._seeds, self._lr, self._accumulate = settings.seeds, settings.lr, accumulate
        self._updates = self._samples = 0
        self._batches_SKB: Tensor | None = None

    def step(self, step: int) -> None:
        """Make one update on all batches of the step."""
        (method,) = self.methods
        if self._batches_SKB is None or not method.unchanging:
            self._batches_SKB = method.batches(self._points.x_2RND, self._seeds, step)
        _, num_batches, size = self._batches_SKB.shape
        scale = 1.0 if self._accumulate == "sum" else 1 / num_batches
        self._loss_S = self._points.update(self._batches_SKB, lr=self._lr, scale=scale).mean(dim=1)
        self._updates += 1
        self._samples += num_batches * size

    def states(self, *, final: bool = False) -> list[State]:
        """Return the state of the single method after the last step."""
        return [State(self._points.x_2RND.clone(), self._loss_S, self._updates, self._samples)]


class OneByOne:
    """Methods of one batch size that make one update per batch, N // B of them per step.

    Args:
        methods: the methods; those that choose a batch before every update are sorted to the end.
        start_2SND: (2, S, N, D) float, the same for all.
        settings: give the seeds and the learning rate. With ``published_points``, the logged state of a method that
            chooses before every update is that after the first update of a step, instead of that after the last.
    """

    def __init__(self, methods: Sequence[Method], start_2SND: Tensor, settings: Settings) -> None:
        assert len({method.sampler.batch_size for method in methods}) == 1
        self.methods = sorted(methods, key=lambda method: method.exhaustive)
        self._num_planned = sum(not method.exhaustive for method in methods)
        self._points = Points(start_2SND.repeat(1, len(methods), 1, 1))
        self._seeds, self._lr, self._published_points = settings.seeds, settings.lr, settings.published_points
        self._size = methods[0].sampler.batch_size
        self._num_batches = start_2SND.shape[2] // self._size
        self._steps = 0
        self._batches: dict[int, Tensor] = {}
        self._after_first_update: tuple[Tensor, Tensor] | None = None

    def step(self, step: int) -> None:
        """Make one update per batch; exhaustive methods choose their batch before each update."""
        planned = [self._planned_batches(index, step) for index in range(self._num_planned)]
        planned_RKB = torch.cat(planned) if planned else None
        for number in range(self._num_batches):
            parts = [] if planned_RKB is None else [planned_RKB[:, number]]
            parts += [self._hardest_batch(index) for index in range(self._num_planned, len(self.methods))]
            batch_RB = torch.cat(parts) if len(parts) > 1 else parts[0]
            self._loss_R = self._points.update(batch_RB[:, None], lr=self._lr)[:, 0]
            if number == 0 and self._published_points:
                self._after_first_update = self._points.x_2RND.clone(), self._loss_R
        self._steps += 1

    def _runs(self, index: int) -> slice:
        return slice(index * len(self._seeds), (index + 1) * len(self._seeds))

    def _points_of(self, index: int) -> Tensor:
        return self._points.x_2RND[:, self._runs(index)]

    def _planned_batches(self, index: int, step: int) -> Tensor:
        """Return the batches, (S, K, B), of a method that plans them when a step begins."""
        method = self.methods[index]
        if index not in self._batches or not method.unchanging:
            self._batches[index] = method.batches(self._points_of(index), self._seeds, step)
        return self._batches[index]

    def _hardest_batch(self, index: int) -> Tensor:
        """Return the batch, (S, B), with the highest loss of all batches at the current points."""
        sampler = self.methods[index].sampler
        assert isinstance(sampler, OSGDExhaustive)
        z_SNN = similarities(self._points_of(index))
        return hardest_batches(z_SNN if sampler.temperature == 1 else z_SNN / sampler.temperature, self._size)[0]

    def states(self, *, final: bool = False) -> list[State]:
        """Return the state of each method after the last step, with ``final`` never that after its first update."""
        states = []
        for index, method in enumerate(self.methods):
            updates, x_2RND, loss_R = self._steps * self._num_batches, self._points.x_2RND, self._loss_R
            if method.exhaustive and self._after_first_update is not None and not final:
                updates -= self._num_batches - 1
                x_2RND, loss_R = self._after_first_update
            runs = self._runs(index)
            states.append(State(x_2RND[:, runs].clone(), loss_R[runs], updates, updates * self._size))
        return states


MethodGroup: TypeAlias = OneUpdate | OneByOne
"""A group of methods that take their steps at the same time."""


def groups_of(settings: Settings, methods: Sequence[Method], start_2SND: Tensor) -> list[MethodGroup]:
    """Group the methods that can take their steps in one computation; all begin at the same (2, S, N, D) points.

    With ``accumulate``, methods make one update per step, on the sum or the mean of the losses of its batches. Methods
    that make one update per step anyway, or choose a batch before every update, are unchanged.
    """
    groups: list[MethodGroup] = []
    one_by_one: dict[int, list[Method]] = {}
    for method in methods:
        if method.one_update or (settings.accumulate and not method.exhaustive):
            reduction: Accumulate = "mean" if method.one_update else settings.accumulate or "mean"
            groups.append(OneUpdate(method, start_2SND, settings, reduction))
        else:
            one_by_one.setdefault(method.sampler.batch_size, []).append(method)
    return groups + [OneByOne(same_size, start_2SND, settings) for same_size in one_by_one.values()]
