"""When plans are made: warm-up, every n-th epoch, schedules, several rounds at once, ahead of time."""

from __future__ import annotations

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import gloo
import pytest
import torch
from engine import runs
from patience import PATIENCE, wait_for

from mbcl import samplers
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer, plan_source
from mbcl.engine.metrics_log import read_rows
from mbcl.errors import PlanError
from mbcl.io.store import LocalStore
from mbcl.plan import Embeddings
from mbcl.planner import LocalPlanService, PlanKey, make_plan, plan_rounds, plan_service
from mbcl.planner.background import BackgroundProcess
from mbcl.samplers import quality

EPOCHS = 5
STEPS = 11
CACHED = {"source": "cached", "batch_size": 64}


def content(sampler="spectral", embeddings=None, *, epochs=EPOCHS, **planner):
    return runs.experiment(
        sampler,
        embeddings={"batch_size": 64} | (embeddings or {}),
        planner=planner,
        train={"epochs": epochs, "batch_size": 16, "eval_every": epochs},
    )


class SharedProcess(BackgroundProcess):
    """A background process that the trainings of this module share: starting one takes seconds."""

    def end(self):
        super().close()

    def close(self):
        """Leave the process to the next training."""


@pytest.fixture(scope="module")
def process():
    shared = SharedProcess()
    yield shared
    shared.end()


@pytest.fixture
def shared_background(process, monkeypatch):
    monkeypatch.setattr(plan_service, "BackgroundProcess", lambda: process)


class RecordingTrainer(Trainer):
    """A trainer that records its batches, and its requests and embedding passes with their steps."""

    def __init__(self, experiment, folder, monkeypatch):
        super().__init__(experiment, world=World(), store=LocalStore(folder))
        self.batches: list[list[int]] = []
        self.requests: list[tuple[int, PlanKey]] = []
        self.passes: list[tuple[int, int]] = []
        step, request, embed = self.learner.step, self.plans.request, plan_source.embed

        def recorded_step(batch, **rest):
            self.batches.append(batch.tolist())
            return step(batch, **rest)

        def recorded_request(key, *rest, **options):
            self.requests.append((len(self.batches), key))
            return request(key, *rest, **options)

        def recorded_embed(model, images, key, **rest):
            if rest["mode"] == "train":  # validation embeds in evaluation mode
                self.passes.append((len(self.batches), key.epoch))
            return embed(model, images, key, **rest)

        self.learner.step, self.plans.request = recorded_step, recorded_request
        monkeypatch.setattr(plan_source, "embed", recorded_embed)

    def epoch_batches(self, epoch):
        return self.batches[epoch * STEPS : (epoch + 1) * STEPS]


@pytest.fixture
def trained(tmp_path, monkeypatch, shared_background):
    def train(experiment):
        recorder = runs.Recorder()
        trainer = RecordingTrainer(experiment, tmp_path, monkeypatch)
        trainer.observers = [recorder]
        trainer.run()
        return trainer, recorder.rows

    return train


def shuffled(epoch, seed=0):
    return samplers.build("shuffle", batch_size=16).plan(180, seed=seed, epoch=epoch).batches.tolist()


# -- warm-up and every ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embeddings", [None, CACHED], ids=["fresh", "cached"])
def test_warmup_epochs_use_the_plans_of_shuffle(trained, embeddings):
    trainer, rows = trained(content(embeddings=embeddings, warmup_epochs=2, epochs=4))
    for epoch in (0, 1):
        assert trainer.epoch_batches(epoch) == shuffled(epoch)
        assert rows[epoch]["time/embed"] == rows[epoch]["time/plan"] == 0
        assert {value for key, value in rows[epoch].items() if key.startswith("plan/")} == {None}
    assert trainer.epoch_batches(2) != shuffled(2)
    assert trainer.requests == [(22, PlanKey(2, 0)), (33, PlanKey(3, 0))]
    assert trainer.passes == [(22, 2), (33, 3)][: 1 if embeddings else 2]
    assert [row["plan/age"] for row in rows[2:]] == [0, 1 if embeddings else 0]


def test_warmup_of_all_epochs_warns_and_requests_no_plan(trained):
    with pytest.warns(UserWarning, match="planner.warmup_epochs 2 leaves none of the 2 epochs"):
        trainer, _ = trained(content(warmup_epochs=2, epochs=2, overlap=1))
    assert trainer.requests == trainer.passes == []


