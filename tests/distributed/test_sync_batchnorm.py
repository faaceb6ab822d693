"""Synchronised batch norm on real gloo processes, against one process that holds the whole batch."""

from __future__ import annotations

import copy

import gloo
import pytest
import torch
from closeness import relative
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mbcl import models
from mbcl.config.experiment import Projector
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.distributed.sync_batchnorm import SyncBatchNorm1d, convert_sync_batchnorm

SHARES = {2: ([3, 3], [5, 2], [6, 0]), 4: ([2, 2, 2, 2], [1, 3, 0, 4])}
WORLDS = [(size, shares) for size, options in SHARES.items() for shares in options]


def images(num: int) -> Tensor:
    """(num, 1, 8, 8) with a mean far from zero, where sums of squares lose precision."""
    return torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 30


def test_convert_sync_batchnorm_keeps_names_and_results():
    model = models.build({"name": "resnet_small", "widths": [4, 8]}, in_channels=1, seed=0)
    x = images(4)
    for mode in (True, False):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        twin = copy.deepcopy(model)
        converted = convert_sync_batchnorm(twin, World())
        assert list(converted.state_dict()) == list(before)
        assert {type(m) for m in converted.modules()} & {nn.BatchNorm1d, nn.BatchNorm2d} == set()
        assert torch.equal(converted.train(mode)(x), model.train(mode)(x))
        model.load_state_dict(converted.state_dict())


def test_convert_sync_batchnorm_of_a_layer_shares_its_tensors():
    layer = nn.BatchNorm1d(3, momentum=None, affine=False).eval()
    converted = convert_sync_batchnorm(layer, World())
    assert isinstance(converted, SyncBatchNorm1d)
    assert converted.running_mean is layer.running_mean
    assert converted.momentum is None
    assert not converted.training


# -- synchronised batch norm ---------------------------------------------------------------------------------------


OFFSET = 1000.0
"""The mean of the inputs, in standard deviations."""


def _norm(dims: int, dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims](5, dtype=dtype, **settings)
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 2, 5))
            if layer.bias is not None:
                layer.bias.copy_(torch.linspace(3, 1, 5))
    return layer


def _batch_norm(world: World, dims: int, settings: dict, x: Tensor, weights: Tensor, shares: list[int]) -> dict:
    layer = convert_sync_batchnorm(_norm(dims, x.dtype, **settings), world)
    local = x.split(shares)[world.rank].clone().requires_grad_()
    outputs = []
    for factor in (1.0, 0.5):  # two passes, so that the running statistics are averaged
        out = layer(local * factor)
        (out * weights.split(shares)[world.rank]).sum().backward()
        outputs.append(out.detach())
    gradients = [p.grad for p in layer.parameters()]
    evaluated = layer.eval()(local).detach()
    return {
        "out": outputs,
        "eval": evaluated,
        "input": local.grad,
        "parameters": gradients,
        "state": layer.state_dict(),
    }


