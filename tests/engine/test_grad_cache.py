"""Chunks against the whole batch at once: features, gradients, running statistics, memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from functools import partial

import gloo
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.distributed.sync_batchnorm import convert_sync_batchnorm
from mbcl.engine.grad_cache import ChunkedEncoder, _Segment
from mbcl.errors import ConfigError
from mbcl.models import ENCODERS

TOLERANCE = 1e-9
"""In float64, on gradients of one batch: sums of some thousand numbers round by 1e-14."""
bf16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def loss_of(features: Tensor) -> Tensor:
    """Every sample against every other."""
    z = nn.functional.normalize(features, dim=1)
    return (z @ z.T / 0.5).logsumexp(1).mean() + features.square().mean()


# -- encoders ------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Three batch norms, two of them side by side, and an odd habit: the first thing it does works in place."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(2, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.activation = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        out = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        return self.activation(out + self.shortcut(x)).mean(dim=(2, 3))


class Chain(nn.Module):
    """Segments that are given."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def segments(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def conv(inputs: int, outputs: int, *rest: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), *rest)


def chain() -> Chain:
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 5))
    middle = conv(4, 4, nn.BatchNorm2d(4), nn.SiLU(inplace=True), bias=False)
    return Chain(conv(2, 4, nn.BatchNorm2d(4), nn.SiLU(inplace=True), bias=False), nn.SiLU(inplace=True), middle, head)


def no_batch_norm() -> nn.Module:
    return nn.Sequential(conv(2, 4, nn.GroupNorm(2, 4), nn.ReLU(inplace=True)), conv(4, 5), nn.Flatten())


def registered(name: str, **options) -> nn.Module:
    return ENCODERS[name](in_channels=2, **options)


ENCODERS_UNDER_TEST = {
    "resnet_small": partial(registered, "resnet_small", widths=(8, 16)),
    "resnet18": partial(registered, "resnet18", stem="small"),
    "branches": Branches,
    "chain": chain,
    "no_batch_norm": no_batch_norm,
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """An encoder in training mode whose batch norms have lost their ones and zeros."""
    torch.manual_seed(seed)
    encoder = ENCODERS_UNDER_TEST[name]()
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return encoder.to(dtype)


def batch(num: int, dtype: torch.dtype = torch.float64, size: int = 6) -> Tensor:
    return torch.randn(num, 2, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype) + 1


# -- the comparison ------------------------------------------------------------------------------------------------


def whole(encoder: nn.Module, x: Tensor, autocast=torch.enable_grad) -> Tensor:
    with autocast():
        features = encoder(x.clone())
    loss_of(features.float() if features.dtype == torch.bfloat16 else features).backward()
    return features.detach()


def chunked(encoder: nn.Module, chunks: Sequence[Tensor], **options) -> Tensor:
    worker = ChunkedEncoder(encoder, World(), **options)
    parts = worker.forward(chunks)
    assert not any(part.requires_grad for part in parts)
    features = torch.cat(parts).requires_grad_()
    loss_of(features.float() if features.dtype == torch.bfloat16 else features).backward()
    worker.backward(features.grad.split([len(part) for part in parts]))
    return features.detach()


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    for (name, mine), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < TOLERANCE, name
    for (name, mine), theirs in zip(found.named_buffers(), expected.buffers(), strict=True):
        assert relative(mine, theirs) < TOLERANCE, name


SIZES = ([12], [3, 3, 3, 3], [1, 7, 4])


@pytest.mark.parametrize(
    "name, sizes",
    [(name, sizes) for name in ENCODERS_UNDER_TEST for sizes in (SIZES[-1:] if name == "resnet18" else SIZES)],
    ids=str,
)
def test_chunks_equal_the_whole_batch(name, sizes):
    expected = build(name)
    found = copy.deepcopy(expected)
    x = batch(12)
    kept = x.clone()
    features = whole(expected, x)
    assert relative(chunked(found, x.split(sizes)), features) < TOLERANCE
    assert_equal(found, expected)
    assert torch.equal(x, kept)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_any_chunk_sizes_give_the_gradient_of_the_whole(sizes, seed):
    expected = build("branches", seed=seed)
    found = copy.deepcopy(expected)
    x = batch(sum(sizes))
    assert relative(chunked(found, x.split(sizes)), whole(expected, x)) < TOLERANCE
    assert_equal(found, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}]
    + [{"bias": False}],
    ids=str,
)
def test_every_setting_of_batch_norm(options):
    norm = nn.BatchNorm2d(4, **options)
    expected = nn.Sequential(conv(2, 4, norm, bias=False), nn.SiLU(), conv(4, 3), nn.Flatten()).double()
    found = copy.deepcopy(expected)
    for factor in (1.0, 0.5):  # twice: running statistics are averaged, gradients add up
        x = batch(8) * factor
        assert relative(chunked(found, x.split(3)), whole(expected, x)) < TOLERANCE
    assert_equal(found, expected)


