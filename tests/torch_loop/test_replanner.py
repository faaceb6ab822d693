"""A replanner makes the engine's plans in a loop of its own: before the steps and beside them, whole and resumed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine import runs
from hypothesis import given
from hypothesis import strategies as st
from torch_loop.loops import STEPS, B, Loop, N, cut_and_resumed, samples, whole

from mbcl import samplers
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.errors import CheckpointError, ConfigError, PlanError
from mbcl.io.store import LocalStore
from mbcl.plan import Embeddings
from mbcl.planner import PlanKey, make_plan, plan_service
from mbcl.planner.background import BackgroundProcess
from mbcl.samplers import same_class_share
from mbcl.torch import PlannedBatchSampler, Replanner

EPOCHS = 4


@pytest.fixture(scope="module")
def process():
    class Shared(BackgroundProcess):
        """A background process that outlives the plan services: starting one takes seconds."""

        def close(self):
            """Leave the process to the next service."""

    shared = Shared()
    yield shared
    BackgroundProcess.close(shared)


@pytest.fixture
def shared_background(process, monkeypatch):
    monkeypatch.setattr(plan_service, "BackgroundProcess", lambda: process)


def fixed(z, **options):
    """A replanner of embeddings that do not change."""
    options = {"batch_size": B, "k": 2, "num_samples": len(z), "seed": 3} | options
    return Replanner("spectral", embed=lambda positions: (z[positions], z[positions] + 0.1), **options)


def planned(z, epoch, round_=0, *, name="spectral", seed=3, steps=None, **parameters):
    """The engine's plan."""
    sampler = samplers.build(name, batch_size=B, **(parameters or {"k": 2}))
    return make_plan(
        sampler, Embeddings(z, z + 0.1), PlanKey(epoch, round_, 1, steps), num_samples=len(z), seed=seed
    ).plan


def epochs_of(replanner, epochs=EPOCHS):
    batches = PlannedBatchSampler(replanner)
    result = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        result.append(list(batches))
    replanner.close()
    return result


# -- the plans of the engine ---------------------------------------------------------------------------------------

CACHED = {"source": "cached", "batch_size": 64}
ENGINE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fresh": ("spectral", {}, {}),
    "rounds at once": ("osgd", {"refresh": "epoch"}, {}),
    "warm-up, every second epoch": ("spectral", {}, {"warmup_epochs": 1, "every": 2}),
    "beside training": ("spectral", {}, {"overlap": 1}),
    "beside training, every second epoch": ("spectral", {}, {"overlap": 1, "every": 2, "warmup_epochs": 1}),
    "cached": ("spectral", CACHED, {}),
    "cached, beside training": ("spectral", CACHED, {"overlap": 1, "warmup_epochs": 1}),
}


@pytest.mark.parametrize("name", ENGINE)
def test_replanner_trains_on_the_batches_of_the_engine(name, tmp_path, shared_background):
    """The engine trains; a replanner that is given the engine's embeddings yields the engine's batches."""
    sampler, embeddings, planner = ENGINE[name]
    experiment = runs.experiment(
        sampler,
        embeddings={"batch_size": 64} | embeddings,
        planner=planner,
        train={"epochs": EPOCHS, "batch_size": 16, "eval_every": EPOCHS},
    )
    trainer = Trainer(experiment, world=World(), store=LocalStore(tmp_path))
    shards: list[Embeddings] = []
    steps: list[tuple[torch.Tensor, ...]] = []
    request, keep = trainer.plans.request, trainer.source.keep

    def recorded_request(key, shard, *rest, **options):
        if all(shard is not known for known in shards):
            shards.append(shard)
        return request(key, shard, *rest, **options)

    def recorded_keep(output, **rest):
        steps.append((output.positions, output.z1, output.z2))
        return keep(output, **rest)

    trainer.plans.request, trainer.source.keep = recorded_request, recorded_keep
    trainer.run()

    passes = iter([*shards, shards[-1]])  # one plan more is requested ahead: the number of epochs is not known

    def embed(positions):
        shard = next(passes).ordered(180)
        assert len(positions) == 180
        return shard.z1[positions], shard.z2[positions]

    with Replanner(
        experiment.build_sampler(),
        num_samples=180,
        embed=embed,
        embeddings=embeddings.get("source", "fresh"),
        every=planner.get("every", 1),
        warmup_epochs=planner.get("warmup_epochs", 0),
        background=bool(planner.get("overlap")),
    ) as replanner:
        batches = PlannedBatchSampler(replanner)
        done = 0
        for epoch in range(EPOCHS):
            batches.set_epoch(epoch)
            for batch in batches:
                assert batch == steps[done][0].tolist()
                if "source" in embeddings:
                    replanner.observe(*steps[done])
                done += 1
        assert done == len(steps) == EPOCHS * 11
        assert replanner.newest.lift > 0