def test_planner_every_reuses_the_last_plans_in_between(trained):
    trainer, rows = trained(content("osgd", warmup_epochs=1, every=2, epochs=5))
    planned = [trainer.epoch_batches(epoch) for epoch in range(5)]
    assert planned[1] == planned[2] != planned[3] == planned[4]
    assert [key for _, key in trainer.requests] == [
        PlanKey(e, r) for e in (1, 3) for r in range(len(trainer.requests) // 2)
    ]
    assert len(trainer.requests) > 4, "osgd needs several rounds an epoch, choose others"
    assert [row["plan/age"] for row in rows] == [None, 0, 1, 0, 1]
    for made, reused in ((1, 2), (3, 4)):
        assert rows[reused]["time/plan"] == rows[reused]["time/embed"] == rows[reused]["plan/seconds"] == 0
        assert rows[made]["time/plan"] > 0
        for key in ("plan/loss", "plan/lift", "plan/coverage"):
            assert rows[reused][key] == rows[made][key]


# -- schedules -----------------------------------------------------------------------------------------------------


def test_planner_schedule_changes_the_sampler_from_its_epochs_on(trained):
    schedule = {"k": {0: 2, 2: 4}, "mix": {1: 1.0, 3: 0.0}}
    trainer, _ = trained(content({"name": "spectral", "k": 11}, schedule=schedule, epochs=4))
    used = [(s.k, s.mix) for s in map(trainer.experiment.build_sampler, range(4))]
    assert used == [(2, 0.0), (2, 1.0), (4, 1.0), (4, 0.0)]
    for epoch, batches in enumerate(map(trainer.epoch_batches, range(4))):
        sampler = samplers.build("spectral", batch_size=16, k=used[epoch][0])
        order = torch.cat(
            [
                torch.tensor(pool)
                for pool in sampler._pools(180, Embeddings(torch.eye(180), torch.eye(180)), 0, (epoch, 0))
            ]
        )
        pools = [set(part.tolist()) for part in order.split(16 * used[epoch][0])]
        within = all(any(set(batch) <= pool for pool in pools) for batch in batches)
        assert within == (used[epoch][1] == 0), "batches lie within pools of k batches unless mixed"


def test_planner_schedule_may_change_the_plan_length(trained):
    trainer, rows = trained(content({"name": "osgd", "k": 11, "q": 1}, schedule={"k": {1: 2}}, epochs=2))
    assert [key.epoch for _, key in trainer.requests] == [0] * 11 + [1] * 3
    assert len(trainer.batches) == 22
    assert [row["step"] for row in rows] == [11, 22]


# -- several rounds ------------------------------------------------------------------------------------------------


def test_make_plan_of_several_rounds_equals_single_rounds(trained):
    trainer, rows = trained(content("osgd", {"refresh": "epoch"}, epochs=2))
    sampler = trainer.experiment.build_sampler()
    rounds = -(-STEPS // sampler.plan_length(180))
    assert rounds > 1
    assert trainer.requests == [(0, PlanKey(0, 0, rounds)), (11, PlanKey(1, 0, rounds))]
    assert trainer.passes == [(0, 0), (11, 1)]
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1))
    both = Embeddings(z, z + 0.1)
    joined = make_plan(sampler, both, PlanKey(3, 1, rounds), num_samples=180, seed=7).plan
    single = [sampler.plan(180, both, seed=7, epoch=3, round=r) for r in range(1, 1 + rounds)]
    assert torch.equal(joined.batches, torch.cat([plan.batches for plan in single]))
    assert torch.equal(joined.scores, torch.cat([plan.scores for plan in single]))
    assert (joined.epoch, joined.round) == (3, 1)
    assert rows[0]["plan/age"] == rows[1]["plan/age"] == 0


def test_plan_conflicts_are_summed_over_the_plans_of_an_epoch(trained):
    trainer, rows = trained(content({"name": "osgd", "k": 4, "q": 2, "skip": 20}, epochs=2, every=2))
    assert rows[0]["plan/conflicts"] == rows[1]["plan/conflicts"] > 0
    sampler = trainer.experiment.build_sampler()
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1))
    both = Embeddings(z, z)
    joined = make_plan(sampler, both, PlanKey(0, 0, 3), num_samples=180, seed=0).plan
    assert joined.conflicts == sum(sampler.plan(180, both, seed=0, epoch=0, round=r).conflicts for r in range(3))