@pytest.mark.dist
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size, shares", WORLDS)
@pytest.mark.parametrize(
    "dims, settings",
    [
        (0, {}),
        (0, {"bias": False}),
        (1, {"affine": False}),
        (2, {"momentum": None}),
        (2, {"momentum": 0.3, "eps": 1e-3}),
    ],
)
def test_sync_batchnorm_equals_batch_norm_of_the_whole_batch(size, shares, dims, settings, dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (sum(shares), 5, *(3, 4)[:dims])
    x = (torch.randn(shape, generator=generator) + OFFSET).to(dtype)
    weights = torch.randn(shape, generator=generator).to(dtype)
    ranks = gloo.run(_batch_norm, size, dims, settings, x, weights, shares)

    layer = _norm(dims, torch.float64, **settings)  # the truth
    whole = x.double().requires_grad_()
    outputs = [layer(whole * factor) for factor in (1.0, 0.5)]
    sum((out * weights).sum() for out in outputs).backward()
    # Numbers of the size of the offset are rounded a few times; the standard deviation is 1, or less where a channel
    # has few values. Sums of squares would round the square of the offset: 1000 times as much.
    bound, exact = (30 * OFFSET * torch.finfo(each).eps for each in (dtype, torch.float64))
    for index, out in enumerate(outputs):
        assert relative(torch.cat([part["out"][index] for part in ranks]).double(), out.detach()) < bound
    assert relative(torch.cat([part["input"] for part in ranks]).double(), whole.grad) < bound
    for index, parameter in enumerate(layer.parameters()):
        assert relative(sum(part["parameters"][index] for part in ranks).double(), parameter.grad) < bound
    for name, value in layer.state_dict().items():
        for part in ranks:
            # Statistics are float64 until they are stored; then some roundings each.
            assert relative(part["state"][name].double(), value.double()) < exact + 10 * torch.finfo(dtype).eps, name
    evaluated = layer.eval()(whole).detach()
    assert relative(torch.cat([part["eval"] for part in ranks]).double(), evaluated) < bound


def _half(world: World) -> tuple[Tensor, Tensor, Tensor]:
    layer = convert_sync_batchnorm(_norm(2), world)
    x = images(6).expand(-1, 5, -1, -1).bfloat16().chunk(world.size)[world.rank].clone().requires_grad_()
    out = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16
    return out.detach(), x.grad, layer.running_mean


@pytest.mark.dist
def test_sync_batchnorm_in_bfloat16_keeps_statistics_in_float32():
    ranks = gloo.run(_half, 2)
    out, _, running_mean = _half(World())
    # Values that agree to the last digits of float32 round to the same bfloat16 or to its neighbour.
    assert relative(torch.cat([part[0] for part in ranks]).float(), out.float()) < 2 * torch.finfo(torch.bfloat16).eps
    # A sum of n positive numbers is off by n roundings at most.
    count = 6 * 8 * 8
    assert all(relative(part[2], running_mean) < count * torch.finfo(torch.float32).eps for part in ranks)


def _one_value(world: World) -> str:
    layer = convert_sync_batchnorm(nn.BatchNorm1d(2), world)
    try:
        layer(torch.zeros(1 - world.rank, 2))
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.dist
def test_sync_batchnorm_refuses_one_value_on_every_rank():
    assert all("found 1" in text for text in gloo.run(_one_value, 2))


def _untracked(world: World) -> bool:
    layer = convert_sync_batchnorm(nn.BatchNorm1d(2), world)
    layer.track_running_stats = False
    layer(torch.randn(3, 2))
    return torch.equal(layer.running_mean, torch.zeros(2)) and int(layer.num_batches_tracked) == 0


@pytest.mark.dist
def test_sync_batchnorm_does_not_update_untracked_statistics():
    assert gloo.run(_untracked, 2) == [True, True]


# -- training ------------------------------------------------------------------------------------------------------


def _objective(local: Tensor, gathered: Tensor, offset: int) -> Tensor:
    """The loss of the local anchors against all samples over the number of all anchors, as in a training step."""
    local, gathered = (nn.functional.normalize(z, dim=1) for z in (local, gathered))
    scores = local @ gathered.T / 0.5
    hidden = torch.arange(len(local)) + offset
    scores = scores.scatter(1, hidden[:, None], -1e9)
    return (scores.logsumexp(1) - scores[torch.arange(len(local)), (hidden + 1) % len(gathered)]).sum() / len(gathered)


def _train(world: World, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    shape = Projector(hidden=32, dim=16)
    model = models.build({"name": "resnet_small", "widths": [8, 16]}, shape, in_channels=1, seed=3)
    network = nn.Sequential(model.encoder, model.projector).double()
    trained: nn.Module = network
    if world.size > 1:
        trained = DistributedDataParallel(convert_sync_batchnorm(network, world))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        local = batch.chunk(world.size)[world.rank]
        local_z = trained(local)
        loss = _objective(local_z, collectives.gather_with_grad(local_z, world), world.rank * len(local))
        optimizer.zero_grad()
        (loss * world.size).backward()
        optimizer.step()
        losses.append(float(collectives.all_reduce_sum(loss, world)))
    return losses, network.state_dict()


@pytest.mark.dist
def test_sync_batchnorm_training_on_several_workers_equals_one():
    """Ten steps do not amplify the rounding of float64 to 1e-9; in float32 there is no such bound."""
    losses, state = _train(World(), 10)
    for size in (2, 4):
        for rank_losses, rank_state in gloo.run(_train, size, 10):
            assert rank_losses == pytest.approx(losses, rel=1e-9)
            assert list(rank_state) == list(state)
            for name, value in state.items():
                assert relative(rank_state[name].double(), value.double()) < 1e-9, (size, name)
