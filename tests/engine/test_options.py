"""Every option of precision, speed and memory does what it says, and nothing else."""

from __future__ import annotations

import gloo
import pytest
import torch
from engine import runs
from torch import nn

from mbcl import dist
from mbcl.dist import World
from mbcl.engine import Trainer
from mbcl.engine.compute import Compute
from mbcl.engine.embed import ViewKey
from mbcl.errors import ConfigError, TrainingError
from mbcl.functional import nt_xent
from mbcl.storage import LocalStore


def trainer_of(folder, world: World | None = None, sampler: str = "shuffle", **changes) -> Trainer:
    changes["train"] = {"epochs": 2, "batch_size": 16, **changes.get("train", {})}
    return Trainer(runs.experiment(sampler, **changes), world=world or World(), store=LocalStore(folder))


def first_batch(trainer: Trainer) -> torch.Tensor:
    return torch.arange(trainer.experiment.train.batch_size) * 3


class Seen:
    """The dtypes and memory formats that modules of a kind compute."""

    def __init__(self, model: nn.Module, kind: type[nn.Module]) -> None:
        self.outputs: list[torch.dtype] = []
        self.channels_last: list[bool] = []
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(self._look)

    def _look(self, module, inputs, output) -> None:
        self.outputs.append(output.dtype)
        self.channels_last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))


# -- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_reaches_the_network_and_nothing_else(tmp_path, monkeypatch, precision):
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trainer = trainer_of(tmp_path, sampler="spectral", train={"precision": precision, "epochs": 1})
    learner = trainer.learner
    seen = Seen(learner.model, nn.Conv2d)
    entered: list[torch.dtype] = []
    learner.objective.register_forward_hook(lambda module, inputs, loss: entered.extend([inputs[0].dtype, loss.dtype]))
    planned: list[torch.dtype] = []
    request = trainer.plans.request
    monkeypatch.setattr(
        trainer.plans,
        "request",
        lambda key, shard, *rest, **more: (planned.append(shard.z1.dtype), request(key, shard, *rest, **more)),
    )
    stepped = learner.step(first_batch(trainer), epoch=0, lr=0.1)
    assert set(seen.outputs) == {half}
    trainer.run()
    assert set(entered) == {torch.float32}, "projections and loss"
    assert stepped.z1.dtype == torch.float32
    assert planned == [torch.float32]
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in learner.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_to_nearly_the_same_loss(tmp_path, precision):
    exact, _, _ = runs.run(World(), tmp_path / "float32", runs.experiment())
    content = runs.experiment(train={"epochs": 2, "batch_size": 16, "precision": precision})
    half, _, rows = runs.run(World(), tmp_path / precision, content)
    assert half != exact
    assert half[0] == pytest.approx(exact[0], rel=0.01)
    assert rows[-1]["train/loss"] == pytest.approx(sum(exact[11:]) / 11, rel=0.2)
    skipped = [row["train/skipped_steps"] for row in rows]
    assert sum(skipped) == 0 if precision == "bf16" else 0 < skipped[0] < 11, "the first scale is too large"


