"""The options of training for precision, speed and memory."""

from __future__ import annotations

import math
import tempfile

import gloo
import pytest
import torch
from engine import runs
from torch import nn

from mbcl.bench.train_settings import random_images, register_random_images
from mbcl.config.train import Train
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.embedding_pass import ViewKey
from mbcl.engine.gradient_parity import relative_error
from mbcl.engine.precision import Compute
from mbcl.engine.setup import check_takes
from mbcl.errors import ConfigError, TrainingError
from mbcl.functional import nt_xent
from mbcl.io.store import LocalStore
from mbcl.models import ContrastiveModel
from mbcl.planner import plan_service


def trainer_of(folder, world: World | None = None, sampler: str = "shuffle", **changes) -> Trainer:
    changes["train"] = {"epochs": 2, "batch_size": 16, **changes.get("train", {})}
    return Trainer(runs.experiment(sampler, **changes), world=world or World(), store=LocalStore(folder))


def exact_trainer_of(folder, **changes) -> Trainer:
    """A trainer in float64, where any two ways to compute a step agree far below 1e-9."""
    changes["train"] = {"precision": "float64", **changes.get("train", {})}
    return trainer_of(folder, **changes)


def first_batch(trainer: Trainer) -> torch.Tensor:
    return torch.arange(trainer.experiment.train.batch_size) * 3


class OutputRecorder:
    """Records dtypes and memory formats of the modules of one class."""

    def __init__(self, model: nn.Module, kind: type[nn.Module]) -> None:
        self.outputs: list[torch.dtype] = []
        self.channels_last: list[bool] = []
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(self._record)

    def _record(self, module, inputs, output) -> None:
        self.outputs.append(output.dtype)
        self.channels_last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))


# -- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_covers_the_network_only(tmp_path, monkeypatch, precision):
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trainer = trainer_of(tmp_path, sampler="spectral", train={"precision": precision, "epochs": 1})
    learner = trainer.learner
    recorder = OutputRecorder(learner.model, nn.Conv2d)
    entered: list[torch.dtype] = []
    learner.objective.register_forward_hook(lambda module, inputs, loss: entered.extend([inputs[0].dtype, loss.dtype]))
    planned: list[torch.dtype] = []
    request = trainer.plans.request
    monkeypatch.setattr(
        trainer.plans,
        "request",
        lambda key, shard, *rest, **options: (planned.append(shard.z1.dtype), request(key, shard, *rest, **options)),
    )
    output = learner.step(first_batch(trainer), epoch=0, lr=0.1)
    assert set(recorder.outputs) == {half}
    trainer.run()
    assert set(entered) == {torch.float32}, "projections and loss"
    assert output.z1.dtype == torch.float32
    assert planned == [torch.float32]
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in learner.model.parameters()} == {torch.float32}


