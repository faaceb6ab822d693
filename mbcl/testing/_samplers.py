"""The contract test of samplers: the promises of :class:`mbcl.samplers.Sampler`, on small data sets.

Letters: N samples of the data set, B samples a batch, D dimensions.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch

from mbcl.errors import ConfigError, PlanError, pluralize
from mbcl.plan import Embeddings
from mbcl.samplers import PoolFunction, PoolItem, PoolPlan, PoolSampler, Sampler, build
from mbcl.seeding import torch_generator
from mbcl.testing._checked_plans import CheckedPlanner
from mbcl.testing._extremes import extreme_embeddings, random_views
from mbcl.testing._groups import check_groups
from mbcl.testing._promises import broken, draw_globally, global_random_state, one_line

BATCH_SIZE = 4
"""B of a sampler that is given by its name alone."""
KEYS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 30, 2))
"""Seed, epoch and round of the plans that are made of every data set."""
MIN_ELEMENTS = 2**17
"""torch divides an operation among its threads if it has more than 2^15 elements."""
DEPENDENCES: tuple[set[str], ...] = (set(), {"seed"}, {"seed", "epoch", "round"})
"""What the plans of a sampler may depend on: of fixed embeddings alone; one partition for all epochs; new ones."""


def check_sampler(sampler: Sampler | str, /, **parameters: object) -> None:
    """Check that a sampler keeps the promises of :class:`~mbcl.samplers.Sampler`; return if it does.

    On several data sets, some of which the batches do not divide, the check makes plans of several seeds, epochs and
    rounds:

    - A plan has the declared length and width, and keeps ``no_repeats`` and ``covers_all``
      (:func:`~mbcl.samplers.check_plan`). It has the sampler's name and the seed, epoch and round of the call.
    - Equal arguments give equal plans, also by a pickled copy, in every global random state, on any number of torch
      threads, and for the rows in any order. Planning changes neither the global random state nor the embeddings.
    - Plans depend on seed, epoch and round; on the seed alone; or on none of them.
    - The pools of a :class:`~mbcl.samplers.PoolSampler` may be planned in any order, from read-only arrays, by copies
      of the sampler, and for several rounds at once.
    - :func:`extreme_embeddings` are planned like all others.
    - If ``plan`` takes groups: those of ``apart`` are parted where possible and counted elsewhere, batches are of one
      source of ``together``, and ids that do not fit raise a ``ConfigError``.
    - Too few samples raise a ``ConfigError`` of one line, missing or incomplete embeddings a ``PlanError``.

    The check takes about a second at a small batch size. It ignores warnings of the sampler.

    Args:
        sampler: a sampler, or the name of a registered one.
        parameters: of a sampler given by its name; ``batch_size`` is 4 if omitted.

    Raises:
        AssertionError: for the first broken promise: one line with the promise, what was promised and what was found.
        ConfigError: if the name or a parameter is unknown or a value is out of range.

    Example:
        >>> check_sampler("kmeans", batch_size=4, pool=12)
    """
    if isinstance(sampler, str):
        given: dict[str, object] = {"batch_size": BATCH_SIZE, **parameters}
        sampler = build(sampler, **given)  # type: ignore[arg-type]  # checked there
    elif parameters:
        raise ConfigError(f"check_sampler: parameters need the name of a sampler, found {sampler!r} and {parameters}")
    planner = CheckedPlanner(sampler, f"sampler {getattr(sampler, 'name', type(sampler).__name__)!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_declarations(sampler, planner.subject)
        sizes = planner.accepted_sizes()
        embeddings = _embeddings(sizes[-1])
        _check_global_random_state(planner, embeddings)
        _check_plans_and_copies(planner, sizes)
        _check_seed_epoch_and_round(planner, embeddings)
        _check_threads(planner, sizes[-1])
        _check_pool_map(planner, embeddings)
        _check_rounds(planner, embeddings)
        _check_embeddings(planner, embeddings)
        _check_extremes(planner, sizes[-1])
        _check_too_few_samples(planner)
        check_groups(planner, sizes[-1], LastFirst())


def _embeddings(num_samples: int, dim: int = 5) -> Embeddings:
    """Return random embeddings of all samples."""
    return Embeddings(*random_views(num_samples, dim))


def _check_declarations(sampler: Sampler, subject: str) -> None:
    """Check the types of the attributes, and that they cannot be set."""
    types = {"name": str, "needs_embeddings": bool, "batch_size": int, "no_repeats": bool, "covers_all": bool}
    for attribute, expected in types.items():
        value = getattr(sampler, attribute, None)
        if type(value) is not expected:
            raise broken(subject, attribute, f"a value of type {expected.__name__}", repr(value))
    if sampler.batch_size < 2:
        raise broken(subject, "batch_size", "at least 2", str(sampler.batch_size))
    try:
        sampler.batch_size = sampler.batch_size  # type: ignore[misc]  # it is to fail
    except AttributeError:
        return
    raise broken(subject, "frozen", "that attributes cannot be set", "that batch_size can be set")


def _check_global_random_state(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check that a plan neither depends on the global random generators nor draws from them."""
    plans, draws = [], []
    for seed in (1, 1, 2):
        with global_random_state(seed):
            plans.append(planner(embeddings))
            draws.append(draw_globally())
    planner.expect_equal(plans[0], plans[1], "pure function", "equal plans for equal arguments")
    planner.expect_equal(plans[0], plans[2], "global random state", "plans that do not depend on it")
    with global_random_state(1):
        expected = draw_globally()
    if draws[0] != expected:
        raise planner.broken("global random state", "that planning does not change it", "another state after a plan")


