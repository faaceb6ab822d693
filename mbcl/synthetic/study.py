"""The study: methods from the same starts, their curves, and what is known about the optimum.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, L points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_choice, check_count, check_number
from mbcl.samplers import combinations
from mbcl.seeding import numpy_generator
from mbcl.synthetic.groups import Accumulate, State, groups_of
from mbcl.synthetic.losses import MeanLoss, least_of_restarts, mean_batch_loss, starting_points
from mbcl.synthetic.optima import Optimum, distance, optimum, rearranging_norm
from mbcl.synthetic.points import CHUNK_ELEMENTS, clip_losses, similarities
from mbcl.synthetic.selections import Method, methods_of

Array = NDArray[np.float64]

MOST_REARRANGED = 128
"""Samples up to which the published norm is computed: it goes through N² x N values a matrix."""
MOST_MINIMISED = 128
"""Samples up to which restarts look for the least loss where no optimum is known."""
MOST_BATCHES_MINIMISED = 2000
"""C(N, B) up to which the mean over all batches is minimised, too."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for; see ``mbcl synthetic --help``.

    Args:
        n: samples.
        dim: of the points.
        batch_sizes: B, each once.
        steps: of every method.
        samplers: specifications, each once.
        seeds: one run each.
        lr: learning rate of SGD.
        accumulate: one update a step on the sum or mean of its batches' losses; None for one update a batch.
        equal_init: u and v of a sample start at the same point.
        log_every: steps between two points of a curve; the last step is one, too.
        published_points: ``osgd_exhaustive`` is logged after the first update of a step, as published.
        restarts: where no optimum is known, random starts from which the least loss is looked for.

    Raises:
        ConfigError: naming the option, what was found and what is allowed.
    """

    n: int = 8
    dim: int = 16
    batch_sizes: tuple[int, ...] = (2,)
    steps: int = 2000
    samplers: tuple[str, ...] = ("fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lr: float = 0.5
    accumulate: Accumulate | None = None
    equal_init: bool = False
    log_every: int = 100
    published_points: bool = False
    restarts: int = 16

    def __post_init__(self) -> None:
        check_count("--n", self.n, least=2)
        for name in ("dim", "steps", "log_every", "restarts"):
            check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        check_number("--lr", self.lr, above=0.0)
        if self.accumulate is not None:
            check_choice("--accumulate", self.accumulate, ("sum", "mean"))
        for option, values, least in (("--batch-size", self.batch_sizes, 2), ("--seeds", self.seeds, 0)):
            if not values:
                raise ConfigError(f"{option}: at least one is needed")
            for value in values:
                check_count(option, value, least=least)
                if values.count(value) > 1:
                    raise ConfigError(f"{option}: {value} is given twice")
        if not self.samplers:
            raise ConfigError("--samplers: at least one is needed")
        for batch_size in self.batch_sizes:
            if batch_size > self.n:
                raise ConfigError(f"--batch-size {batch_size}: above --n {self.n}")

    def logged(self) -> list[int]:
        """The steps after which curves have a point.

        Example:
            >>> Settings(steps=250).logged()
            [0, 100, 200, 249]
        """
        return sorted({*range(0, self.steps, self.log_every), self.steps - 1})


@dataclass(frozen=True, eq=False)
class Reference:
    """What the losses are compared with.

    Args:
        known: the optimum, where theory has it.
        full_loss: the least loss of everything that is known: the optimum's, or the least that restarts or runs found;
            None where N is too large to look for it.
        restarts: how many there were; 0 with a known optimum.
        other_minimisers: without a known optimum, by B, the loss of everything at the best minimiser of the mean of all
            batches, less ``full_loss``: 0 if both have the same minimisers, as they have at the known optima.
    """

    known: Optimum | None
    full_loss: float | None
    restarts: int = 0
    other_minimisers: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of points, (S,) float64 each, or (S, L) in a curve.

    Args:
        true_loss: of everything as one batch.
        distance: to the known optimum; NaN without one.
        rearranging: the published norm; NaN without a known optimum, and for many samples.
    """

    true_loss: Array
    distance: Array
    rearranging: Array


@dataclass(frozen=True, eq=False)
class Curve:
    """One method.

    Args:
        method: which.
        steps, updates, samples: (L,) int64, how far, counted in three ways.
        batch_loss: (S, L) float64, see :class:`~mbcl.synthetic.groups.State`.
        course: (S, L) each.
        x_2SND: (2, S, N, D) the points at the end.
        final: the measures there.
        mean_loss: over all batches of B, there.
    """

    method: Method
    steps: NDArray[np.int64]
    updates: NDArray[np.int64]
    samples: NDArray[np.int64]
    batch_loss: Array
    course: Measured
    x_2SND: Tensor
    final: Measured
    mean_loss: MeanLoss

    def gram(self) -> Tensor:
        """(S, N, N) float64, u v^T at the end."""
        return similarities(self.x_2SND)


@dataclass(frozen=True, eq=False)
class Outcome:
    """All that a study found.

    Args:
        settings: what was asked for.
        start_2SND: (2, S, N, D) float64, where every method began.
        curves: one a method, in the order that was asked for.
        reference: what losses are compared with.
    """

    settings: Settings
    start_2SND: Tensor
    curves: list[Curve]
    reference: Reference


class Progress(Protocol):
    """Who is told how far the study is."""

    def begin(self, words: str) -> None:
        """A stage begins."""

    def count(self, done: int, total: int) -> None:
        """So much of the stage is done."""


class Silent:
    """Nobody."""

    def begin(self, words: str) -> None:
        """Nothing."""

    def count(self, done: int, total: int) -> None:
        """Nothing."""


