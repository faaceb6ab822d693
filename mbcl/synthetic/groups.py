"""Methods that take their steps together: the runs of several samplers and all seeds in one computation.

Letters: 2 the views u and v, S seeds, R runs (methods times seeds), N samples, D dimensions, K batches of a step, B
samples a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mbcl.samplers import OSGDExhaustive, hardest_batches
from mbcl.synthetic.points import Points, similarities
from mbcl.synthetic.selections import Method

Accumulate = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class State:
    """A method after a step.

    Args:
        x_2SND: (2, S, N, D) float, its points; a copy.
        batch_loss_S: (S,) the loss of the last batch, before its update; of one update on several, their mean.
        updates: of the gradient, made until now.
        samples: seen until now, once for every batch that a sample was in.
    """

    x_2SND: Tensor
    batch_loss_S: Tensor
    updates: int
    samples: int


@dataclass(frozen=True, eq=False)
class Final:
    """A method at the end.

    Args:
        x_2SND: (2, S, N, D) float, its points; a copy.
        updates, samples: as those of :class:`State`.
    """

    x_2SND: Tensor
    updates: int
    samples: int


class MethodGroup(Protocol):
    """Methods that share their steps."""

    @property
    def methods(self) -> Sequence[Method]:
        """Who they are."""
        ...

    def step(self, step: int) -> None:
        """Take one step."""
        ...

    def states(self) -> list[State]:
        """Each method's state after the last step, as it is logged."""
        ...

    def finals(self) -> list[Final]:
        """Each method after its last update."""
        ...


class OneUpdate:
    """One method whose steps are one update on all its batches.

    Args:
        method: ``full``, ``all_batches``, or any that knows its batches when a step begins.
        start_2SND: (2, S, N, D) float.
        seeds: one per run.
        lr: learning rate.
        accumulate: the sum of the batches' losses, or their mean.
    """

    def __init__(
        self, method: Method, start_2SND: Tensor, seeds: Sequence[int], lr: float, accumulate: Accumulate
    ) -> None:
        self.methods: Sequence[Method] = [method]
        self._points = Points(start_2SND)
        self._seeds, self._lr, self._accumulate = seeds, lr, accumulate
        self._updates = self._samples = 0
        self._batches_SKB: Tensor | None = None

    def step(self, step: int) -> None:
        """As :meth:`Group.step`."""
        (method,) = self.methods
        if self._batches_SKB is None or not method.unchanging:
            self._batches_SKB = method.selection.batches(self._points.x_2RND, self._seeds, step)
        _, num_batches, size = self._batches_SKB.shape
        scale = 1.0 if self._accumulate == "sum" else 1 / num_batches
        self._loss_S = self._points.update(self._batches_SKB, lr=self._lr, scale=scale).mean(dim=1)
        self._updates += 1
        self._samples += num_batches * size

    def states(self) -> list[State]:
        """As :meth:`Group.states`."""
        return [State(self._points.x_2RND.clone(), self._loss_S, self._updates, self._samples)]

    def finals(self) -> list[Final]:
        """As :meth:`Group.finals`."""
        return [Final(self._points.x_2RND.clone(), self._updates, self._samples)]