def test_an_epochs_end_leaves_out_random_batches_in_the_order_of_the_plan():
    """Of the ascending batches of ``osgd`` the first ones would be the easiest of each epoch."""
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampler, both, left_out = samplers.build("osgd", batch_size=4, k=40, q=10), Embeddings(z, z + 0.1), []
    for epoch in range(200):
        key = PlanKey(epoch, 0, 2, steps=16)
        plan = plan_rounds(sampler, both, key, num_samples=180, seed=0)
        first, last = (sampler.plan(180, both, seed=0, epoch=epoch, round=number) for number in range(2))
        assert len(plan) == len(plan.scores) == 16
        assert torch.equal(plan.batches[:10], first.batches)
        places = [(last.batches == batch).all(dim=1).nonzero().item() for batch in plan.batches[10:]]
        assert places == sorted(places)
        assert torch.equal(plan.scores[10:], last.scores[places])
        left_out += set(range(10)) - set(places)
    counts = torch.tensor(left_out).bincount(minlength=10)
    # Each place is left out of 0.4 of 200 epochs: a binomial number with a standard deviation of 7.
    assert (counts - 80).abs().max() < 5 * 7


@pytest.mark.parametrize(("steps", "length"), [(1, 1), (4, 4), (5, 5), (8, 8), (9, 8), (None, 8)])
def test_rounds_without_steps_are_left_out(steps, length):
    """Two rounds of 4 batches."""
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1))
    sampler, both = samplers.build("osgd", batch_size=16, k=4, q=2, skip=3), Embeddings(z, z + 0.1)
    plan = plan_rounds(sampler, both, PlanKey(0, 0, 2, steps), num_samples=180, seed=0)
    assert len(plan) == len(plan.batch_conflicts) == length


@pytest.mark.parametrize("refresh", ["round", "epoch"])
def test_plan_metrics_are_those_of_the_batches_trained_on(tmp_path, refresh):
    """Rounds of 4 batches: of the third the epoch of 11 steps trains on 3."""
    sampler = {"name": "osgd", "k": 4, "q": 2, "skip": 3}
    trainer = Trainer(
        runs.experiment(sampler, embeddings={"refresh": refresh}, train={"epochs": 1, "batch_size": 16}),
        world=World(),
        store=LocalStore(tmp_path),
    )
    requested, request = [], trainer.plans.request

    def recorded(key, shard, sampler, **options):
        requested.append((key, shard.ordered(180), sampler))
        return request(key, shard, sampler, **options)

    trainer.plans.request = recorded
    row = trainer.run().row
    loss = lift = conflicts = steps = 0
    for key, embeddings, planner in requested:
        assert key.steps == 11 - steps
        plan = plan_rounds(planner, embeddings, key, num_samples=180, seed=0)
        scores = quality(plan, embeddings, seed=0)
        loss, lift = loss + len(plan) * scores["loss"], lift + len(plan) * scores["lift"]
        conflicts, steps = conflicts + plan.conflicts, steps + len(plan)
    assert (steps, len(requested)) == (11, 3 if refresh == "round" else 1)
    assert row["plan/loss"] == pytest.approx(loss / 11, rel=runs.EXACT)
    assert row["plan/lift"] == pytest.approx(lift / 11, rel=runs.EXACT)
    assert row["plan/conflicts"] == conflicts


# -- plans ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embeddings", "ages"), [(None, [0, 1, 1, 1]), (CACHED, [0, 1, 2, 2])], ids=["fresh", "cached"]
)
def test_planner_overlap_requests_the_next_plan_an_epoch_ahead(trained, embeddings, ages):
    trainer, rows = trained(content(embeddings=embeddings, overlap=1, epochs=4))
    assert trainer.requests == [(0, PlanKey(0, 0)), (0, PlanKey(1, 0)), (11, PlanKey(2, 0)), (22, PlanKey(3, 0))]
    assert trainer.passes == [(0, 0)] if embeddings else [(0, 0), (11, 2), (22, 3)], "the first two share one"
    # Cached embeddings of the 4 samples that an epoch leaves out are older: of 3 epochs, by 3 epochs at most.
    assert [row["plan/age"] for row in rows] == pytest.approx(ages, abs=4 * 3 * 3 / 180)
    assert [row["time/wait"] > 0 for row in rows] == [True] * 3 + [False], "the last epoch requests no plan"