def test_gradients_add_up_until_they_are_cleared():
    once, twice = build("chain"), build("chain")
    chunked(once, batch(8).split(4))
    for _ in range(2):  # the same gradient again: batch norm's outputs do not depend on its running statistics
        chunked(twice, batch(8).split(4))
    for mine, theirs in zip(twice.parameters(), once.parameters(), strict=True):
        assert relative(mine.grad, 2 * theirs.grad) < 1e-12


def test_batch_norm_in_evaluation_mode_is_left_alone():
    expected = build("branches")
    expected(batch(8))
    expected.bn1.eval()
    found = copy.deepcopy(expected)
    assert relative(chunked(found, batch(8).split(3)), whole(expected, batch(8))) < TOLERANCE
    assert_equal(found, expected)
    assert int(found.bn1.num_batches_tracked) == 1
    assert int(found.bn2.num_batches_tracked) == 2


def test_statistics_of_values_far_from_zero():
    """Sums of squares would lose all digits of the variance, which is 1 beside squares of 10^8."""
    expected = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).float()
    found = copy.deepcopy(expected)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    features = whole(expected.double(), x.double())
    # The normalisation multiplies and subtracts numbers of 10^4, each of which float32 rounds by up to 2^-11.
    assert relative(chunked(found, x.split(5)).double(), features) < 20 * 2**-11
    # The variance itself is float64 until it is stored: three roundings.
    assert relative(found[0].running_var.double(), expected[0].running_var) < 4 * 2**-24