class OneByOne:
    """Methods of one batch size that make an update a batch, N // B of them a step.

    Args:
        methods: those that choose before every update stand last.
        start_2SND: (2, S, N, D) float, the same for all.
        seeds: one per run.
        lr: learning rate.
        after_first: a state of the methods that choose before every update is that after the first update of a step,
            as published, instead of after the last.
    """

    def __init__(
        self, methods: Sequence[Method], start_2SND: Tensor, seeds: Sequence[int], lr: float, *, after_first: bool
    ) -> None:
        assert len({method.batch_size for method in methods}) == 1
        self.methods: Sequence[Method] = sorted(methods, key=lambda method: method.exhaustive)
        self._num_planned = sum(not method.exhaustive for method in methods)
        self._points = Points(start_2SND.repeat(1, len(methods), 1, 1))
        self._seeds, self._lr, self._after_first = seeds, lr, after_first
        self._size = methods[0].batch_size
        self._num_batches = start_2SND.shape[2] // self._size
        self._steps = 0
        self._kept: dict[int, Tensor] = {}
        self._first: tuple[Tensor, Tensor] | None = None

    def step(self, step: int) -> None:
        """As :meth:`Group.step`."""
        planned = [self._planned(place, step) for place in range(self._num_planned)]
        planned_RKB = torch.cat(planned) if planned else None
        for number in range(self._num_batches):
            parts = [] if planned_RKB is None else [planned_RKB[:, number]]
            parts += [self._chosen(place) for place in range(self._num_planned, len(self.methods))]
            batch_RB = torch.cat(parts) if len(parts) > 1 else parts[0]
            self._loss_R = self._points.update(batch_RB[:, None], lr=self._lr)[:, 0]
            if number == 0 and self._after_first:
                first = self._num_planned * len(self._seeds)
                self._first = self._points.x_2RND[:, first:].clone(), self._loss_R[first:]
        self._steps += 1

    def _points_of(self, place: int) -> Tensor:
        return self._points.x_2RND[:, place * len(self._seeds) : (place + 1) * len(self._seeds)]

    def _planned(self, place: int, step: int) -> Tensor:
        """(S, K, B), the batches of a method that knows them when a step begins."""
        method = self.methods[place]
        if place in self._kept:
            return self._kept[place]
        batches_SKB = method.selection.batches(self._points_of(place), self._seeds, step)
        if method.unchanging:
            self._kept[place] = batches_SKB
        return batches_SKB

    def _chosen(self, place: int) -> Tensor:
        """(S, B), the hardest batch of all at this moment."""
        sampler = self.methods[place].sampler
        assert isinstance(sampler, OSGDExhaustive)
        z_SNN = similarities(self._points_of(place))
        return hardest_batches(z_SNN if sampler.temperature == 1 else z_SNN / sampler.temperature, self._size)[0]

    def states(self) -> list[State]:
        """As :meth:`Group.states`."""
        num_seeds, states = len(self._seeds), []
        for place, method in enumerate(self.methods):
            updates = self._steps * self._num_batches
            x_2SND, loss_S = self._points_of(place).clone(), self._loss_R[place * num_seeds : (place + 1) * num_seeds]
            if method.exhaustive and self._first is not None:
                updates -= self._num_batches - 1
                own = slice((place - self._num_planned) * num_seeds, (place - self._num_planned + 1) * num_seeds)
                x_2SND, loss_S = self._first[0][:, own], self._first[1][own]
            states.append(State(x_2SND, loss_S, updates, updates * self._size))
        return states

    def finals(self) -> list[Final]:
        """As :meth:`Group.finals`."""
        updates = self._steps * self._num_batches
        places = range(len(self.methods))
        return [Final(self._points_of(place).clone(), updates, updates * self._size) for place in places]


def groups_of(
    methods: Sequence[Method],
    start_2SND: Tensor,
    seeds: Sequence[int],
    *,
    lr: float,
    accumulate: Accumulate | None = None,
    published_points: bool = False,
) -> list[MethodGroup]:
    """Methods put together that can take their steps together; all begin at the same points.

    Args:
        methods: of the study.
        start_2SND: (2, S, N, D) float.
        seeds: one per run.
        lr: learning rate.
        accumulate: one update a step, on the sum or the mean of the losses of its batches. Methods that make one
            update a step anyway, or choose before every update, stay as they are.
        published_points: see :class:`OneByOne`.
    """
    groups: list[MethodGroup] = []
    one_by_one: dict[int, list[Method]] = {}
    for method in methods:
        if method.one_update or (accumulate and not method.exhaustive):
            how: Accumulate = "mean" if method.one_update or accumulate is None else accumulate
            groups.append(OneUpdate(method, start_2SND, seeds, lr, how))
        else:
            one_by_one.setdefault(method.batch_size, []).append(method)
    for together in one_by_one.values():
        groups.append(OneByOne(together, start_2SND, seeds, lr, after_first=published_points))
    return groups
