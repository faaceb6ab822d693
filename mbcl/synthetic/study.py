"""The synthetic study: methods from the same starting points, their curves, and the reference optimum.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, L points of a curve.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.samplers import combinations, one_thread
from mbcl.synthetic.groups import groups_of
from mbcl.synthetic.losses import least_of_restarts, starting_points
from mbcl.synthetic.optima import Optimum, optimum
from mbcl.synthetic.points import clip_losses, similarities
from mbcl.synthetic.records import Curve, Outcome, Recorder, Reference
from mbcl.synthetic.selections import Method, methods_of
from mbcl.synthetic.settings import Settings

MAX_MINIMISED = 128
"""Maximum number of samples for restarts, which search the minimum if no optimum is known."""
MAX_BATCHES_MINIMISED = 2000
"""Maximum C(N, B) for which the mean over all batches is also minimised."""


class Progress(Protocol):
    """A receiver of progress reports."""

    def begin(self, description: str) -> None:
        """Start a stage."""

    def count(self, done: int, total: int) -> None:
        """Report the progress of the stage."""


class Silent:
    """A progress receiver that ignores all reports."""

    def begin(self, description: str) -> None:
        """Ignore the stage."""

    def count(self, done: int, total: int) -> None:
        """Ignore the progress."""


def starts(settings: Settings) -> Tensor:
    """Draw the starting points of all runs: (2, S, N, D) float64, standard normal, a function of the seed alone."""
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
    other_minimisers: bool = True,
) -> Outcome:
    """Run the study.

    Args:
        settings: the settings of the study.
        progress: receives progress reports.
        start_2SND: (2, S, N, D) float, replaces the starting points, for example by stored ones.
        methods: replaces the methods, for example by ones with stored batches.
        other_minimisers: whether the mean over all batches is also minimised, if no optimum is known.

    Raises:
        ConfigError: if a sampler does not fit N and B, or points lose their directions.
    """
    progress = progress or Silent()
    methods = methods or methods_of(settings.samplers, settings.batch_sizes, settings.n)
    start_2SND = starts(settings) if start_2SND is None else start_2SND
    known = optimum(settings.n, settings.dim)
    # One thread is faster for small matrices, and makes the numbers independent of the number of cores.
    with torch.no_grad(), one_thread(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="sampler ", category=UserWarning
        )  # already shown when the methods were created
        recorders = _take_steps(settings, methods, start_2SND, known, progress)
        progress.begin("measuring")
        curves = [recorders[id(method)].curve(known) for method in methods]
        reference = _reference(settings, known, curves, progress, other_minimisers=other_minimisers)
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
                    _check_directions(method, state.x_2SND, step)
                    recorders[id(method)].log(step, state, known)
        progress.count(step + 1, settings.steps)
    for group in groups:
        for method, final in zip(group.methods, group.finals(), strict=True):
            _check_directions(method, final.x_2SND, settings.steps - 1)
            recorders[id(method)].end(final)
    return recorders


def _check_directions(method: Method, x_2SND: Tensor, step: int) -> None:
    length_2SN = torch.linalg.vector_norm(x_2SND, dim=-1)
    if not bool((length_2SN.isfinite() & (length_2SN > 0)).all()):
        raise ConfigError(f"{method.label}: points have no direction after step {step}; a smaller --lr may help")


def _reference(
    settings: Settings, known: Optimum | None, curves: list[Curve], progress: Progress, *, other_minimisers: bool
) -> Reference:
    if known is not None:
        return Reference(known, known.full_loss)
    if settings.n > MAX_MINIMISED:
        return Reference(None, None)
    sizes = [size for size in settings.batch_sizes if math.comb(settings.n, size) <= MAX_BATCHES_MINIMISED]
    sizes = sizes if other_minimisers else []
    progress.begin("looking for the least loss")
    total = settings.restarts * (1 + len(sizes))
    ticks: Iterator[int] = iter(range(1, total + 1))

    def full_loss_at_minimum(batches_KB: Tensor) -> Tensor:
        minimum = least_of_restarts(
            batches_KB,
            num_samples=settings.n,
            dim=settings.dim,
            restarts=settings.restarts,
            done=lambda: progress.count(next(ticks), total),
        )
        return clip_losses(similarities(minimum.x_2ND[:, None]))[0]

    restarted = float(full_loss_at_minimum(torch.arange(settings.n)[None]))
    others = {size: float(full_loss_at_minimum(combinations(settings.n, size))) for size in sizes}
    loss = min([restarted, *others.values(), *(float(curve.final.true_loss.min()) for curve in curves)])
    above = {size: other - loss for size, other in others.items()}
    return Reference(None, loss, settings.restarts, restarted, above)