def _check_plans_and_copies(planner: CheckedPlanner, sizes: Sequence[int]) -> None:
    """Check plans of every size for every key, and that a pickled copy of the sampler makes the same ones."""
    try:
        copy = pickle.loads(pickle.dumps(planner.sampler))
    except Exception as error:
        raise planner.broken("picklable", "a sampler that pickles", one_line(error)) from error
    for num_samples, (seed, epoch, round) in product(sizes, KEYS):
        embeddings = _embeddings(num_samples)
        plan, other = (
            each(embeddings, seed=seed, epoch=epoch, round=round) for each in (planner, replace(planner, sampler=copy))
        )
        planner.expect_equal(plan, other, "picklable", "equal plans from a copy of the sampler")


def _check_seed_epoch_and_round(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check that what the plans depend on is one of :data:`DEPENDENCES`."""
    dependence = {
        key
        for key in ("seed", "epoch", "round")
        if len({planner(embeddings, **{key: value}).digest for value in range(4)}) > 1  # type: ignore[arg-type]
    }
    if dependence not in DEPENDENCES:
        promised = "plans that depend on seed, epoch and round, on the seed alone, or on none of them"
        raise planner.broken(
            "seed, epoch and round", promised, f"that they depend on {' and '.join(sorted(dependence))}"
        )


def _check_threads(planner: CheckedPlanner, num_samples: int) -> None:
    """Check that plans do not depend on the number of torch threads, with enough dimensions that torch uses several."""
    embeddings = _embeddings(num_samples, dim=max(5, MIN_ELEMENTS // num_samples))
    before, plans = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            plans.append(planner(embeddings))
    finally:
        torch.set_num_threads(before)
    planner.expect_equal(plans[0], plans[1], "torch threads", "plans that do not depend on their number")


class LastFirst:
    """A map over pools as by tasks in other processes: last first, from read-only arrays, by copies."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        self.num_calls += 1
        planned = {}
        for index in reversed(range(len(items))):
            arguments = pickle.loads(pickle.dumps(items[index]))
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    argument.setflags(write=False)
            planned[index] = pickle.loads(pickle.dumps(function))(*arguments)
        return [planned[index] for index in range(len(items))]


def _check_pool_map(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check the pools planned in another order, and from read-only arrays."""
    last_first = LastFirst()
    warn_always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise the warning below comes once in the life of a process
    try:
        with warnings.catch_warnings():
            # A tensor that shares the memory of a read-only array can be written to, and the array changes.
            warnings.filterwarnings("error", "The given NumPy array is not writable")
            description = "pools planned last first, from read-only arrays"
            plan = planner(embeddings, map_pools=last_first, description=description)
    finally:
        torch.set_warn_always(warn_always)
    planner.expect_equal(planner(embeddings), plan, "map_pools", "plans that do not depend on the map over pools")
    if isinstance(planner.sampler, PoolSampler) and not last_first.num_calls:
        raise planner.broken("map_pools", "that a PoolSampler plans its pools by it", "that it was not called")


def _check_rounds(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check that rounds planned at once are the rounds planned one by one."""
    if isinstance(planner.sampler, PoolSampler):
        plans = planner.sampler.plan_rounds(len(embeddings), embeddings, rounds=range(2))
        for number, plan in enumerate(plans):
            single = planner(embeddings, round=number)
            planner.expect_equal(single, plan, "plan_rounds", "the plans of the single rounds")


def _check_embeddings(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check that the order of the rows does not matter, and that missing or incomplete embeddings are refused."""
    sampler, num_samples = planner.sampler, len(embeddings)
    expected = planner(embeddings)
    order = torch.randperm(num_samples, generator=torch_generator(0, "testing/rows"))
    shuffled = Embeddings(embeddings.z1[order], embeddings.z2[order], order)
    planner.expect_equal(expected, planner(shuffled), "rows", "plans that do not depend on the rows' order")
    if not sampler.needs_embeddings:
        plan = sampler.plan(num_samples)
        planner.expect_equal(expected, plan, "needs_embeddings", "plans that do not depend on embeddings")
        return
    z1, z2 = embeddings.z1, embeddings.z2
    incomplete = {
        "no embeddings": None,
        "embeddings of all samples but the last": Embeddings(z1[:-1], z2[:-1]),
        "embeddings with one sample twice": Embeddings(z1, z2, embeddings.indices.clamp(min=1)),
        "embeddings with positions from 1 to N": Embeddings(z1, z2, embeddings.indices + 1),
    }
    for description, case in incomplete.items():
        _expect_error(planner, PlanError, description, partial(sampler.plan, num_samples, case))


def _check_extremes(planner: CheckedPlanner, num_samples: int) -> None:
    """Check that every extreme embeddings have a plan, twice the same."""
    if planner.sampler.needs_embeddings:
        for description, embeddings in extreme_embeddings(num_samples).items():
            plan, other = (planner(embeddings, description=description) for _ in range(2))
            planner.expect_equal(plan, other, "pure function", f"equal plans for equal arguments ({description})")


def _check_too_few_samples(planner: CheckedPlanner) -> None:
    """Check that fewer samples than a batch holds are refused."""
    sampler = planner.sampler
    for num_samples in {0, 1, sampler.batch_size - 1}:
        description = f"{pluralize(num_samples, 'sample')} for batches of {sampler.batch_size}"
        text = _expect_error(planner, ConfigError, description, partial(sampler.check, num_samples))
        embeddings = _embeddings(num_samples)
        _expect_error(planner, ConfigError, description, partial(sampler.plan, num_samples, embeddings))
        if str(num_samples) not in text or str(sampler.batch_size) not in text:
            raise planner.broken("ConfigError", f"a message with both numbers for {description}", repr(text))


def _expect_error(
    planner: CheckedPlanner, expected: type[Exception], description: str, call: Callable[[], object]
) -> str:
    """Return the one-line message of the expected error."""
    promised = f"a {expected.__name__} of one line for {description}"
    try:
        call()
    except expected as error:
        if "\n" not in str(error):
            return str(error)
        raise planner.broken(expected.__name__, promised, "several lines") from error
    except Exception as error:
        raise planner.broken(expected.__name__, promised, one_line(error)) from error
    raise planner.broken(expected.__name__, promised, "no error")