def test_planner_overlap_with_warmup_and_every_has_plans_one_epoch_old(trained):
    trainer, rows = trained(content(overlap=1, warmup_epochs=2, every=2, epochs=6))
    assert trainer.requests == [(11, PlanKey(2, 0)), (33, PlanKey(4, 0))]
    assert [row["plan/age"] for row in rows] == [None, None, 1, 2, 1, 2]


def test_planner_overlap_makes_each_round_during_the_one_before(trained):
    trainer, rows = trained(content("osgd", overlap=1, epochs=2))
    length = trainer.experiment.build_sampler().plan_length(180)
    expected = [(0, PlanKey(0, 0))]
    for epoch in range(2):
        last = -(-STEPS // length) - 1
        expected += [(epoch * STEPS + r * length, PlanKey(epoch, r + 1)) for r in range(last)]
        expected += [(epoch * STEPS + last * length, PlanKey(1, 0))] if epoch == 0 else []
    assert trainer.requests == expected
    assert rows[0]["plan/age"] == 0
    assert 0 < rows[1]["plan/age"] < 1, "its first plan is of the epoch before, the others are not"


def test_background_process_makes_the_same_plan():
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1))
    both, sampler = Embeddings(z.double(), z.double() + 0.1), samplers.build("spectral", batch_size=16, k=4, skip=3)
    service = LocalPlanService(num_samples=180, seed=3, world=World())
    keys = [PlanKey(2, 0), PlanKey(2, 1), PlanKey(3, 0, 2)]
    for key in keys:
        service.request(key, both, sampler, ahead=True)
    pid = next(iter(service._background._pool._processes))
    for key in keys[::-1]:
        actual, expected = service.receive(key), make_plan(sampler, both, key, num_samples=180, seed=3)
        assert actual.plan.digest == expected.plan.digest
        assert (actual.plan.epoch, actual.plan.round, actual.plan.seed) == (key.epoch, key.round, 3)
        assert (actual.loss, actual.lift) == pytest.approx((expected.loss, expected.lift), rel=runs.EXACT)
        assert actual.plan.conflicts == expected.plan.conflicts > 0
    service.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_background_process_is_replaced_when_killed(caplog):
    z = torch.randn(180, 8, generator=torch.Generator().manual_seed(1))
    both, sampler = Embeddings(z, z + 0.1), samplers.build("spectral", batch_size=16, k=4)
    expected = make_plan(sampler, both, PlanKey(0, 0), num_samples=180, seed=0).plan.digest
    service = LocalPlanService(num_samples=180, seed=0, world=World())
    service._background.submit(signal.pause)  # so that the plan is not made before the kill
    service.request(PlanKey(0, 0), both, sampler, ahead=True)
    os.kill(next(iter(service._background._pool._processes)), signal.SIGKILL)
    assert service.receive(PlanKey(0, 0)).plan.digest == expected
    assert "the process that planned epoch 0 was lost; the plan is made again here" in caplog.text
    service.request(PlanKey(0, 0), both, sampler, ahead=True)
    assert service.receive(PlanKey(0, 0)).plan.digest == expected
    service.close()


def test_receive_raises_the_error_of_a_plan_made_ahead():
    service = LocalPlanService(num_samples=180, seed=0, world=World())
    both = Embeddings(torch.eye(170), torch.eye(170))
    service.request(PlanKey(0, 0), both, samplers.build("spectral", batch_size=16, k=4), ahead=True)
    with pytest.raises(PlanError, match="each of the 180 samples once, found 170"):
        service.receive(PlanKey(0, 0))
    service.close()


PLANNED = {
    "ahead": ("spectral", {}, {"overlap": 1}),
    "cached ahead": ("spectral", CACHED, {"overlap": 1}),
    "rounds ahead": ("osgd", {}, {"overlap": 1}),
    "cached rounds": ({"name": "osgd", "k": 4, "q": 4}, CACHED, {"overlap": 1, "warmup_epochs": 1}),
    "again": ("osgd", {}, {"every": 2}),
    "again ahead": ("osgd", {"refresh": "epoch"}, {"every": 2, "overlap": 1, "warmup_epochs": 1}),
    "schedule": ("spectral", {}, {"overlap": 1, "schedule": {"k": {1: 4}, "mix": {0: 0.5}}}),
}