def test_float64_precision_covers_model_loss_plans_and_optimizer(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, sampler="spectral", train={"precision": "float64", "epochs": 1})
    learner = trainer.learner
    recorder = OutputRecorder(learner.model, nn.Conv2d)
    entered: list[torch.dtype] = []
    learner.objective.register_forward_hook(lambda module, inputs, loss: entered.extend([inputs[0].dtype, loss.dtype]))
    planned: list[torch.dtype] = []
    make = plan_service.make_plan
    monkeypatch.setattr(
        plan_service, "make_plan", lambda *a, **rest: (planned.append(a[1].z1.dtype), make(*a, **rest))[1]
    )
    trainer.run()
    assert {*recorder.outputs, *entered, *planned} == {torch.float64}
    state = checkpoints.latest(trainer.store).state
    momentum = [x for buffers in state["optimizer"]["state"].values() for x in buffers.values()]
    tensors = [*learner.model.parameters(), *state["model"].values(), *momentum]
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float64}
    plain = trainer_of(tmp_path / "float32").learner.model
    start = exact_trainer_of(tmp_path / "start").learner.model
    assert all(torch.equal(p, q.double()) for p, q in zip(start.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_skipped_steps_are_counted_in_half_precision(tmp_path, precision):
    """The initial scale of fp16 may be too large for more steps than those made to overflow."""
    trainer = trainer_of(tmp_path, train={"precision": precision, "epochs": 1})
    learner, skipped, overflows = trainer.learner, [], iter([float("inf")] * 3)
    if precision == "fp16":
        weights = next(learner.model.parameters())
        weights.register_hook(lambda gradient: gradient * next(overflows, 1.0))
    step = learner.step
    learner.step = lambda batch, **rest: (done := step(batch, **rest), skipped.append(done.skipped))[0]
    row = trainer.run().row
    assert len(skipped) == 11
    assert row["train/skipped_steps"] == sum(skipped)
    assert sum(skipped) == 0 if precision == "bf16" else sum(skipped) >= 3


def test_validation_runs_in_float32_when_training_in_bf16(tmp_path):
    trainer = trainer_of(tmp_path, train={"precision": "bf16"})
    recorder = OutputRecorder(trainer.learner.model, nn.Conv2d)
    assert trainer._validate() == trainer_of(tmp_path)._validate()
    assert set(recorder.outputs) == {torch.float32}


def test_fp16_scales_the_loss_and_skips_steps_that_overflow(tmp_path):
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
    gradient, expected = (
        torch.cat([p.grad.flatten() for p in each.model.parameters()]) for each in (learner, unscaled)
    )
    # Scales are powers of two: a missing or a repeated unscaling is a factor of two at least. fp16 rounds by 2^-11,
    # which a dozen layers do not amplify to a third.
    assert round(math.log2(gradient.norm() / expected.norm())) == 0
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.9, (
        "and which turns the gradient by less than 26 degrees"
    )

    before = {key: x.clone() for key, x in learner.model.named_parameters()}
    handle = next(learner.model.parameters()).register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    assert learner.step(batch, epoch=0, lr=0.1).skipped
    handle.remove()
    assert all(torch.equal(before[key], x) for key, x in learner.model.named_parameters()), "the step is skipped"
    assert learner.scaler.get_scale() < scaled
    assert not learner.step(batch, epoch=0, lr=0.1).skipped
    assert not all(torch.equal(before[key], x) for key, x in learner.model.named_parameters())


def test_fp16_ends_training_when_no_scale_gives_finite_gradients(tmp_path):
    trainer = trainer_of(tmp_path, train={"precision": "fp16", "epochs": 9})
    next(trainer.learner.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="the gradients are not finite in fp16 at any scale"):
        trainer.run()


def test_scaler_is_enabled_for_fp16_only():
    assert not Compute().scaler().is_enabled()
    assert not Compute(precision="bf16").scaler().is_enabled()


# -- memory format, compiler ---------------------------------------------------------------------------------------


def test_channels_last_changes_the_layout_but_no_result(tmp_path):
    trainer = trainer_of(tmp_path, train={"channels_last": True})
    recorder = OutputRecorder(trainer.learner.model, nn.Conv2d)
    trainer.learner.step(first_batch(trainer), epoch=0, lr=0.0)
    assert all(recorder.channels_last)
    wide = [p for p in trainer.learner.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    actual = runs.run(World(), tmp_path / "last", runs.exact("spectral", train={"channels_last": True}))
    runs.assert_alike(actual, runs.run(World(), tmp_path / "plain", runs.exact("spectral")))


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "float32", True),
        ("cpu", "bf16", True),
        ("cpu", "float64", False),
        ("cuda", "float32", False),
        ("cuda", "bf16", True),
        ("cuda", "fp16", True),
    ],
)
def test_auto_memory_format_follows_device_precision_and_encoder(device, precision, expected):
    convolutions, perceptron = nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

    def last(model: nn.Module, **setting) -> bool:
        return Compute.of(Train(precision=precision, **setting), torch.device(device), model).channels_last

    assert last(convolutions) is expected
    assert last(perceptron) is False
    assert last(convolutions, channels_last=False) is False
    assert last(convolutions, channels_last=True) is True


def test_embeddings_steps_and_validation_use_one_memory_format(tmp_path):
    """Images of one channel have both formats, hence colour."""
    data = {"name": register_random_images(120, 8, seed=0), "validation": 0.1}
    trainer = trainer_of(tmp_path, sampler="spectral", data=data, train={"epochs": 1})
    model, inputs = trainer.learner.model, []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, x: inputs.append((torch.is_grad_enabled(), x[0])))
    trainer.run()
    steps, others = ([x for trained, x in inputs if trained is kind] for kind in (True, False))
    assert len(steps) == trainer.sizes.steps_per_epoch
    assert len(others) >= 2, "the embedding pass and the validation"
    for _, x in inputs:
        assert x.shape[1] == 3
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert not x.is_contiguous()


def test_encoder_that_needs_the_contiguous_format_is_refused_with_the_key():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x).view(len(x), -1)

    model = ContrastiveModel(Flat(), nn.Linear(72, 8))
    images = random_images(4, 8, seed=0)
    check_takes(model, runs.experiment(train={"channels_last": False}), images)
    with pytest.raises(ConfigError, match=r"cannot take images of 3 x 8 x 8: .*train\.channels_last; false"):
        check_takes(model, runs.experiment(), images)


def test_compile_trains_to_the_same_result(tmp_path):
    import torch._dynamo.utils as utils

    torch._dynamo.reset()
    utils.counters.clear()
    encoder = {"name": "resnet_small", "widths": [8]}
    compiled = runs.run(World(), tmp_path / "compiled", runs.exact(encoder=encoder, train={"compile": True}))
    assert utils.counters["stats"]["unique_graphs"] > 1, "one graph is the probe's"
    expected = runs.run(World(), tmp_path / "eager", runs.exact(encoder=encoder))
    runs.assert_alike(compiled, expected)