def test_epochs_between_planned_ones_repeat_the_last_planned_batches():
    z = samples()
    one, two, three, four = epochs_of(fixed(z, every=2, warmup_epochs=1))
    assert one == samplers.build("shuffle", batch_size=B).plan(N, seed=3, epoch=0).batches.tolist()
    assert two == three == planned(z, 1).batches.tolist()
    assert four == planned(z, 3).batches.tolist()


def test_plans_of_every_few_steps_are_the_rounds_of_the_epoch():
    z, calls = samples(), []

    def embed(positions):
        calls.append(len(seen))
        return z[positions], z[positions] + 0.1

    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N, embed=embed, every=4, unit="step", seed=3)
    batches, seen = PlannedBatchSampler(replanner), []
    for epoch in range(2):
        batches.set_epoch(epoch)
        for batch in batches:
            seen.append(batch)
    parts = [planned(z, epoch, round_, steps=(4, 2)[round_]).batches for epoch in range(2) for round_ in range(2)]
    assert seen == torch.cat(parts).tolist()
    assert calls == [0, 4, 6, 10]
    assert len(batches) == STEPS
    with pytest.raises(ConfigError, match="no short batch"):
        PlannedBatchSampler(replanner, drop_last=False)


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_plan_is_scored_by_the_batches_that_are_trained_on(background, shared_background):
    z = samples()
    with fixed(z, every=4, unit="step", background=background) as replanner:
        epochs_of(replanner, 1)
        plan = replanner.newest.plan
        assert plan.round == 1
        trained = replace(plan, batches=plan.batches[: STEPS - 4])
        expected = samplers.quality(trained, Embeddings(z, z + 0.1), temperature=0.1, seed=3)
        assert (replanner.newest.loss, replanner.newest.lift) == (expected["loss"], expected["lift"])


def test_conflicts_are_those_of_the_batches():
    replanner = fixed(samples(), skip=3, every=4, unit="step")
    plan = replanner.plan(0)
    assert len(plan.batch_conflicts) == len(plan) == 4
    first = plan.batch_conflicts.tolist()
    plan = replanner.plan(0, 4)
    assert len(plan.batch_conflicts) == len(plan) == STEPS
    assert plan.batch_conflicts[:4].tolist() == first


def test_chunks_of_embed_cover_every_sample_once_and_have_no_gradient():
    z, calls = samples(), []

    def embed(positions):
        assert not torch.is_grad_enabled()
        calls.append(positions)
        return z[positions], z[positions] + 0.1

    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N, embed=embed, embed_batch_size=7, seed=3)
    assert replanner.plan(0).digest == planned(z, 0).digest
    assert sorted(torch.cat(calls).tolist()) == list(range(N))
    assert max(map(len, calls)) <= 7


