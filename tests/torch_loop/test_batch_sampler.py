"""The batches of a PlannedBatchSampler: of plans, files, functions and samplers, whole, resumed and by ranks."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

import mbcl
from mbcl import samplers
from mbcl.cli import main
from mbcl.errors import CheckpointError, ConfigError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner import PlanKey, make_plan
from mbcl.torch import PlannedBatchSampler

N, B = 50, 8
STEPS = N // B


def embeddings(rows=N):
    z = torch.randn(rows, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Embeddings(z, z + 0.1)


def shuffled(epoch, rows=N):
    return samplers.build("shuffle", batch_size=B).plan(rows, seed=5, epoch=epoch)


KINDS = {
    "plan": lambda **options: PlannedBatchSampler(shuffled(0), num_samples=N, **options),
    "function": lambda **options: PlannedBatchSampler(shuffled, num_samples=N, **options),
    "sampler": lambda **options: PlannedBatchSampler.from_sampler(
        "spectral", embeddings(), batch_size=B, k=2, seed=5, **options
    ),
}


def batches_of(batches, epoch=0):
    batches.set_epoch(epoch)
    return list(batches)


# -- plans of fewer samples than the data set ----------------------------------------------------------------------


def planned(name, rows, **parameters):
    return samplers.build(name, batch_size=B, **parameters).plan(rows, embeddings(rows), seed=5)


@pytest.mark.parametrize("number", [N, N + B - 3])
@pytest.mark.parametrize("kind", ["plan", "function", "file"])
def test_a_plan_of_fewer_samples_than_the_data_set_is_warned_of(tmp_path, number, kind):
    """48 samples are in batches, so a data set of 50 has a remainder of 2, and one of 55 fewer than a batch."""
    plan = planned("spectral", N, k=2)
    plan.save(tmp_path / "plan.npz")
    given = {"plan": plan, "function": lambda epoch: plan, "file": tmp_path / "plan.npz"}[kind]
    assert len(list(PlannedBatchSampler(given, num_samples=number))) == STEPS
    with pytest.warns(UserWarning, match="the plan of 'spectral' holds 48 of the 56 samples, so the others are in no"):
        assert len(list(PlannedBatchSampler(given, num_samples=56))) == STEPS
    assert len(list(PlannedBatchSampler(given))) == STEPS, "without N nothing is known"


@pytest.mark.parametrize(
    ("name", "parameters"), [("osgd", {"k": 3, "q": 1}), ("walk", {"neighbours": 4}), ("osgd_exhaustive", {})]
)
def test_a_sampler_that_leaves_samples_out_by_design_is_not_warned_of(name, parameters):
    rows = 16 if name == "osgd_exhaustive" else N
    plan = planned(name, rows, **parameters)
    assert len(torch.unique(plan.batches)) <= rows - B
    assert len(list(PlannedBatchSampler(plan, num_samples=rows))) == len(plan)


# -- what an epoch holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("spectral", {"k": 2}), ("osgd", {"k": 3, "q": 1}), ("kmeans", {"pool": 24})]
)
@pytest.mark.parametrize("as_object", [False, True])
def test_a_sampler_yields_the_plans_of_the_engine(name, parameters, as_object):
    sampler = samplers.build(name, batch_size=B, **parameters)
    rounds = -(-STEPS // sampler.plan_length(N))
    make = partial(PlannedBatchSampler.from_sampler, seed=3)
    batches = make(sampler, embeddings()) if as_object else make(name, embeddings(), batch_size=B, **parameters)
    for epoch in (0, 1, 4):
        plan = make_plan(sampler, embeddings(), PlanKey(epoch, 0, rounds, STEPS), num_samples=N, seed=3).plan
        assert batches_of(batches, epoch) == plan.batches.tolist()
    assert len(batches) == STEPS


def test_samplers_without_embeddings_need_the_number_of_samples_only():
    batches = PlannedBatchSampler.from_sampler("shuffle", num_samples=N, batch_size=B, seed=5)
    assert [batches_of(batches, epoch) for epoch in range(3)] == [shuffled(e).batches.tolist() for e in range(3)]


def test_samplers_of_the_synthetic_study_have_their_own_epochs():
    assert batches_of(PlannedBatchSampler.from_sampler("full", num_samples=6, batch_size=6)) == [[0, 1, 2, 3, 4, 5]]
    pairs = batches_of(PlannedBatchSampler.from_sampler("all_batches", num_samples=4, batch_size=2))
    assert sorted(map(sorted, pairs)) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_a_plan_file_yields_the_rows_of_the_plan(tmp_path):
    path = tmp_path / "plan.npz"
    line = ["plan", "--num-samples", str(N), "--sampler", "shuffle", "--batch-size", str(B), "--seed", "5"]
    assert main([*line, "--out", str(path)]) == 0
    for plan in (path, str(path), BatchPlan.load(path), lambda epoch: BatchPlan.load(path)):
        assert batches_of(PlannedBatchSampler(plan)) == shuffled(0).batches.tolist()


def test_later_epochs_of_a_fixed_plan_have_its_batches_in_an_order_of_seed_and_epoch():
    plan = shuffled(0)
    epochs = [batches_of(PlannedBatchSampler(plan), epoch) for epoch in range(4)]
    assert epochs[0] == plan.batches.tolist()
    assert {tuple(sorted(map(tuple, epoch))) for epoch in epochs} == {tuple(sorted(map(tuple, epochs[0])))}
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) == 4
    other = BatchPlan(plan.batches, "shuffle", seed=6)
    assert batches_of(PlannedBatchSampler(other), 1) != epochs[1]


def test_a_function_is_called_once_an_epoch():
    calls = []

    def plan(epoch):
        calls.append(epoch)
        return shuffled(epoch)

    batches = PlannedBatchSampler(plan)
    assert calls == []
    for epoch in range(3):
        batches.set_epoch(epoch)
        assert (len(batches), batches.batch_size) == (STEPS, B)
        assert list(batches) == shuffled(epoch).batches.tolist()
    assert calls == [0, 1, 2]


def test_an_epoch_that_comes_again_without_set_epoch_warns():
    batches = KINDS["sampler"]()
    first = list(batches)
    with pytest.warns(UserWarning, match="epoch 0 has the same batches again: set_epoch was not called"):
        assert list(batches) == first


def test_it_is_a_batch_sampler_of_torch():
    batches = mbcl.torch.PlannedBatchSampler(shuffled(0), rank=0, world_size=2)
    assert isinstance(batches, BatchSampler)
    assert (batches.batch_size, batches.drop_last) == (B // 2, True)


# -- ranks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_yield_the_columns_of_the_same_global_batches(kind, world_size):
    for epoch in range(2):
        whole = batches_of(KINDS[kind](), epoch)
        ranks = [batches_of(KINDS[kind](rank=r, world_size=world_size), epoch) for r in range(world_size)]
        assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


# -- the remainder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_short_batch_holds_the_samples_that_no_other_batch_holds(kind, world_size):
    for epoch in range(3):
        dropping = KINDS[kind]()
        whole = batches_of(dropping, epoch)
        missing = sorted(set(range(N)) - set(sum(whole, [])))
        assert dropping.left_out.tolist() == missing
        assert len(missing) == N % B
        ranks = [KINDS[kind](drop_last=False, rank=r, world_size=world_size) for r in range(world_size)]
        ranked = [batches_of(batches, epoch) for batches in ranks]
        assert [sum(parts, []) for parts in zip(*ranked, strict=True)] == [*whole, missing]
        assert len(ranks[0]) == STEPS + 1
    assert len(dropping) == STEPS


def test_without_a_remainder_there_is_no_short_batch():
    batches = PlannedBatchSampler.from_sampler("shuffle", num_samples=48, batch_size=B, drop_last=False)
    assert len(batches) == len(list(batches)) == 6
    assert batches.left_out.tolist() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KINDS["plan"](drop_last=False, rank=0, world_size=4), "4 ranks cannot share the last batch of 2"),
        (lambda: KINDS["sampler"](drop_last=False, rank=0, world_size=4), "4 ranks cannot share the last batch of 2"),
        (lambda: list(KINDS["function"](drop_last=False, rank=0, world_size=4)), "4 ranks cannot share the last"),
        (
            lambda: PlannedBatchSampler.from_sampler("shuffle", num_samples=49, batch_size=B, drop_last=False),
            "one sample, which has no negatives",
        ),
        (
            lambda: PlannedBatchSampler.from_sampler("osgd", embeddings(), batch_size=B, k=3, q=1, drop_last=False),
            "repeat samples, leave a batch or more of them out, or keep sources together",
        ),
        (lambda: PlannedBatchSampler(shuffled(0), drop_last=False), "num_samples is needed"),
        (lambda: PlannedBatchSampler(shuffled(0), num_samples=60, drop_last=False), "each of the 60 samples once"),
        (lambda: list(PlannedBatchSampler(shuffled, num_samples=60, drop_last=False)), "each of the 60 samples once"),
        (lambda: PlannedBatchSampler(shuffled(0), drop_last=1), "drop_last must be true or false, found 1"),
        (lambda: PlannedBatchSampler(shuffled(0)).left_out, "num_samples is needed"),
    ],
)
@pytest.mark.filterwarnings("ignore:the plan of 'shuffle' holds 48 of the 60 samples")
def test_a_short_batch_that_is_none_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# -- resuming ------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(sorted(KINDS)),
    epoch=st.integers(0, 3),
    cut=st.integers(0, STEPS + 1),
    world_size=st.sampled_from([1, 2]),
    drop_last=st.booleans(),
    again=st.booleans(),
)
def test_resuming_at_any_cut_equals_the_uninterrupted_epochs(kind, epoch, cut, world_size, drop_last, again):
    """The state also goes to another number of ranks; ``again``: it is saved and loaded a second time at once."""
    make = partial(KINDS[kind], drop_last=drop_last)
    whole, following = batches_of(make(), epoch), batches_of(make(), epoch + 1)
    cut = min(cut, len(whole))
    first = make(rank=world_size - 1, world_size=world_size)
    first.set_epoch(epoch)
    iterator = iter(first)
    for _ in range(cut):
        next(iterator)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    if again:
        state, second = second.state_dict(), make()
        second.load_state_dict(state)
    second.set_epoch(epoch)
    assert (second.epoch, second.step, len(second)) == (epoch, cut, len(whole))
    assert list(second) == whole[cut:]
    assert batches_of(second, epoch + 1) == following


def test_a_loaded_state_counts_for_one_iteration_and_set_epoch_clears_it():
    batches = KINDS["plan"]()
    whole = batches_of(batches, 1)
    batches.load_state_dict(batches.state_dict(2))
    assert list(batches) == whole[2:]
    assert list(batches) == whole
    batches.load_state_dict(batches.state_dict(2))
    batches.set_epoch(2)
    assert len(list(batches)) == STEPS


def test_an_iterator_that_is_not_used_changes_nothing():
    """A DataLoader with workers, and a StatefulDataLoader, make several for one epoch."""
    batches = KINDS["plan"]()
    whole = list(batches)
    batches.load_state_dict(batches.state_dict(3))
    iter(batches)
    used = iter(batches)
    assert batches.step == 3
    assert [next(used), *used] == whole[3:]


def test_an_older_iterator_does_not_count():
    batches = KINDS["plan"]()
    old = iter(batches)
    next(old)
    new = iter(batches)
    next(new)
    list(old)
    assert batches.step == 1


class Positions(TensorDataset):
    """Each sample is its position."""

    def __init__(self):
        super().__init__(torch.arange(N))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, STEPS])
def test_a_loader_resumes_behind_the_batch_that_the_loop_trained_on(workers, cut):
    def loader(batches):
        return DataLoader(Positions(), batch_sampler=batches, num_workers=workers)

    batches = KINDS["sampler"]()
    batches.set_epoch(2)
    whole = [batch.tolist() for (batch,) in loader(batches)]
    assert whole == batches_of(KINDS["sampler"](), 2)

    batches = KINDS["sampler"]()
    batches.set_epoch(2)
    seen = []
    for step, (batch,) in enumerate(loader(batches), start=batches.step):
        seen.append(batch.tolist())
        if step + 1 == cut:
            state = batches.state_dict(step + 1)
            assert batches.step == (min(STEPS, cut + 4) if workers else cut), "workers take batches ahead of the loop"
            break
    resumed = KINDS["sampler"]()
    resumed.load_state_dict(state)
    steps = list(enumerate(loader(resumed), start=resumed.step))
    assert [step for step, _ in steps] == list(range(cut, STEPS))
    assert seen + [batch.tolist() for _, (batch,) in steps] == whole


def test_a_state_of_other_batches_is_refused_at_the_first_batch():
    state = KINDS["sampler"]().state_dict()
    batches = PlannedBatchSampler.from_sampler("spectral", embeddings(), batch_size=B, k=2, seed=6)
    batches.load_state_dict(state)
    assert len(list(batches)) == STEPS, "nothing was trained on yet"
    first = KINDS["sampler"]()
    next(iter(first))
    batches.load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError, match="after 1 batches of epoch 0 of another plan"):
        next(iter(batches))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"epoch": 0, "step": 1},
        {"epoch": 0, "step": 1, "digest": ""},
        {"epoch": -1, "step": 0, "digest": ""},
        {"epoch": 0, "step": True, "digest": "00"},
        {"epoch": "0", "step": 0, "digest": ""},
    ],
)
def test_what_is_no_state_is_refused(state):
    with pytest.raises(CheckpointError, match="not a state of a PlannedBatchSampler"):
        KINDS["plan"]().load_state_dict(state)


def test_a_state_behind_the_last_batch_is_refused():
    batches = KINDS["plan"]()
    batches.load_state_dict({"epoch": 0, "step": STEPS + 1, "digest": "00"})
    with pytest.raises(CheckpointError, match="of another plan"):
        list(batches)
    with pytest.raises(ConfigError, match="3 batches are given, 0 were yielded in epoch 0"):
        KINDS["plan"]().state_dict(3)


# -- hostile input -------------------------------------------------------------------------------------------------


def damaged(tmp_path):
    path = tmp_path / "plan.npz"
    shuffled(0).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda _: PlannedBatchSampler.from_sampler("shuffle", num_samples=N, batch_size=N + 1),
            ConfigError,
            "batch_size 51 is above the 50 samples",
        ),
        (lambda _: KINDS["plan"](rank=0, world_size=3), ConfigError, "3 ranks cannot share batches of 8 samples"),
        (lambda _: KINDS["sampler"](rank=0, world_size=16), ConfigError, "16 ranks cannot share batches of 8"),
        (lambda _: list(KINDS["function"](rank=0, world_size=3)), ConfigError, "3 ranks cannot share batches of 8"),
        (lambda _: KINDS["plan"](rank=2, world_size=2), ConfigError, "rank 2 is not below world_size 2"),
        (lambda _: KINDS["plan"](rank=1), ConfigError, "rank 1 is not below world_size 1"),
        (lambda _: KINDS["plan"](rank=-1, world_size=2), ConfigError, "rank must be a whole number >= 0"),
        (lambda _: KINDS["plan"](world_size=2), ConfigError, "world_size 2 is not that of the process group, 1"),
        (lambda _: KINDS["plan"](world_size=0), ConfigError, "world_size must be a whole number >= 1"),
        (lambda tmp: PlannedBatchSampler(tmp / "none.npz"), PlanError, "not a batch plan"),
        (lambda tmp: PlannedBatchSampler(str(tmp)), PlanError, "not a batch plan"),
        (lambda tmp: PlannedBatchSampler(damaged(tmp)), PlanError, "not a batch plan"),
        (
            lambda _: PlannedBatchSampler(shuffled(0), num_samples=40),
            ConfigError,
            "plan: shuffle: positions must be in",
        ),
        (lambda _: PlannedBatchSampler(torch.arange(8)), ConfigError, "must be a BatchPlan, .* found a Tensor"),
        (lambda _: list(PlannedBatchSampler(lambda epoch: [[0, 1]])), ConfigError, "must return a BatchPlan"),
        (
            lambda _: list(PlannedBatchSampler(lambda epoch: BatchPlan(torch.tensor([[1, 1]]), "own"))),
            ConfigError,
            "own: a batch holds a sample twice",
        ),
        (
            lambda _: PlannedBatchSampler(BatchPlan(torch.zeros(0, 8).long(), "own")),
            ConfigError,
            "own: the plan is empty",
        ),
        (lambda _: PlannedBatchSampler(BatchPlan(torch.tensor([[-1, 1]]), "own")), ConfigError, "positions must be in"),
        (
            lambda _: PlannedBatchSampler.from_sampler("spectral", embeddings(40), num_samples=N, batch_size=B, k=2),
            PlanError,
            "each of the 50 samples once, found 40",
        ),
        (
            lambda _: PlannedBatchSampler.from_sampler("spectral", num_samples=N, batch_size=B),
            ConfigError,
            "'spectral' plans from embeddings",
        ),
        (
            lambda _: PlannedBatchSampler.from_sampler("spectal", embeddings(), batch_size=B),
            ConfigError,
            "did you mean",
        ),
        (lambda _: PlannedBatchSampler.from_sampler("shuffle", embeddings()), ConfigError, "'batch_size' is required"),
        (lambda _: PlannedBatchSampler.from_sampler("shuffle", batch_size=B), ConfigError, "num_samples is needed"),
        (
            lambda _: PlannedBatchSampler.from_sampler(samplers.build("shuffle", batch_size=B), embeddings(), k=2),
            ConfigError,
            "has its own parameters already, found also k",
        ),
        (lambda _: PlannedBatchSampler.from_sampler(3, embeddings()), ConfigError, "a name or a sampler, found a int"),
        (lambda _: KINDS["plan"]().set_epoch(-1), ConfigError, "epoch must be a whole number >= 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, error, message, tmp_path):
    with pytest.raises(error, match=message) as raised:
        make(tmp_path)
    assert "\n" not in str(raised.value)
