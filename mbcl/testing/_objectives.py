"""The contract test of objectives: the promises of :class:`mbcl.objectives.Objective`, on small batches.

Letters: B samples of the whole batch, b samples of a rank, D dimensions, W ranks.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count
from mbcl.objectives import OBJECTIVES, Objective, StatefulObjective, build
from mbcl.seeding import torch_generator
from mbcl.testing._gloo import run_on_gloo
from mbcl.testing._promises import broken, global_random_state, one_line
from mbcl.testing._shares import (
    BATCH_SIZE,
    EXACT,
    Step,
    batch,
    gradients,
    relative_error,
    steps_in_one_process,
    steps_on_rank,
)

TEMPERATURES = (1e-6, 0.002, 100.0)
REFUSED_TEMPERATURES = (0.0, -0.1, math.nan)


def check_objective(objective: Objective | str, /, *, num_workers: int = 2, **parameters: object) -> None:
    """Check that an objective keeps the promises of :class:`~mbcl.objectives.Objective`; return if it does.

    - The loss of a batch is a finite scalar, float32 or better, with finite gradients; also of float16 projections, of
      constant, zero, duplicate, very long and very short rows, and, if it has a ``temperature``, at the extremes that
      it accepts. Temperatures that are not above 0 raise a ``ConfigError``.
    - Equal arguments give equal losses, in every global random state.
    - The gradients are those of the loss, by finite differences in float64. An objective with state is exempt: its
      weights come from the state, and are constants of the gradient.
    - The order of the batch does not matter.
    - It has state if and only if its ``distribution`` is ``state``; pickling and the state dict keep it, and evaluation
      mode does not change it.
    - On several gloo processes, loss, gradients and state of three steps are those of one process on the whole
      batch to 1e-9 in float64. With the distribution ``local`` the ranks' losses are averaged first.

    Positions of samples are 0 to 7: an objective with state needs room for 8 samples.

    Args:
        objective: an objective, which is not changed, or the name of a registered one.
        num_workers: W, the processes of the comparison, a divisor of 8; with 1 none is started.
        parameters: of an objective given by its name; ``num_samples`` is 8 if it is needed and omitted.

    Raises:
        AssertionError: for the first broken promise: one line with the promise, what was promised and what was found.
        ConfigError: if the name or a parameter is unknown or a value is out of range.

    Example:
        >>> check_objective("clip", num_workers=1, temperature=0.5)
    """
    if BATCH_SIZE % check_count("num_workers", num_workers):
        raise ConfigError(f"check_objective: num_workers must divide {BATCH_SIZE}, found {num_workers}")
    if isinstance(objective, str):
        subject = f"objective {OBJECTIVES.canonical(objective)!r}"
        needed = {"num_samples": BATCH_SIZE} if "num_samples" in _keys(OBJECTIVES[objective]) else {}
        objective = build(objective, **{**needed, **parameters})
    elif parameters:
        raise ConfigError(
            f"check_objective: parameters need the name of an objective, found {objective!r}, {parameters}"
        )
    else:
        subject = f"objective {type(objective).__name__!r}"
    if not isinstance(objective, Objective):
        raise broken(subject, "type", "a subclass of mbcl.objectives.Objective", f"{type(objective).__name__}")
    _check_distribution(objective, subject)
    _check_pure(objective, subject)
    _check_losses(objective, subject)
    _check_order(objective, subject)
    _check_gradients(objective, subject)
    _check_temperatures(objective, subject)
    _check_state(objective, subject)
    if num_workers > 1:
        _check_workers(objective, subject, num_workers)


def _keys(objective: type[Objective]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(objective).parameters


def _loss(objective: Objective, z1: Tensor, z2: Tensor, indices: Tensor) -> Tensor:
    """Compute the loss with a copy, so that the state of ``objective`` does not change."""
    loss: Tensor = copy.deepcopy(objective)(z1, z2, indices)
    return loss


def _check_distribution(objective: Objective, subject: str) -> None:
    """Check that the declared distribution is known, and that there is state if and only if it says so."""
    distribution = getattr(objective, "distribution", None)
    if distribution not in ("local", "candidates", "state"):
        raise broken(subject, "distribution", "'local', 'candidates' or 'state'", repr(distribution))
    stateful = isinstance(objective, StatefulObjective)
    if stateful != (distribution == "state"):
        promised = "a StatefulObjective if and only if it is 'state'"
        raise broken(subject, "distribution", promised, f"{distribution!r} and {'one' if stateful else 'none'}")
    if bool(objective.state_dict()) != stateful:
        promised = "buffers or parameters if and only if it is 'state'"
        raise broken(subject, "distribution", promised, f"{distribution!r} and {sorted(objective.state_dict())}")


def _check_losses(objective: Objective, subject: str) -> None:
    """Check loss and gradients in every dtype, and of extreme rows."""
    z1, z2, indices = batch(0)
    number_B1 = torch.arange(BATCH_SIZE)[:, None]
    extremes = {
        "all rows equal": torch.ones_like(z1),
        "zero rows": torch.zeros_like(z1),
        "some zero rows": z1 * (number_B1 % 3 > 0),
        "pairs of duplicates": z1[torch.arange(BATCH_SIZE) // 2],
        "all rows 1e-30": z1 * 1e-30,
        "all rows 1e15": z1 * 1e15,
    }
    for dtype in (torch.float64, torch.float32, torch.float16):
        _check_finite(objective, subject, z1.to(dtype), z2.to(dtype), indices, f"random rows in {dtype}")
    for description, rows in extremes.items():
        for views, z in (("equal views", rows), ("opposite views", -rows)):
            _check_finite(objective, subject, rows.float(), z.float(), indices, f"{description}, {views}")


def _check_finite(objective: Objective, subject: str, z1: Tensor, z2: Tensor, indices: Tensor, case: str) -> None:
    """Check that loss and gradients are finite, and the loss a scalar of float32 or better."""
    leaves = [z.clone().requires_grad_() for z in (z1, z2)]
    try:
        loss = _loss(objective, leaves[0], leaves[1], indices)
    except Exception as error:
        raise broken(subject, "loss", "a finite scalar", f"{one_line(error)} ({case})") from error
    expected = torch.promote_types(z1.dtype, torch.float32)
    if loss.shape != () or loss.dtype != expected or not bool(loss.isfinite()):
        found = f"{loss.item()} in {loss.dtype}" if loss.shape == () else f"shape {tuple(loss.shape)}"
        raise broken(subject, "loss", f"a finite scalar in {expected}", f"{found} ({case})")
    if not loss.requires_grad:
        raise broken(subject, "gradients", "a loss with gradients", f"a loss without ({case})")
    if not bool(gradients(loss, leaves).isfinite().all()):
        raise broken(subject, "gradients", "finite numbers", f"numbers that are not ({case})")


def _check_pure(objective: Objective, subject: str) -> None:
    """Check that the loss does not depend on the global random generators."""
    losses = []
    for seed in (1, 1, 2):
        with global_random_state(seed):
            z1, z2, indices = batch(1)
            losses.append(_loss(objective, z1, z2, indices))
    for promise, other in (("pure function", losses[1]), ("global random state", losses[2])):
        if not torch.equal(losses[0], other):
            raise broken(subject, promise, "equal losses of equal batches", f"{losses[0].item()} and {other.item()}")


def _check_order(objective: Objective, subject: str) -> None:
    """Check that loss and gradients do not depend on the order of the batch."""
    z1, z2, indices = batch(2)
    order = torch.randperm(BATCH_SIZE, generator=torch_generator(0, "testing/order"))
    results = []
    for at in (torch.arange(BATCH_SIZE), order):
        leaves = [z.clone().requires_grad_() for z in (z1, z2)]
        loss = _loss(objective, leaves[0][at], leaves[1][at], indices[at])
        results.append((loss.detach(), gradients(loss, leaves)))
    for name, found, expected in zip(("loss", "gradients"), results[1], results[0], strict=True):
        error = relative_error(found, expected)
        if not error <= EXACT:
            promised = f"the same {name} for every order of the samples, to {EXACT:g}"
            raise broken(subject, "order of the batch", promised, f"a difference of {error:.1e}")


def _check_gradients(objective: Objective, subject: str) -> None:
    """Check the gradients against finite differences, unless weights come from a state."""
    if objective.distribution == "state":
        return
    z1, z2, indices = batch(3)
    inputs = [z[:4].clone().requires_grad_() for z in (z1, z2)]
    try:
        torch.autograd.gradcheck(lambda a, b: _loss(objective, a, b, indices[:4]), inputs)
    except RuntimeError as error:  # GradcheckError is one
        raise broken(subject, "gradients", "those of the loss by finite differences", one_line(error)) from error


def _check_temperatures(objective: Objective, subject: str) -> None:
    """Check loss and gradients at extreme temperatures, and that others are refused."""
    keys = _keys(type(objective))
    if "temperature" not in keys or not all(hasattr(objective, key) for key in keys):
        return
    settings = {key: getattr(objective, key) for key in keys}
    z1, z2, indices = batch(4)
    for temperature in TEMPERATURES:
        try:
            extreme = type(objective)(**{**settings, "temperature": temperature})
        except ConfigError:
            continue
        for dtype in (torch.float64, torch.float32):
            case = f"temperature {temperature:g}, {dtype}"
            _check_finite(extreme.train(objective.training), subject, z1.to(dtype), z2.to(dtype), indices, case)
    for temperature in REFUSED_TEMPERATURES:
        try:
            type(objective)(**{**settings, "temperature": temperature})
        except ConfigError:
            continue
        raise broken(subject, "temperature", f"a ConfigError for {temperature}", "none")


def _check_state(objective: Objective, subject: str) -> None:
    """Check that pickling and the state dict keep the state, and that evaluation mode does not change it."""
    trained = copy.deepcopy(objective).train()
    for step in range(2):
        trained(*batch(step))
    try:
        pickled = pickle.loads(pickle.dumps(trained))
    except Exception as error:
        raise broken(subject, "picklable", "an objective that pickles", one_line(error)) from error
    loaded = copy.deepcopy(objective).train()
    loaded.load_state_dict(trained.state_dict())
    expected = _loss(trained, *batch(2))
    for promise, other in (("picklable", pickled), ("state dict", loaded)):
        found = _loss(other, *batch(2))
        if not torch.equal(found, expected):
            raise broken(subject, promise, f"the loss {expected.item()} after a round trip", str(found.item()))
    before = copy.deepcopy(trained.state_dict())
    trained.eval()(*batch(2))
    changed = [key for key, value in trained.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise broken(subject, "evaluation mode", "state that does not change", f"that {', '.join(changed)} changed")
    if isinstance(trained, StatefulObjective):
        age = trained.age()
        if trained.pending is not None or age is None or not 0 <= age < math.inf:
            promised = "an age of at least 0 and nothing pending after steps in one process"
            raise broken(subject, "state", promised, f"age {age}, pending {trained.pending is not None}")


def _check_workers(objective: Objective, subject: str, num_workers: int) -> None:
    """Check that steps on several ranks are those of one process."""
    promise = f"distribution {objective.distribution!r}"
    ranks = []
    for steps in _run_steps(objective, subject, num_workers):
        if isinstance(steps, str):
            raise broken(subject, promise, f"steps on {num_workers} workers", steps)
        ranks.append(steps)
    alone = steps_in_one_process(objective)
    on = f"of the whole batch in one process to {EXACT:g} on {num_workers} workers"
    for number, expected in enumerate(alone):
        found = Step.merge([steps[number] for steps in ranks], objective.distribution)
        for name in ("loss", "gradients"):
            difference = relative_error(getattr(found, name), getattr(expected, name))
            if not difference <= EXACT:
                raise broken(subject, promise, f"{name} {on}", f"a difference of {difference:.1e} in step {number}")
        _check_equal_states(subject, promise, on, [steps[number] for steps in ranks], expected)


def _run_steps(objective: Objective, subject: str, num_workers: int) -> list[list[Step] | str]:
    try:
        return run_on_gloo(steps_on_rank, num_workers, objective)
    except AssertionError as error:  # a process that cannot import the objective, or does not answer
        raise broken(subject, "workers", f"steps on {num_workers} of them", str(error).splitlines()[-1]) from error


def _check_equal_states(subject: str, promise: str, on: str, ranks: Sequence[Step], expected: Step) -> None:
    """Check that the state is that of one process, and equal on all ranks to the last bit."""
    for key, value in expected.state.items():
        difference = relative_error(ranks[0].state[key], value)
        if not difference <= EXACT:
            raise broken(subject, promise, f"state {key!r} {on}", f"a difference of {difference:.1e}")
        if not all(torch.equal(step.state[key], ranks[0].state[key]) for step in ranks):
            raise broken(subject, promise, f"that state {key!r} is equal on all ranks", "that it differs")
