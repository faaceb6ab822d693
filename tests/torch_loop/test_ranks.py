"""Loops on two ranks, each a real process: every rank trains on its columns of one plan."""

from __future__ import annotations

import io
import multiprocessing

import gloo
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch_loop.loops import STEPS, B, N, samples

import mbcl
from mbcl.distributed import collectives
from mbcl.errors import ConfigError, MbclError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner import PlanKey, make_plan
from mbcl.torch import PlannedBatchSampler, Replanner

pytestmark = pytest.mark.dist
EPOCHS = 3


def embeddings():
    z = samples()
    return Embeddings(z, z + 0.1)


def embed_fixed(positions):
    z = samples()
    return z[positions], z[positions] + 0.1


def plans(epochs=EPOCHS):
    sampler = mbcl.samplers.build("spectral", batch_size=B, k=2)
    made = [make_plan(sampler, embeddings(), PlanKey(e, 0), num_samples=N, seed=3).plan for e in range(epochs)]
    return [plan.batches.tolist() for plan in made]


def joined(ranks):
    """The global batches of what each rank trained on."""
    return [sum(parts, []) for parts in zip(*ranks, strict=True)]


class Training:
    """A linear encoder in float64 under DistributedDataParallel, with a loss over the gathered batch."""

    def __init__(self, world, plan=None, **options):
        self.world, self.x = world, samples()
        encoder = torch.nn.Linear(5, 3, dtype=torch.float64)
        with torch.no_grad():
            for seed, parameter in enumerate(encoder.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        self.encoder = encoder
        self.model = DistributedDataParallel(encoder)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.criterion = mbcl.objectives.build("simclr", temperature=0.5)
        self.replanner = None
        if plan is None:
            made = {"batch_size": B, "k": 2, "num_samples": N, "seed": 3} | options
            plan = self.replanner = Replanner("spectral", **made)
        self.batches = PlannedBatchSampler(plan)
        self.loader = DataLoader(TensorDataset(self.x, torch.arange(N)), batch_sampler=self.batches)
        self.seen = []

    def views(self, x):
        return self.encoder(x), self.encoder(x.roll(1, 1))

    def embed(self, positions):
        return self.views(self.x[positions])

    def run(self, epochs=EPOCHS, stop=None):
        for epoch in range(self.batches.epoch, epochs):
            self.batches.set_epoch(epoch)
            for x, positions in self.loader:
                z1, z2 = self.model(torch.cat([x, x.roll(1, 1)])).chunk(2)
                self.optimizer.zero_grad()
                gathered = [collectives.gather_with_grad(z, self.world) for z in (z1, z2)]
                self.criterion(*gathered, None).backward()
                self.optimizer.step()
                if self.replanner is not None and self.replanner._embeddings.cache is not None:
                    self.replanner.observe(positions, z1, z2)
                self.seen.append(positions.tolist())
                if len(self.seen) == stop:
                    return self
        return self

    def state(self):
        return {"model": self.encoder.state_dict(), "batches": self.batches.state_dict()} | (
            {"replanner": self.replanner.state_dict()} if self.replanner else {}
        )

    def saved(self):
        stream = io.BytesIO()
        torch.save(self.state(), stream)
        return stream.getvalue()

    def load(self, state):
        self.encoder.load_state_dict(state["model"])
        self.batches.load_state_dict(state["batches"])
        if self.replanner:
            self.replanner.load_state_dict(state["replanner"])
        return self

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.encoder.parameters()]).tolist()


# -- plans of several kinds ----------------------------------------------------------------------------------------


def _train_on_a_plan(world, batches, kind):
    plan = BatchPlan(torch.tensor(batches), "own")
    training = Training(world, plan if kind == "plan" else lambda epoch: plan).run(1)
    assert training.batches.batch_size * world.size == B
    return training.seen, training.weights()


@pytest.mark.parametrize("kind", ["plan", "function"])
def test_ddp_trains_on_the_columns_of_a_plan(kind):
    (expected,) = plans(1)
    (one, one_weights), (other, other_weights) = gloo.run(_train_on_a_plan, 2, expected, kind)
    assert joined([one, other]) == expected
    assert one_weights == other_weights


def _replan(world, options):
    gloo.allow_children()
    training = Training(world, embed=embed_fixed, **options).run()
    training.replanner.close()
    return training.seen


@pytest.mark.parametrize("options", [{}, {"embed_batch_size": 5}, {"background": True}], ids=str)
def test_ddp_trains_on_the_plans_of_one_process(options):
    """On more ranks than chunks of samples, too: one rank embeds nothing then."""
    ranks = gloo.run(_replan, 2, options)
    assert joined(ranks) == sum(plans(), [])


def _replan_on_own_embeddings(world, options):
    training = Training(world, **options).run()
    plan = training.replanner.plan(EPOCHS - 1)
    return training.seen, plan.digest, plan.sampler


@pytest.mark.parametrize("steps", [{}, {"every": 4, "unit": "step"}], ids=str)
def test_ranks_that_observe_have_one_plan(steps):
    """Each rank observed half of the samples last, and no rank saw them all."""
    (one, digest, sampler), (other, other_digest, _) = gloo.run(_replan_on_own_embeddings, 2, steps)
    batches = joined([one, other])
    assert digest == other_digest
    assert sampler == "spectral", "every sample was observed"
    assert len(batches) == EPOCHS * STEPS
    shuffled = mbcl.samplers.build("shuffle", batch_size=B).plan(N, seed=3, epoch=0).batches.tolist()
    assert batches[:STEPS] == shuffled
    for epoch in range(EPOCHS if not steps else 1):
        assert sorted(sum(batches[epoch * STEPS : (epoch + 1) * STEPS], [])) == list(range(N))


