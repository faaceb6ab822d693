"""The estimate of the memory of a training."""

from __future__ import annotations

from dataclasses import replace

import torch

from mbcl.config.experiment import Experiment
from mbcl.engine import MemoryNeed, check_model, load_data, memory_need

EXPERIMENT = Experiment.model_validate(
    {"data": {"name": "digits", "max_samples": 200}, "train": {"epochs": 1, "batch_size": 16}}
)
DATA = load_data(EXPERIMENT.data, seed=0)


def need_of(**train):
    experiment = EXPERIMENT.model_copy(update={"train": EXPERIMENT.train.model_copy(update=train)})
    return memory_need(experiment, DATA, check_model(experiment, DATA))


def test_memory_need_counts_images_and_embeddings_once():
    images = sum(len(part) for part in (DATA.train, DATA.validation, DATA.test)) * 64
    embeddings = 2 * len(DATA.train) * EXPERIMENT.projector.dim * 4
    found = need_of().host
    assert embeddings < found <= images + embeddings


def test_memory_need_leaves_out_mapped_images():
    mapped = replace(DATA, **{part: replace(DATA.part(part), mapped=True) for part in ("train", "validation", "test")})
    found = memory_need(EXPERIMENT, mapped, check_model(EXPERIMENT, DATA)).host
    assert found == 2 * len(DATA.train) * EXPERIMENT.projector.dim * 4


def test_memory_need_grows_with_the_images_of_a_step():
    one, two, three = (need_of(batch_size=size).activations for size in (16, 32, 48))
    assert one < two
    assert three - two == two - one
    assert need_of(batch_size=64, precision="float64").activations > need_of(batch_size=64).activations
    chunked = {"mode": "cached", "chunk_size": 16}
    experiment = EXPERIMENT.model_validate(
        EXPERIMENT.model_dump() | {"train": {"epochs": 1, "batch_size": 64, "accumulation": chunked}}
    )
    assert memory_need(experiment, DATA, check_model(experiment, DATA)).activations == one


def test_memory_need_counts_what_autograd_saves():
    """The saved tensors of two layers by hand: the input of each, and the output of the activation."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    experiment = EXPERIMENT.model_copy(update={"train": EXPERIMENT.train.model_copy(update={"batch_size": 10})})
    need = memory_need(experiment, DATA, model)
    assert need.weights == 5 * 4 * (64 * 32 + 32 + 32 * 8 + 8)
    assert need.activations == 20 * 4 * (64 + 32)


def test_largest_memory_need_is_the_largest_of_each_field():
    needs = [MemoryNeed(8, 1, 2), MemoryNeed(1, 20, 1)]
    assert MemoryNeed.largest(needs) == MemoryNeed(8, 20, 2)
    assert MemoryNeed.largest([]) == MemoryNeed(0, 0, 0)


def test_memory_need_changes_no_weights():
    model = check_model(EXPERIMENT, DATA)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    memory_need(EXPERIMENT, DATA, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