@pytest.mark.parametrize("name", list(PLANNED))
def test_resume_is_bitwise_equal_with_plans_ahead_and_reused(tmp_path, shared_background, name):
    """Cut before, after and between checkpoints, with plans made ahead and plans reused."""
    sampler, embeddings, planner = PLANNED[name]
    steps = {"epochs": 4, "batch_size": 16, "checkpoint_steps": 4, "eval_every": 4}
    experiment = runs.experiment(sampler, embeddings={"batch_size": 64, **embeddings}, planner=planner, train=steps)
    losses, weights, rows = runs.run(World(), tmp_path / "whole", experiment)
    for cut in ({"after_epoch": 1}, {"after_step": 17}, {"after_epoch": 2}, {"after_step": 31}):
        runs.interrupt(tmp_path / "cut", experiment, **cut)
    rest, resumed_weights, _ = runs.run(World(), tmp_path / "cut", experiment)
    assert len(rest) == 44 - (22 + 8)
    assert rest == losses[-len(rest) :]
    assert runs.equal(resumed_weights, weights)
    for line, row in zip(read_rows(LocalStore(tmp_path / "cut")), rows, strict=True):
        assert {key: line[key] for key in row if not key.startswith("time/") and key != "plan/seconds"} == {
            key: value for key, value in row.items() if not key.startswith("time/") and key != "plan/seconds"
        }


def test_receive_reports_an_unexpected_error_in_one_line(caplog):
    """Only rank 0 plans; the other ranks wait for its result."""
    embeddings = Embeddings(*torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0)))
    service = LocalPlanService(num_samples=40, seed=0, world=World())

    def out_of_memory(*arguments, **options):
        raise MemoryError("so\nmuch")

    sampler = samplers.build("kmeans", batch_size=8, pool=40)
    object.__setattr__(sampler, "plan_rounds", out_of_memory)
    service.request(PlanKey(0, 0), embeddings, sampler)
    with pytest.raises(PlanError, match="^planning failed: MemoryError: so much$"):
        service.receive(PlanKey(0, 0))
    assert "out_of_memory" in caplog.text, "the log has the traceback"


class SlowSpectral(samplers.Spectral):
    """Plans after the ranks have synchronised three times."""

    def plan_rounds(self, *arguments, **options):
        SlowSpectral.rounds(3)
        return super().plan_rounds(*arguments, **options)


def _plan_longer_than_one_collective(world):
    with gloo.short_rounds() as SlowSpectral.rounds:
        service = LocalPlanService(num_samples=64, seed=0, world=world)
        z1, z2 = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(0))
        local_rows = torch.arange(world.rank, 64, world.size)
        service.request(
            PlanKey(0, 0), Embeddings(z1[local_rows], z2[local_rows], local_rows), SlowSpectral(batch_size=8, k=2)
        )
        return service.receive(PlanKey(0, 0)).plan.digest


@pytest.mark.dist
def test_receive_waits_longer_than_one_collective():
    """Only rank 0 plans; meanwhile the others must not reach the timeout of the process group."""
    one, other = gloo.run(_plan_longer_than_one_collective, 2)
    assert one == other


def test_background_process_close_ends_a_running_task():
    background = BackgroundProcess()
    pid = background.submit(os.getpid).result()
    endless = background.submit(signal.pause)
    wait_for(endless.running)
    background.close()
    assert isinstance(endless.exception(timeout=PATIENCE), BrokenProcessPool)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_plan_lift_without_a_value_is_null_in_the_row(trained):
    """Batches of two clean views at a low temperature: the loss of random batches is zero."""
    experiment = runs.experiment(
        {"name": "spectral", "k": 2, "temperature": 1e-5},
        embeddings={"batch_size": 64, "views": "clean"},
        train={"epochs": 1, "batch_size": 2},
    )
    _, rows = trained(experiment)
    assert rows[0]["plan/lift"] is None
    assert rows[0]["plan/loss"] is not None
