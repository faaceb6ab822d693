"""The synthetic study: methods from the same starting points, their curves, and the reference optimum.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, L points of a curve.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from mbcl.console.stages import Stages
from mbcl.errors import ConfigError, SamplerWarning, pluralize
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


def run(
    settings: Settings,
    *,
    progress: Stages | None = None,
    start_2SND: Tensor | None = None,
    methods: Sequence[Method] | None = None,
    other_minimisers: bool = True,
) -> Outcome:
    """Run the study and show its stages on a display, by default on none.

    ``start_2SND``, (2, S, N, D) float, and ``methods`` replace those of the settings, for example by stored points and
    batches. With ``other_minimisers``, the mean over all batches is also minimised, if no optimum is known.

    Raises:
        ConfigError: if a sampler does not fit N and B, or points lose their directions.
    """
    progress = progress or Stages(quiet=True)
    methods = methods or methods_of(settings.samplers, settings.batch_sizes, settings.n)
    if start_2SND is None:
        start_2SND = torch.stack([starting_points(settings.n, settings.dim, seed) for seed in settings.seeds], dim=1)
        if settings.equal_init:
            start_2SND[1] = start_2SND[0]
    known = optimum(settings.n, settings.dim)
    # One thread is faster for small matrices, and makes the numbers independent of the number of cores.
    with torch.no_grad(), one_thread(), warnings.catch_warnings():
        # They were already shown when the methods were created.
        warnings.simplefilter("ignore", SamplerWarning)
        curves = _curves(settings, methods, start_2SND, known, progress)
        reference = _reference(settings, known, curves, progress, other_minimisers=other_minimisers)
    return Outcome(settings, start_2SND, curves, reference)


def _curves(
    settings: Settings, methods: Sequence[Method], start_2SND: Tensor, known: Optimum | None, progress: Stages
) -> list[Curve]:
    groups = groups_of(settings, methods, start_2SND)
    recorders = {id(method): Recorder(method) for method in methods}
    logged = set(settings.logged())
    progress.begin(pluralize(settings.steps, "step"))
    for step in range(settings.steps):
        for group in groups:
            group.step(step)
            if step in logged:
                for method, state in zip(group.methods, group.states(), strict=True):
                    _check_directions(method, state.x_2SND, step)
                    recorders[id(method)].log(step, state, known)
        progress.count(step + 1, settings.steps)
    finals = {}
    for group in groups:
        for method, final in zip(group.methods, group.states(final=True), strict=True):
            _check_directions(method, final.x_2SND, settings.steps - 1)
            finals[id(method)] = final
    progress.begin("measuring")
    return [recorders[id(method)].curve(finals[id(method)], known) for method in methods]


def _check_directions(method: Method, x_2SND: Tensor, step: int) -> None:
    length_2SN = torch.linalg.vector_norm(x_2SND, dim=-1)
    if not bool((length_2SN.isfinite() & (length_2SN > 0)).all()):
        raise ConfigError(f"{method.label}: points have no direction after step {step}; a smaller --lr may help")


def _reference(
    settings: Settings, known: Optimum | None, curves: list[Curve], progress: Stages, *, other_minimisers: bool
) -> Reference:
    if known is not None:
        return Reference(known, known.full_loss)
    if settings.n > MAX_MINIMISED:
        return Reference(None, None)
    sizes = [size for size in settings.batch_sizes if math.comb(settings.n, size) <= MAX_BATCHES_MINIMISED]
    sizes = sizes if other_minimisers else []
    progress.begin("looking for the least loss")
    total = settings.restarts * (1 + len(sizes))
    ticks = count(1)

    def full_loss_at_minimum(batches_KB: Tensor) -> Tensor:
        _, x_2ND = least_of_restarts(
            batches_KB,
            num_samples=settings.n,
            dim=settings.dim,
            restarts=settings.restarts,
            done=lambda: progress.count(next(ticks), total),
        )
        return clip_losses(similarities(x_2ND[:, None]))[0]

    restarted = float(full_loss_at_minimum(torch.arange(settings.n)[None]))
    others = {size: float(full_loss_at_minimum(combinations(settings.n, size))) for size in sizes}
    loss = min([restarted, *others.values(), *(float(curve.final.true_loss.min()) for curve in curves)])
    above = {size: other - loss for size, other in others.items()}
    return Reference(None, loss, restarted, above)