def test_validation_is_float32_whatever_the_training(tmp_path):
    trainer = trainer_of(tmp_path, train={"precision": "bf16"})
    seen = Seen(trainer.learner.model, nn.Conv2d)
    assert trainer._validate() == trainer_of(tmp_path)._validate()
    assert set(seen.outputs) == {torch.float32}


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(tmp_path):
    trainer = trainer_of(tmp_path, train={"precision": "fp16"}, optimizer={"name": "sgd", "lr": 0.1})
    learner = trainer.learner
    assert learner.scaler.is_enabled()
    batch = first_batch(trainer)
    while learner.step(batch, epoch=0, lr=0.0).skipped:
        pass  # until the scale is small enough
    scaled = learner.scaler.get_scale()
    assert scaled > 1
    unscaled = trainer_of(tmp_path).learner
    unscaled.step(batch, epoch=0, lr=0.0)
    for p, q in zip(learner.model.parameters(), unscaled.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0.2, atol=0.05 * float(q.grad.abs().max()) + 1e-6)

    before = {key: x.clone() for key, x in learner.model.named_parameters()}
    handle = next(learner.model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    assert learner.step(batch, epoch=0, lr=0.1).skipped
    handle.remove()
    assert all(torch.equal(before[key], x) for key, x in learner.model.named_parameters()), "the step is skipped"
    assert learner.scaler.get_scale() < scaled
    assert not learner.step(batch, epoch=0, lr=0.1).skipped
    assert not all(torch.equal(before[key], x) for key, x in learner.model.named_parameters())


def test_gradients_that_no_scale_makes_finite_end_the_training(tmp_path):
    trainer = trainer_of(tmp_path, train={"precision": "fp16", "epochs": 9})
    next(trainer.learner.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="the gradients are not finite in fp16 at any scale"):
        trainer.run()


def test_only_fp16_has_a_scaler():
    assert not Compute().scaler().is_enabled()
    assert not Compute(precision="bf16").scaler().is_enabled()


# -- memory format, compiler ---------------------------------------------------------------------------------------


def test_channels_last_is_a_layout_and_not_another_result(tmp_path):
    trainer = trainer_of(tmp_path, train={"channels_last": True})
    seen = Seen(trainer.learner.model, nn.Conv2d)
    losses, weights, _ = runs.run(World(), tmp_path / "plain", runs.experiment())
    batch = first_batch(trainer)
    found = trainer.learner.step(batch, epoch=0, lr=0.0)
    assert all(seen.channels_last)
    plain = trainer_of(tmp_path).learner.step(batch, epoch=0, lr=0.0)
    assert float(found.loss) == pytest.approx(float(plain.loss), rel=1e-5)
    wide = [p for p in trainer.learner.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    content = runs.experiment(train={"epochs": 2, "batch_size": 16, "channels_last": True})
    other_losses, other_weights, _ = runs.run(World(), tmp_path / "last", content)
    assert other_losses == pytest.approx(losses, rel=1e-4)
    assert runs.largest_difference(other_weights, weights) < 1e-3


def test_compile_compiles_and_trains_alike(tmp_path):
    import torch._dynamo.utils as utils

    torch._dynamo.reset()
    utils.counters.clear()
    content = runs.experiment(train={"epochs": 1, "batch_size": 16, "compile": True})
    losses, weights, _ = runs.run(World(), tmp_path / "compiled", content)
    assert utils.counters["stats"]["unique_graphs"] > 1, "the probe is one"
    expected, plain, _ = runs.run(World(), tmp_path / "eager", runs.experiment(train={"epochs": 1, "batch_size": 16}))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert runs.largest_difference(weights, plain) < 1e-3, "under the same names"


def test_a_machine_that_cannot_compile_says_so(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Failed to find C++ compiler. Please specify via CXX environment variable.")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"train.compile: torch.compile does not work .*Failed to find C\+\+"):
        trainer_of(tmp_path, train={"compile": True})


def _compile_where_one_rank_cannot(world):
    import tempfile

    def broken(*arguments, **options):
        raise RuntimeError("Failed to find C++ compiler")

    compile_, torch.compile = torch.compile, broken if world.rank else lambda network, **options: network
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer_of(folder, world, train={"compile": True})
    except ConfigError as error:
        return str(error)
    finally:
        torch.compile = compile_
    return "no error"


@pytest.mark.dist
def test_one_rank_that_cannot_compile_ends_all():
    first, second = gloo.run(_compile_where_one_rank_cannot, 2)
    assert "Failed to find C++ compiler" in second
    assert first == f"rank 1: {second}"


@pytest.mark.dist
def test_compiled_workers_train_as_one_does(tmp_path):
    content = runs.experiment(train={"epochs": 1, "batch_size": 16, "compile": True})
    expected, weights, _ = runs.run(World(), tmp_path / "eager", runs.experiment(train={"epochs": 1, "batch_size": 16}))
    for losses, found, _ in gloo.run(runs.run, 2, str(tmp_path / "compiled"), content):
        assert losses == pytest.approx(expected, rel=1e-3)
        assert runs.largest_difference(found, weights) < 1e-3


# -- batch norm over the ranks -------------------------------------------------------------------------------------


def _normalised(world, synchronised):
    """After one epoch: the first losses, the running means of all ranks, and validation."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, world, train={"sync_batchnorm": synchronised, "epochs": 1})
        kinds = {
            type(module).__name__ for module in trainer.learner.model.modules() if "BatchNorm" in type(module).__name__
        }
        row = trainer.run().row
    means = torch.cat([b.flatten() for name, b in trainer.learner.model.named_buffers() if "running_mean" in name])
    return kinds, row["train/loss"], dist.gather(means[None], world), row["val/retrieval/top1"]


@pytest.mark.dist
def test_batch_norm_is_synchronised_unless_told_otherwise(tmp_path):
    _, _, (row,) = runs.run(World(), tmp_path, runs.experiment(train={"epochs": 1, "batch_size": 16}))
    kinds, loss, means, _ = gloo.run(_normalised, 2, True)[0]
    assert kinds == {"SyncBatchNorm1d", "SyncBatchNorm2d"}
    assert loss == pytest.approx(row["train/loss"], rel=1e-4)
    torch.testing.assert_close(means[0], means[1])

    (kinds, loss, means, top1), other = gloo.run(_normalised, 2, False)
    assert kinds == {"BatchNorm1d", "BatchNorm2d"}
    assert abs(loss - row["train/loss"]) > 1e-3, "each rank normalises its own half"
    assert torch.equal(means[0], means[1]), "what is saved and validated is the ranks' mean"
    assert top1 == other[3]


# -- accumulation --------------------------------------------------------------------------------------------------


def test_plain_accumulation_is_the_mean_of_the_chunks_own_losses(tmp_path):
    trainer = trainer_of(tmp_path, train={"accumulation": {"mode": "plain", "chunk_size": 4}})
    batch = first_batch(trainer)
    found = trainer.learner.step(batch, epoch=0, lr=0.0)
    reference = trainer_of(tmp_path).learner
    losses = []
    for chunk in batch.split(4):
        z1, z2 = reference.model(reference._views(chunk, ViewKey(reference.seed))).chunk(2)
        loss = nt_xent(z1, z2, temperature=0.1) / 4
        loss.backward()
        losses.append(loss.item())
    assert float(found.loss) == pytest.approx(sum(losses), rel=1e-6)
    for p, q in zip(trainer.learner.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    whole = trainer_of(tmp_path).learner.step(batch, epoch=0, lr=0.0)
    assert float(whole.loss) > float(found.loss), "fewer negatives: another objective"


def test_cached_accumulation_trains_as_the_whole_batch(tmp_path):
    for objective in ("simclr", "sogclr"):
        content = {"objective": {"name": objective}}
        expected, weights, rows = runs.run(World(), tmp_path / objective, runs.experiment("spectral", **content))
        content["train"] = {"epochs": 2, "batch_size": 16, "accumulation": {"mode": "cached", "chunk_size": 4}}
        losses, found, chunk_rows = runs.run(
            World(), tmp_path / f"{objective}4", runs.experiment("spectral", **content)
        )
        # The second epoch's plan is made anew: a last bit of an embedding may change it.
        assert losses[:11] == pytest.approx(expected[:11], rel=1e-4, abs=1e-5)
        assert set(found) == set(weights)
        assert chunk_rows[0]["sogclr/u_age"] == rows[0]["sogclr/u_age"]


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["plain", "cached"])
def test_accumulation_is_the_same_on_two_workers(tmp_path, mode):
    content = runs.experiment(
        objective={"name": "sogclr"},
        train={"epochs": 1, "batch_size": 16, "accumulation": {"mode": mode, "chunk_size": 8}},
    )
    losses, weights, rows = runs.run(World(), tmp_path / "one", content)
    for rank_losses, rank_weights, rank_rows in gloo.run(runs.run, 2, str(tmp_path / "two"), content):
        assert rank_losses == pytest.approx(losses, rel=1e-4)
        assert runs.largest_difference(rank_weights, weights) < 1e-4
        assert rank_rows[0]["sogclr/u_age"] == rows[0]["sogclr/u_age"]


def test_options_combine(tmp_path):
    content = runs.experiment(
        "spectral",
        objective={"name": "hcl"},
        embeddings={"source": "cached", "batch_size": 64},
        train={
            "epochs": 2,
            "batch_size": 16,
            "precision": "fp16",
            "channels_last": True,
            "accumulation": {"mode": "cached", "chunk_size": 8},
        },
    )
    losses, _, rows = runs.run(World(), tmp_path, content)
    assert len(losses) == 22
    assert [row["plan/age"] for row in rows][0] == 0


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train": {"precision": "fp8"}}, "train.precision: .*'float32', 'bf16' or 'fp16', found 'fp8'"),
        ({"train": {"compile": "yes"}}, "train.compile: .*found 'yes'"),
        ({"train": {"accumulation": {"chunk_size": 8}}}, "train.accumulation.chunk_size: not used with mode none"),
        ({"train": {"accumulation": {"mode": "plain"}}}, "train.accumulation.chunk_size: mode plain needs"),
        (
            {"train": {"batch_size": 16, "accumulation": {"mode": "plain", "chunk_size": 5}}},
            "train.accumulation.chunk_size: found 5, which does not divide batch_size 16",
        ),
        (
            {"train": {"batch_size": 16, "compile": True, "accumulation": {"mode": "cached", "chunk_size": 8}}},
            "train.compile: found true, which does not go with cached accumulation",
        ),
        (
            {"train": {"batch_size": 16, "sync_batchnorm": False, "accumulation": {"mode": "cached", "chunk_size": 8}}},
            "train.sync_batchnorm: found false, but cached accumulation normalises over the whole batch",
        ),
        ({"train": {"checkpoint_steps": 0}}, "train.checkpoint_steps: .*found 0"),
        ({"train": {"accumulate": 2}}, "train.accumulate: unknown key; did you mean 'accumulation'"),
        ({"embeddings": {"source": "cached", "mode": "eval"}}, "embeddings.mode: cached embeddings .*found 'eval'"),
        ({"embeddings": {"source": "cached", "views": "clean"}}, "embeddings.views: cached .*found 'clean'"),
        ({"objective": {"name": "sogclr", "num_samples": 9}}, "objective.num_samples: unknown key"),
        (
            {"objective": {"name": "sog"}, "sampler": {"name": "osgd", "k": 4, "q": 2, "score": "objective"}},
            "sampler: score: found 'objective', but sogclr has state per sample; allowed: ntxent",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, text):
    with pytest.raises(ConfigError, match=text):
        runs.experiment(**changes)


def test_cached_embeddings_are_refused_where_samples_are_left_out():
    with pytest.raises(ConfigError, match="embeddings.source: found cached, but osgd trains on a part"):
        runs.experiment("osgd", embeddings={"source": "cached"})
    runs.experiment(sampler={"name": "osgd", "k": 4, "q": 4}, embeddings={"source": "cached"})
    runs.experiment("shuffle", embeddings={"source": "cached"})


def test_a_chunk_that_the_workers_cannot_share_is_refused(tmp_path):
    accumulation = {"mode": "plain", "chunk_size": 2}
    with pytest.raises(ConfigError, match=r"train.accumulation.chunk_size: 2 is not divisible by 4 workers"):
        trainer_of(tmp_path, World(0, 4, torch.device("cpu")), train={"accumulation": accumulation})