def test_plans_of_samples_sorted_by_class_find_the_classes():
    """Batch norm in training mode would subtract the class from chunks of consecutive samples, a class each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) // 64
    x = torch.randn(8, 16, generator=generator)[labels] + 0.3 * torch.randn(512, 16, generator=generator)

    def embed(positions):
        z = torch.nn.functional.batch_norm(x[positions], None, None, training=True)
        return z, z

    options = {"batch_size": 16, "pool": None, "num_samples": 512, "embed": embed, "embed_batch_size": 64}
    plan = Replanner("kmeans", **options).plan(0)
    assert same_class_share(plan, labels).value > 0.5, "four times chance"


# -- embeddings that the loop observes -----------------------------------------------------------------------------


def test_observed_batches_are_those_of_shuffle_until_every_sample_was_seen():
    rows = N + 3  # three samples are left out of each epoch
    loop = Loop(num_samples=rows, with_embed=False)
    shuffle = samplers.build("shuffle", batch_size=B)
    newest: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    observe = loop.replanner.observe

    def recorded(positions, z1, z2):
        newest.update({p: (a, b) for p, a, b in zip(positions.tolist(), z1.detach(), z2.detach(), strict=True)})
        observe(positions, z1, z2)

    loop.replanner.observe = recorded
    planned_epochs = 0
    for epoch in range(5):
        if len(newest) < rows:
            expected = shuffle.plan(rows, seed=3, epoch=epoch)
        else:
            z1, z2 = (torch.stack([newest[p][view] for p in range(rows)]) for view in (0, 1))
            expected = make_plan(
                loop.replanner.sampler, Embeddings(z1, z2), PlanKey(epoch, 0), num_samples=rows, seed=3
            ).plan
            planned_epochs += 1
        for _ in loop.run(epoch + 1):
            pass
        assert loop.seen[-STEPS:] == expected.batches.tolist()
        loop.batches.set_epoch(epoch + 1)
    assert 1 <= planned_epochs <= 3, "the first epochs do not see every sample"


def test_observed_embeddings_take_no_more_memory_than_the_data_set_twice():
    z = samples()
    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N)
    rows = []
    for step in range(200):
        positions = (torch.arange(B) + step) % N
        replanner.observe(positions, z[positions] + step, z[positions])
        rows.append(replanner._embeddings.cache.num_rows)
    assert max(rows) <= 2 * N + B
    state = replanner.state_dict()["cache"]
    last = {int(p): step for step in range(200) for p in (torch.arange(B) + step) % N}
    for position, row in zip(state["positions"].tolist(), state["z1"], strict=True):
        assert torch.equal(row, z[position] + last[position])


# -- beside training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"every": 4, "unit": "step"}, {"warmup_epochs": 1}])
def test_plans_made_beside_training_equal_those_made_before(options, shared_background):
    z = samples()
    assert epochs_of(fixed(z, background=True, **options)) == epochs_of(fixed(z, **options))


@pytest.mark.parametrize("options", [{"every": 2}, {"every": 4, "unit": "step"}])
def test_every_plan_but_the_first_is_requested_ahead(options, shared_background):
    z = samples()
    replanner = fixed(z, background=True, **options)
    made_at_once, request = [], replanner._service.request

    def recorded(key, *rest, ahead=False):
        made_at_once.extend([] if ahead else [key])
        return request(key, *rest, ahead=ahead)

    replanner._service.request = recorded
    epochs_of(replanner)
    assert [(key.epoch, key.round) for key in made_at_once] == [(0, 0)]


@pytest.mark.parametrize(("epochs", "expected"), [(None, EPOCHS + 1), (EPOCHS, EPOCHS)])
def test_no_plan_is_made_for_an_epoch_behind_the_last(epochs, expected, shared_background):
    replanner = fixed(samples(), background=True, epochs=epochs)
    requested, request = [], replanner._service.request

    def recorded(key, *rest, **options):
        requested.append(key.epoch)
        return request(key, *rest, **options)

    replanner._service.request = recorded
    epochs_of(replanner)
    assert requested == list(range(expected))


def test_a_killed_background_process_loses_no_plan(caplog):
    z = samples()
    with fixed(z, background=True) as replanner:
        background = replanner._service._background
        background.submit(signal.pause)  # so that no plan is made before the kill
        batches = PlannedBatchSampler(replanner)
        for epoch in range(2):
            batches.set_epoch(epoch)
            assert list(batches) == planned(z, epoch).batches.tolist()
            if epoch == 0:
                os.kill(next(iter(background._pool._processes)), signal.SIGKILL)
    assert "the process that planned epoch 1 was lost; the plan is made again here" in caplog.text


# -- resuming ------------------------------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "fresh": {},
    "rounds": {"sampler": "osgd", "q": 1, "k": 3},
    "every second epoch": {"every": 2, "warmup_epochs": 1},
    "steps": {"every": 4, "unit": "step"},
    "cached": {"embeddings": "cached"},
    "observed": {"with_embed": False},
    "observed, steps": {"with_embed": False, "every": 4, "unit": "step"},
    "beside": {"background": True},
    "beside, observed, steps": {"with_embed": False, "every": 4, "unit": "step", "background": True},
    "beside, cached, every second epoch": {"embeddings": "cached", "every": 2, "background": True},
}
UNCUT: dict[str, Loop] = {}


@given(name=st.sampled_from(sorted(RESUMED)), cut=st.integers(1, 3 * STEPS))
def test_resuming_at_any_cut_equals_the_uninterrupted_training(name, cut, process):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_service, "BackgroundProcess", lambda: process)
        if name not in UNCUT:
            UNCUT[name] = whole(3, **RESUMED[name])
        first, second = cut_and_resumed(cut, 3, **RESUMED[name])
    assert first.seen + second.seen == UNCUT[name].seen
    assert runs.equal(second.model.state_dict(), UNCUT[name].model.state_dict())


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_resuming_behind_workers_that_prefetch_equals_the_uninterrupted_training(cut):
    """Two workers take four batches ahead: at step 1 of an epoch the second part of its plan is made."""
    options = {"every": 3, "unit": "step", "embeddings": "cached"}
    uncut, first, second = Loop(**options), Loop(**options), Loop(**options)
    for _ in uncut.run(2, workers=2):
        pass
    for done, step in enumerate(first.run(2, workers=2), start=1):
        if done == cut:
            second.load(first.save(step))
            break
    for _ in second.run(2, workers=2):
        pass
    assert first.seen + second.seen == uncut.seen


# -- hostile input -------------------------------------------------------------------------------------------------


def returning(*views, rows=N, **options):
    return Replanner("spectral", batch_size=B, k=2, num_samples=rows, embed=lambda positions: views, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda z: fixed(z, batch_size=N + 1), ConfigError, "batch_size 25 is above the 24 samples"),
        (lambda z: fixed(z, unit="steps"), ConfigError, "unit must be 'epoch' or 'step', found 'steps'"),
        (lambda z: fixed(z, every=0), ConfigError, "every must be a whole number >= 1"),
        (lambda z: fixed(z, embeddings="old"), ConfigError, "embeddings must be 'fresh' or 'cached'"),
        (lambda z: fixed(z, quantile=2), ConfigError, "unknown parameter 'quantile'"),
        (
            lambda z: Replanner("spectral", batch_size=B, num_samples=N, embeddings="fresh"),
            ConfigError,
            "'fresh' ones need embed",
        ),
        (lambda z: Replanner("shuffle", batch_size=B, num_samples=N), ConfigError, "plans without embeddings"),
        (
            lambda z: returning(z[:-1], z[:-1]).plan(0),
            ConfigError,
            r"embed: expected two \(24, D\) tensors .*\(23, 5\)",
        ),
        (lambda z: returning(z, z[:, :2]).plan(0), ConfigError, "both need one width: z1 has 5 dimensions, z2 has 2"),
        (lambda z: returning(z, z[:, 0]).plan(0), ConfigError, r"embed: expected two \(24, D\) tensors"),
        (lambda z: returning(z, z.float()).plan(0), ConfigError, "of one float dtype"),
        (lambda z: returning(z.long(), z.long()).plan(0), ConfigError, "of one float dtype"),
        (lambda z: returning(z).plan(0), ConfigError, "embed must return two tensors"),
        (lambda z: returning(z, z / 0).plan(0), PlanError, "z2: 24 of 24 rows are not finite"),
        (lambda z: PlannedBatchSampler(fixed(z), num_samples=9), ConfigError, "the plans are of 24 samples"),
        (
            lambda z: PlannedBatchSampler(fixed(z), rank=0, world_size=3),
            ConfigError,
            "3 ranks cannot share batches of 4",
        ),
        (lambda z: fixed(z).observe(torch.arange(N), z, z), ConfigError, "observe: the embeddings are 'fresh' ones"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, error, message):
    with pytest.raises(error, match=message) as raised:
        make(samples())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("positions", "rows", "message"),
    [
        (torch.arange(3), 4, r"expected two \(3, D\) tensors"),
        (torch.tensor([0, N]), 2, "indices must be in 0..23, found 0..24"),
        (torch.tensor([-1, 0]), 2, "indices must be in 0..23, found -1..0"),
        (torch.tensor([1, 1]), 2, "indices hold a sample twice"),
        (torch.tensor([1, 2], dtype=torch.int32), 2, "an .m,. int64 tensor, found .2,. torch.int32"),
        ([1, 2], 2, "an .m,. int64 tensor, found list"),
    ],
)
def test_bad_observations_are_refused(positions, rows, message):
    z = samples()[:rows]
    with pytest.raises(ConfigError, match=message):
        Replanner("spectral", batch_size=B, k=2, num_samples=N).observe(positions, z, z)


def test_observations_of_another_width_are_refused():
    replanner, z = Replanner("spectral", batch_size=B, k=2, num_samples=N), samples()
    replanner.observe(torch.arange(N), z, z)
    with pytest.raises(ConfigError, match=r"observe: expected two \(24, 5\) tensors"):
        replanner.observe(torch.arange(N), z[:, :3], z[:, :3])


def test_states_of_another_training_are_refused():
    z = samples()
    replanner = fixed(z)
    replanner.plan(0)
    state = replanner.state_dict()
    with pytest.raises(CheckpointError, match="its batches of 4 .*; here they are of 8"):
        fixed(z, batch_size=8).load_state_dict(state)
    with pytest.raises(CheckpointError, match="hold positions up to 23; here they are of 4, of 20 samples"):
        fixed(z[:20]).load_state_dict(state)
    with pytest.raises(CheckpointError, match="the state is of another training: of 24 samples, here they are 32"):
        fixed(samples(32)).load_state_dict(state)
    with pytest.raises(CheckpointError, match="not a state of a Replanner: KeyError"):
        fixed(z).load_state_dict({})
    with pytest.raises(CheckpointError, match="not a state of a Replanner"):
        fixed(z).load_state_dict(PlannedBatchSampler(fixed(z)).state_dict())
    observer = Replanner("spectral", batch_size=B, k=2, num_samples=N)
    observer.observe(torch.arange(N), z, z)
    with pytest.raises(CheckpointError, match="observed embeddings that do not fit"):
        fixed(z).load_state_dict(observer.state_dict())


def test_a_batch_state_without_the_state_of_its_replanner_is_refused():
    z = samples()
    first = PlannedBatchSampler(fixed(z))
    iterator = iter(first)
    next(iterator), next(iterator)
    second = PlannedBatchSampler(fixed(z.flip(0)))
    second.load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError, match="after 2 batches of epoch 0 of another plan; a Replanner has a state"):
        next(iter(second))