def starts(settings: Settings) -> Tensor:
    """(2, S, N, D) float64, where the runs begin: standard normal, a function of the seed alone."""
    start_2SND = torch.stack([starting_points(settings.n, settings.dim, seed) for seed in settings.seeds], dim=1)
    if settings.equal_init:
        start_2SND[1] = start_2SND[0]
    return start_2SND


def run(
    settings: Settings,
    *,
    progress: Progress | None = None,
    start_2SND: Tensor | None = None,
    methods: Sequence[Method] | None = None,
) -> Outcome:
    """Run the study.

    Args:
        settings: what is asked for.
        progress: who is told.
        start_2SND: (2, S, N, D) float, other starting points, for example stored ones.
        methods: other methods, for example with stored batches.

    Raises:
        ConfigError: if a sampler does not fit.
    """
    progress = progress or Silent()
    methods = methods or methods_of(settings.samplers, settings.batch_sizes, settings.n)
    start_2SND = starts(settings) if start_2SND is None else start_2SND
    known = optimum(settings.n, settings.dim)
    with torch.no_grad():
        recorders = _take_steps(settings, methods, start_2SND, known, progress)
        progress.begin("measuring")
        curves = [recorders[id(method)].curve(known) for method in methods]
        reference = _reference(settings, known, curves, progress)
    return Outcome(settings, start_2SND, curves, reference)


def _take_steps(
    settings: Settings, methods: Sequence[Method], start_2SND: Tensor, known: Optimum | None, progress: Progress
) -> dict[int, Recorder]:
    groups = groups_of(
        methods,
        start_2SND,
        settings.seeds,
        lr=settings.lr,
        accumulate=settings.accumulate,
        published_points=settings.published_points,
    )
    recorders = {id(method): Recorder(method) for method in methods}
    logged = set(settings.logged())
    progress.begin(f"{settings.steps} steps")
    for step in range(settings.steps):
        for group in groups:
            group.step(step)
            if step in logged:
                for method, state in zip(group.methods, group.states(), strict=True):
                    _check_finite(method, state, step)
                    recorders[id(method)].log(step, state, known)
        progress.count(step + 1, settings.steps)
    for group in groups:
        for method, x_2SND in zip(group.methods, group.finals(), strict=True):
            recorders[id(method)].x_2SND = x_2SND
    return recorders


def _check_finite(method: Method, state: State, step: int) -> None:
    if not bool(state.x_2SND.isfinite().all()):
        raise ConfigError(f"{method.label}: points are not finite after step {step}; a smaller --lr may help")


class Recorder:
    """The points of a method's curve, as they come."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.x_2SND: Tensor | None = None
        self._states: list[tuple[int, int, int]] = []
        self._batch_loss: list[Array] = []
        self._measured: list[Measured] = []

    def log(self, step: int, state: State, known: Optimum | None) -> None:
        """One point more."""
        self._states.append((step, state.updates, state.samples))
        self._batch_loss.append(state.batch_loss_S.double().cpu().numpy())
        self._measured.append(measure(state.x_2SND, known))

    def curve(self, known: Optimum | None) -> Curve:
        """All of it, and what is measured at the end only."""
        assert self.x_2SND is not None
        steps, updates, samples = np.array(self._states, dtype=np.int64).T
        size = self.x_2SND.shape[2] if self.method.name == "full" else self.method.batch_size
        course = Measured(
            *(
                np.stack([getattr(measured, key) for measured in self._measured], axis=1)
                for key in ("true_loss", "distance", "rearranging")
            )
        )
        return Curve(
            self.method,
            steps,
            updates,
            samples,
            np.stack(self._batch_loss, axis=1),
            course,
            self.x_2SND,
            measure(self.x_2SND, known),
            mean_batch_loss(self.x_2SND, size, numpy_generator(0, "synthetic/sampled batches", size)),
        )


def measure(x_2SND: Tensor, known: Optimum | None) -> Measured:
    """What is known of points; a few runs at a time, for an N x N matrix each."""
    num_samples = x_2SND.shape[2]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for some in x_2SND.split(max(1, CHUNK_ELEMENTS // num_samples**2), dim=1):
        z_SNN = similarities(some)
        loss_S = clip_losses(z_SNN).double()
        nothing_S = torch.full_like(loss_S, torch.nan)
        rearrange = known is not None and num_samples <= MOST_REARRANGED
        found.append(
            (
                loss_S,
                nothing_S if known is None else distance(z_SNN, known),
                rearranging_norm(z_SNN, known) if known is not None and rearrange else nothing_S,
            )
        )
    return Measured(*(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)))


def _reference(settings: Settings, known: Optimum | None, curves: list[Curve], progress: Progress) -> Reference:
    if known is not None:
        return Reference(known, known.full_loss)
    if settings.n > MOST_MINIMISED:
        return Reference(None, None)
    sizes = [size for size in settings.batch_sizes if math.comb(settings.n, size) <= MOST_BATCHES_MINIMISED]
    progress.begin("looking for the least loss")
    total = settings.restarts * (1 + len(sizes))
    ticks: Iterator[int] = iter(range(1, total + 1))

    def least(batches_KB: Tensor) -> Tensor:
        found = least_of_restarts(
            batches_KB,
            num_samples=settings.n,
            dim=settings.dim,
            restarts=settings.restarts,
            done=lambda: progress.count(next(ticks), total),
        )
        return clip_losses(similarities(found.x_2ND[:, None]))[0]

    loss = float(least(torch.arange(settings.n)[None]))
    loss = min([loss, *(float(curve.final.true_loss.min()) for curve in curves)])
    others = {size: float(least(combinations(settings.n, size))) - loss for size in sizes}
    return Reference(None, loss, settings.restarts, others)