def test_a_segment_gives_the_gradient_of_its_input():
    module = build("branches")
    x, weights = batch(8), torch.randn(8, 6, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (module(leaf.clone()) * weights).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    segment = _Segment(module, list(x.split(3)), World(), torch.enable_grad)
    segment.forward()
    found = segment.backward(list(weights.split(3)), needs_input=True)
    assert relative(torch.cat(found), leaf.grad) < TOLERANCE
    assert all(relative(p.grad, e) < TOLERANCE for p, e in zip(module.parameters(), expected, strict=True))


def test_frozen_parameters_get_no_gradient_and_the_others_the_right_one():
    expected = build("chain")
    expected.parts[0].requires_grad_(False)
    expected.parts[2].requires_grad_(False)
    found = copy.deepcopy(expected)
    whole(expected, batch(8))
    chunked(found, batch(8).split(3))
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or relative(mine.grad, theirs.grad) < TOLERANCE


# -- half precision, memory ----------------------------------------------------------------------------


def distance(encoder: nn.Module, features: Tensor, truth: nn.Module, true_features: Tensor) -> float:
    """The largest of features and gradients, from those in float64."""
    errors = [relative(features.double(), true_features)]
    for mine, theirs in zip(encoder.parameters(), truth.parameters(), strict=True):
        errors.append(relative(mine.grad.double(), theirs.grad))
    return max(errors)


@pytest.mark.parametrize("autocast", [None, bf16], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["resnet_small", "branches"])
def test_chunks_round_no_more_than_the_whole_batch(name, autocast):
    """Both are the largest of thousands of rounding errors of one size, so within a small factor of each other."""
    options, of_the_whole, of_chunks = {"autocast": autocast} if autocast else {}, [], []
    x = batch(16, torch.float32)
    for seed in range(4):
        plain = build(name, torch.float32, seed)
        found, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
        exact = whole(truth, x.double())
        of_the_whole.append(distance(plain, whole(plain, x, **options), truth, exact))
        features = chunked(found, x.split(5), **options)
        of_chunks.append(distance(found, features, truth, exact))
        assert features.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert {parameter.grad.dtype for parameter in found.parameters()} == {torch.float32}
    assert 0 < max(of_chunks) < 10 * max(of_the_whole)


class Saved:
    """How many bytes autograd holds at once, and at most, besides the parameters, which are there anyway."""

    def __init__(self, encoder: nn.Module) -> None:
        self.now = self.peak = 0
        self.parameters = {parameter.data_ptr() for parameter in encoder.parameters()}

    def _change(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        class Box:
            def __init__(self, x: Tensor) -> None:
                self.x = x.detach()  # an output that is saved would keep its own graph alive

        def pack(x: Tensor) -> Box:
            box = Box(x)
            if x.data_ptr() not in self.parameters:
                self._change(x.nbytes)
                weakref.finalize(box, self._change, -x.nbytes)
            return box

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.x)


@pytest.mark.parametrize("name, factor", [("resnet_small", 3), ("resnet18", 4), ("no_batch_norm", 7)])
def test_memory(name, factor):
    """With the segments' inputs, which are kept; eight chunks without batch norm take hardly more than an eighth."""
    encoder, x = build(name, torch.float32), batch(32, torch.float32, size=16)
    if name == "no_batch_norm":
        x = batch(32, torch.float32)
    at_once, by_chunk = Saved(encoder), Saved(encoder)
    with at_once.counting():
        whole(encoder, x)
    worker = ChunkedEncoder(encoder, World())
    with by_chunk.counting():
        features = worker.forward(x.split(4))
        kept = sum(y.nbytes for segment in worker._segments[1:] for y in segment.inputs)
        worker.backward([torch.ones_like(part) for part in features])
    assert by_chunk.now == 0
    assert not worker._segments
    assert at_once.peak > factor * (by_chunk.peak + kept), (at_once.peak, by_chunk.peak, kept)


# -- what goes wrong -----------------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x).sin())


def assert_untouched(encoder: nn.Module) -> None:
    assert not any("forward" in vars(module) for module in encoder.modules())


def test_a_batch_norm_that_runs_twice_is_refused():
    encoder = Shared()
    with pytest.raises(ConfigError, match="batch norm 'norm' runs twice"):
        ChunkedEncoder(encoder, World()).forward([torch.randn(4, 3)])
    assert_untouched(encoder)


def test_a_batch_norm_in_two_segments_is_as_torch_has_it():
    norm = nn.BatchNorm1d(3).double()
    expected = nn.Sequential(norm, nn.Tanh(), norm, nn.Linear(3, 2, dtype=torch.float64))
    found = copy.deepcopy(expected)
    x = torch.randn(8, 3, dtype=torch.float64)
    features = whole(expected, x)
    assert relative(chunked(Chain(*found), x.split(3)), features) < TOLERANCE
    assert_equal(found, expected)


def test_errors_leave_the_encoder_as_it_was():
    encoder = build("chain")
    worker = ChunkedEncoder(encoder, World())
    with pytest.raises(ValueError, match="expected 4D input"):
        worker.forward([torch.zeros(2, 2, 6, dtype=torch.float64)])
    assert_untouched(encoder)
    with pytest.raises(AssertionError, match="follows a forward"):
        worker.backward([torch.zeros(2, 5)])
    features = worker.forward(batch(4).split(2))
    assert_untouched(encoder)
    with pytest.raises(AssertionError, match="for each chunk"):
        worker.backward(features[:1])
    with pytest.raises(RuntimeError, match="[Mm]ismatch"):
        worker.backward([part[:1] for part in features])
    assert_untouched(encoder)
    with pytest.raises(ValueError, match="found 1"):
        ChunkedEncoder(nn.BatchNorm1d(3), World()).forward([torch.zeros(1, 3)])


# -- ranks ---------------------------------------------------------------------------------------------------------


def _rank(world: World, name: str, synchronised: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    encoder = build(name)
    if synchronised:
        encoder = convert_sync_batchnorm(encoder, world)
    x, weights = batch(16), torch.linspace(-1, 2, 16, dtype=torch.float64)[:, None]
    mine, scale = x.chunk(world.size)[world.rank], weights.chunk(world.size)[world.rank]
    worker = ChunkedEncoder(encoder, world)
    sizes = [1, len(mine) - 1] if world.rank else [2, len(mine) - 2]
    features = worker.forward(mine.split(sizes))
    worker.backward([(part * w).cos() * w for part, w in zip(features, scale.split(sizes), strict=True)])
    collectives.sum_gradients(encoder.parameters(), world)
    return torch.cat(features), [p.grad for p in encoder.parameters()], list(encoder.buffers())


@pytest.mark.dist
@pytest.mark.parametrize(
    "name, synchronised, size",
    [("resnet_small", True, 2), ("resnet18", False, 2), ("branches", True, 4), ("chain", False, 4)]
    + [("no_batch_norm", False, 2), ("no_batch_norm", False, 4)],
)
def test_ranks_with_chunks_equal_one_process_with_the_whole_batch(name, synchronised, size):
    expected = build(name)
    weights = torch.linspace(-1, 2, 16, dtype=torch.float64)[:, None]
    features = expected(batch(16))
    (features * weights).sin().sum().backward()
    answers = gloo.run(_rank, size, name, synchronised)
    assert relative(torch.cat([own for own, _, _ in answers]), features) < TOLERANCE
    for _, gradients, buffers in answers:
        for mine, theirs in zip(gradients, expected.parameters(), strict=True):
            assert relative(mine, theirs.grad) < TOLERANCE
        for mine, theirs in zip(buffers, expected.buffers(), strict=True):
            assert relative(mine, theirs) < TOLERANCE