# -- a process group that is made late -----------------------------------------------------------------------------


def _train_in_a_late_group(world, folder):
    """The batch sampler and its replanner are made before the process group, as for a framework that makes it."""
    collectives.finish()
    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N, seed=3)
    batches = PlannedBatchSampler(replanner)
    before = batches.rank, batches.world_size, batches.batch_size
    collectives.init_from_file(folder / "rendezvous", world.rank, world.size, timeout=900)
    training = Training(collectives.current(), replanner)
    training.replanner, training.batches = replanner, batches
    training.loader = DataLoader(TensorDataset(samples(), torch.arange(N)), batch_sampler=batches)
    training.run()
    return before, (batches.rank, batches.world_size, batches.batch_size), training.seen


def test_ranks_are_those_of_a_process_group_that_is_made_after_the_batch_sampler(tmp_path):
    results = gloo.run(_train_in_a_late_group, 2, tmp_path)
    observed = gloo.run(_replan_on_own_embeddings, 2, {})
    for rank, ((before, after, seen), (expected, _, _)) in enumerate(zip(results, observed, strict=True)):
        assert before == (0, 1, B)
        assert after == (rank, 2, B // 2)
        assert seen == expected


# -- resuming ------------------------------------------------------------------------------------------------------


def _cut_and_resume(world, cut, options):
    uncut = Training(world, **options).run()
    first = Training(world, **options).run(stop=cut)
    second = Training(world, **options).load(first.state()).run()
    for training in (uncut, first, second):
        training.replanner.close()
    return uncut.seen == first.seen + second.seen, uncut.weights() == second.weights(), first.saved(), uncut.seen


@pytest.mark.parametrize("cut", [1, STEPS, 2 * STEPS - 1])
def test_two_ranks_resume_on_the_same_batches(cut):
    for batches, weights, _, _ in gloo.run(_cut_and_resume, 2, cut, {}):
        assert batches
        assert weights


def test_a_state_of_two_ranks_is_loaded_on_one():
    """Observed embeddings of all ranks are in the state, and the plan after the loaded one comes from them."""
    results = gloo.run(_cut_and_resume, 2, STEPS - 1, {})
    states = [torch.load(io.BytesIO(saved), weights_only=True) for _, _, saved, _ in results]
    assert torch.equal(states[0]["replanner"]["cache"]["positions"], states[1]["replanner"]["cache"]["positions"])
    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N, seed=3)
    batches = PlannedBatchSampler(replanner)
    batches.load_state_dict(states[0]["batches"])
    replanner.load_state_dict(states[1]["replanner"])
    (last,) = list(batches)
    assert last == joined([seen for _, _, _, seen in results])[STEPS - 1]
    replanner.observe(torch.tensor(last), *(samples()[last, :3] for _ in range(2)))
    batches.set_epoch(1)
    list(batches)
    assert replanner.plan(1).sampler == "spectral"


# -- errors --------------------------------------------------------------------------------------------------------


def _error_of(world, function):
    try:
        function(world)
    except MbclError as error:
        return type(error), str(error)
    return None


def _not_finite_on_rank_1(world):
    def embed(positions):
        z1, z2 = embed_fixed(positions)
        return z1, z2 * (float("nan") if world.rank == 1 else 1)

    Training(world, embed=embed, embed_batch_size=5).run()


def _wider_on_rank_1(world):
    def embed(positions):
        return tuple(z[:, : 2 + world.rank] for z in embed_fixed(positions))

    Training(world, embed=embed, embed_batch_size=5).run()


def _observes_less_on_rank_1(world):
    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N)
    for _ in range(2 - world.rank):
        replanner.observe(torch.arange(N), samples(), samples())
    replanner.plan(0)


def _odd_batches(world):
    PlannedBatchSampler.from_sampler("shuffle", num_samples=N, batch_size=3)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (_not_finite_on_rank_1, PlanError, "not finite"),
        (_wider_on_rank_1, ConfigError, "dimensions or dtypes differ between the ranks"),
        (
            _observes_less_on_rank_1,
            ConfigError,
            r"calls and dimensions differ between the ranks: \[\(2, 5\), \(1, 5\)\]",
        ),
        (_odd_batches, ConfigError, "2 ranks cannot share batches of 3 samples"),
    ],
)
def test_every_rank_raises_what_one_rank_finds(function, kind, message):
    for raised in gloo.run(_error_of, 2, function):
        assert raised is not None
        with pytest.raises(kind, match=message):
            raise raised[0](raised[1])


def _replan_in_a_daemon(world):
    """Rank 0 alone starts a process, which a daemon may not; the other rank waits for its plan."""
    multiprocessing.current_process()._config["daemon"] = True
    replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N, embed=embed_fixed, background=True)
    batches = PlannedBatchSampler(replanner)
    done = len(list(batches))
    batches.set_epoch(1)
    try:
        next(iter(batches))
    except PlanError as error:
        return done, str(error)
    return done, ""


def test_a_planning_process_that_does_not_start_fails_on_every_rank():
    message = "planning failed: AssertionError: daemonic processes are not allowed to have children"
    assert gloo.run(_replan_in_a_daemon, 2) == [(STEPS, message)] * 2