def test_compile_error_names_the_missing_compiler(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Failed to find C++ compiler. Please specify via CXX environment variable.")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"train.compile: torch.compile does not work .*Failed to find C\+\+"):
        trainer_of(tmp_path, train={"compile": True})


def _compile_where_one_rank_cannot(world):
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
def test_compile_error_of_one_rank_ends_all_ranks():
    first, second = gloo.run(_compile_where_one_rank_cannot, 2)
    assert "Failed to find C++ compiler" in second
    assert first == f"rank 1: {second}"


# -- batch norm over the ranks -------------------------------------------------------------------------------------


def _unsynchronised(world, content):
    """After one epoch: the classes of modules, the loss, the running means of all ranks, and validation."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(content, world=world, store=LocalStore(folder))
        row = trainer.run().row
    kinds = {type(module).__name__ for module in trainer.learner.model.modules()}
    means = torch.cat([b.flatten() for name, b in trainer.learner.model.named_buffers() if "running_mean" in name])
    return kinds, row["train/loss"], collectives.all_gather_ragged(means[None], world), row["val/retrieval/top1"]


@pytest.mark.dist
def test_sync_batchnorm_false_normalises_each_rank_alone(tmp_path):
    """test_parity.py compares synchronised batch norm with one worker."""
    _, _, (row,) = runs.run(World(), tmp_path, runs.exact(train={"epochs": 1}))
    content = runs.exact(train={"epochs": 1, "sync_batchnorm": False})
    (kinds, loss, means, top1), other = gloo.run(_unsynchronised, 2, content)
    assert {kind for kind in kinds if "BatchNorm" in kind} == {"BatchNorm1d", "BatchNorm2d"}
    assert abs(loss - row["train/loss"]) > 1000 * runs.EXACT, "each rank normalises its own half"
    assert torch.equal(means[0], means[1]), "saved and validated statistics are the mean over the ranks"
    assert top1 == other[3]


# -- accumulation --------------------------------------------------------------------------------------------------


def test_plain_accumulation_is_the_mean_of_the_chunk_losses(tmp_path):
    trainer = exact_trainer_of(tmp_path, train={"accumulation": {"mode": "plain", "chunk_size": 4}})
    batch = first_batch(trainer)
    output = trainer.learner.step(batch, epoch=0, lr=0.0)
    reference = exact_trainer_of(tmp_path).learner
    losses = []
    for chunk in batch.split(4):
        z1, z2 = reference.model(reference._views(chunk, ViewKey(reference.seed))).chunk(2)
        loss = nt_xent(z1, z2, temperature=0.1) / 4
        loss.backward()
        losses.append(loss.item())
    assert float(output.loss) == pytest.approx(sum(losses), rel=runs.EXACT)
    for p, q in zip(trainer.learner.model.parameters(), reference.model.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < runs.EXACT
    unchunked_output = exact_trainer_of(tmp_path).learner.step(batch, epoch=0, lr=0.0)
    assert float(unchunked_output.loss) > float(output.loss), "fewer negatives: another objective"


@pytest.mark.parametrize("sampler", ["shuffle", "spectral"])
def test_cached_accumulation_equals_the_whole_batch(tmp_path, sampler):
    objective = {"objective": {"name": "sogclr"}}
    chunks = {"accumulation": {"mode": "cached", "chunk_size": 4}}
    chunked = runs.run(World(), tmp_path / "chunks", runs.exact(sampler, **objective, train=chunks))
    runs.assert_alike(chunked, runs.run(World(), tmp_path / "whole", runs.exact(sampler, **objective)))


def test_train_options_combine(tmp_path):
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


# -- invalid options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train": {"precision": "fp8"}}, "train.precision: .*'float32', 'float64', 'bf16' or 'fp16', found 'fp8'"),
        ({"train": {"compile": "yes"}}, "train.compile: .*found 'yes'"),
        ({"train": {"channels_last": "yes"}}, "train.channels_last: .*'auto', True or False, found 'yes'"),
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
def test_experiment_refuses_options_that_do_not_combine(changes, text):
    with pytest.raises(ConfigError, match=text):
        runs.experiment(**changes)


def test_cached_embeddings_refuse_a_sampler_that_leaves_samples_out():
    with pytest.raises(ConfigError, match="embeddings.source: found cached, but osgd trains on a part"):
        runs.experiment("osgd", embeddings={"source": "cached"})
    runs.experiment(sampler={"name": "osgd", "k": 4, "q": 4}, embeddings={"source": "cached"})
    runs.experiment("shuffle", embeddings={"source": "cached"})


def test_trainer_refuses_a_chunk_size_not_divisible_by_the_workers(tmp_path):
    accumulation = {"mode": "plain", "chunk_size": 2}
    with pytest.raises(ConfigError, match=r"train.accumulation.chunk_size: 2 is not divisible by 4 workers"):
        trainer_of(tmp_path, World(0, 4, torch.device("cpu")), train={"accumulation": accumulation})
