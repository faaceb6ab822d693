"""Gradient caching in chunks against the whole batch: features, gradients, running statistics, memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from functools import partial

import gloo
import pytest
import torch
from closeness import relative
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


def loss_of(features: Tensor) -> Tensor:
    """Every sample against every other."""
    z = nn.functional.normalize(features, dim=1)
    return (z @ z.T / 0.5).logsumexp(1).mean() + features.square().mean()


# -- encoders ------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Three batch norms, two of them in parallel branches; the first operation works in place."""

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
    """An encoder that names its segments."""

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
    """An encoder in training mode whose batch norms have random weights and biases."""
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


def run_whole(encoder: nn.Module, x: Tensor, autocast=torch.enable_grad) -> Tensor:
    with autocast():
        features = encoder(x.clone())
    loss_of(features.float() if features.dtype == torch.bfloat16 else features).backward()
    return features.detach()


def run_chunked(encoder: nn.Module, chunks: Sequence[Tensor], **options) -> Tensor:
    worker = ChunkedEncoder(encoder, World(), **options)
    parts = worker.forward(chunks)
    assert not any(part.requires_grad for part in parts)
    features = torch.cat(parts).requires_grad_()
    loss_of(features.float() if features.dtype == torch.bfloat16 else features).backward()
    worker.backward(features.grad.split([len(part) for part in parts]))
    return features.detach()


def assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), expected_tensor in zip(actual.named_parameters(), expected.parameters(), strict=True):
        assert relative(tensor.grad, expected_tensor.grad) < TOLERANCE, name
    for (name, tensor), expected_tensor in zip(actual.named_buffers(), expected.buffers(), strict=True):
        assert relative(tensor, expected_tensor) < TOLERANCE, name


SIZES = ([12], [3, 3, 3, 3], [1, 7, 4])


@pytest.mark.parametrize(
    "name, sizes",
    [(name, sizes) for name in ENCODERS_UNDER_TEST for sizes in (SIZES[-1:] if name == "resnet18" else SIZES)],
    ids=str,
)
def test_chunked_encoder_equals_the_whole_batch(name, sizes):
    expected = build(name)
    actual = copy.deepcopy(expected)
    x = batch(12)
    original = x.clone()
    features = run_whole(expected, x)
    assert relative(run_chunked(actual, x.split(sizes)), features) < TOLERANCE
    assert_equal(actual, expected)
    assert torch.equal(x, original)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_chunked_encoder_equals_the_whole_batch_for_any_chunk_sizes(sizes, seed):
    expected = build("branches", seed=seed)
    actual = copy.deepcopy(expected)
    x = batch(sum(sizes))
    assert relative(run_chunked(actual, x.split(sizes)), run_whole(expected, x)) < TOLERANCE
    assert_equal(actual, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}]
    + [{"bias": False}],
    ids=str,
)
def test_chunked_encoder_supports_every_batch_norm_setting(options):
    norm = nn.BatchNorm2d(4, **options)
    expected = nn.Sequential(conv(2, 4, norm, bias=False), nn.SiLU(), conv(4, 3), nn.Flatten()).double()
    actual = copy.deepcopy(expected)
    for factor in (1.0, 0.5):  # two passes: running statistics are averaged, gradients accumulate
        x = batch(8) * factor
        assert relative(run_chunked(actual, x.split(3)), run_whole(expected, x)) < TOLERANCE
    assert_equal(actual, expected)


def test_chunked_encoder_accumulates_gradients_until_cleared():
    once, twice = build("chain"), build("chain")
    run_chunked(once, batch(8).split(4))
    for _ in range(2):  # the same gradient again: batch norm's outputs do not depend on its running statistics
        run_chunked(twice, batch(8).split(4))
    for parameter, expected_parameter in zip(twice.parameters(), once.parameters(), strict=True):
        assert relative(parameter.grad, 2 * expected_parameter.grad) < 1e-12


def test_chunked_encoder_leaves_batch_norm_in_evaluation_mode():
    expected = build("branches")
    expected(batch(8))
    expected.bn1.eval()
    actual = copy.deepcopy(expected)
    assert relative(run_chunked(actual, batch(8).split(3)), run_whole(expected, batch(8))) < TOLERANCE
    assert_equal(actual, expected)
    assert int(actual.bn1.num_batches_tracked) == 1
    assert int(actual.bn2.num_batches_tracked) == 2


def test_chunked_encoder_variance_is_accurate_far_from_zero():
    """The variance is 1 and the squares are 10^8: sums of squares in float32 would lose all its digits."""
    expected = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).float()
    actual = copy.deepcopy(expected)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    features = run_whole(expected.double(), x.double())
    # The normalisation multiplies and subtracts numbers of 10^4, each of which float32 rounds by up to 2^-11.
    assert relative(run_chunked(actual, x.split(5)).double(), features) < 20 * 2**-11
    # The variance itself is float64 until it is stored: three roundings.
    assert relative(actual[0].running_var.double(), expected[0].running_var) < 4 * 2**-24


def test_segment_backward_returns_the_input_gradient():
    module = build("branches")
    x, weights = batch(8), torch.randn(8, 6, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (module(leaf.clone()) * weights).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    segment = _Segment(module, list(x.split(3)), World(), torch.enable_grad)
    segment.forward()
    gradients = segment.backward(list(weights.split(3)), needs_input=True)
    assert relative(torch.cat(gradients), leaf.grad) < TOLERANCE
    assert all(relative(p.grad, e) < TOLERANCE for p, e in zip(module.parameters(), expected, strict=True))


def test_chunked_encoder_gives_frozen_parameters_no_gradient():
    expected = build("chain")
    expected.parts[0].requires_grad_(False)
    expected.parts[2].requires_grad_(False)
    actual = copy.deepcopy(expected)
    run_whole(expected, batch(8))
    run_chunked(actual, batch(8).split(3))
    for parameter, expected_parameter in zip(actual.parameters(), expected.parameters(), strict=True):
        assert (parameter.grad is None) == (expected_parameter.grad is None)
        assert parameter.grad is None or relative(parameter.grad, expected_parameter.grad) < TOLERANCE


# -- half precision, memory ----------------------------------------------------------------------------


def distance(encoder: nn.Module, features: Tensor, truth: nn.Module, true_features: Tensor) -> float:
    """The largest relative error of features and gradients against float64."""
    errors = [relative(features.double(), true_features)]
    for parameter, true_parameter in zip(encoder.parameters(), truth.parameters(), strict=True):
        errors.append(relative(parameter.grad.double(), true_parameter.grad))
    return max(errors)


@pytest.mark.parametrize("autocast", [None, bf16], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["resnet_small", "branches"])
def test_chunked_encoder_rounds_no_more_than_the_whole_batch(name, autocast):
    """Both are the maximum of thousands of rounding errors of one size, so they differ by a small factor only."""
    options, of_the_whole, of_chunks = {"autocast": autocast} if autocast else {}, [], []
    x = batch(16, torch.float32)
    for seed in range(4):
        plain = build(name, torch.float32, seed)
        in_chunks, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
        exact = run_whole(truth, x.double())
        of_the_whole.append(distance(plain, run_whole(plain, x, **options), truth, exact))
        features = run_chunked(in_chunks, x.split(5), **options)
        of_chunks.append(distance(in_chunks, features, truth, exact))
        assert features.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert {parameter.grad.dtype for parameter in in_chunks.parameters()} == {torch.float32}
    assert 0 < max(of_chunks) < 10 * max(of_the_whole)


class Saved:
    """Counts the bytes that autograd saves, now and at the peak, without the parameters."""

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
def test_chunked_encoder_saves_less_memory_than_the_whole_batch(name, factor):
    """The inputs of the segments count, too. Eight chunks without batch norm save about an eighth of the memory."""
    encoder, x = build(name, torch.float32), batch(32, torch.float32, size=16)
    if name == "no_batch_norm":
        x = batch(32, torch.float32)
    at_once, by_chunk = Saved(encoder), Saved(encoder)
    with at_once.counting():
        run_whole(encoder, x)
    worker = ChunkedEncoder(encoder, World())
    with by_chunk.counting():
        features = worker.forward(x.split(4))
        input_bytes = sum(y.nbytes for segment in worker._segments[1:] for y in segment.inputs)
        worker.backward([torch.ones_like(part) for part in features])
    assert by_chunk.now == 0
    assert not worker._segments
    assert at_once.peak > factor * (by_chunk.peak + input_bytes), (at_once.peak, by_chunk.peak, input_bytes)


# -- errors -------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x).sin())


def assert_untouched(encoder: nn.Module) -> None:
    assert not any("forward" in vars(module) for module in encoder.modules())


def test_chunked_encoder_refuses_a_batch_norm_that_runs_twice():
    encoder = Shared()
    with pytest.raises(ConfigError, match="batch norm 'norm' runs twice"):
        ChunkedEncoder(encoder, World()).forward([torch.randn(4, 3)])
    assert_untouched(encoder)


def test_chunked_encoder_supports_one_batch_norm_in_two_segments():
    norm = nn.BatchNorm1d(3).double()
    expected = nn.Sequential(norm, nn.Tanh(), norm, nn.Linear(3, 2, dtype=torch.float64))
    actual = copy.deepcopy(expected)
    x = torch.randn(8, 3, dtype=torch.float64)
    features = run_whole(expected, x)
    assert relative(run_chunked(Chain(*actual), x.split(3)), features) < TOLERANCE
    assert_equal(actual, expected)


def test_chunked_encoder_errors_leave_the_encoder_unpatched():
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
    local_x, local_weights = x.chunk(world.size)[world.rank], weights.chunk(world.size)[world.rank]
    worker = ChunkedEncoder(encoder, world)
    sizes = [1, len(local_x) - 1] if world.rank else [2, len(local_x) - 2]
    features = worker.forward(local_x.split(sizes))
    worker.backward([(part * w).cos() * w for part, w in zip(features, local_weights.split(sizes), strict=True)])
    collectives.sum_gradients(encoder.parameters(), world)
    return torch.cat(features), [p.grad for p in encoder.parameters()], list(encoder.buffers())


@pytest.mark.dist
@pytest.mark.parametrize(
    "name, synchronised, size",
    [("resnet_small", True, 2), ("resnet18", False, 2), ("branches", True, 4), ("chain", False, 4)]
    + [("no_batch_norm", False, 2), ("no_batch_norm", False, 4)],
)
def test_chunked_encoder_on_several_ranks_equals_one_process(name, synchronised, size):
    expected = build(name)
    weights = torch.linspace(-1, 2, 16, dtype=torch.float64)[:, None]
    features = expected(batch(16))
    (features * weights).sin().sum().backward()
    results = gloo.run(_rank, size, name, synchronised)
    assert relative(torch.cat([local_features for local_features, _, _ in results]), features) < TOLERANCE
    for _, gradients, buffers in results:
        for tensor, expected_tensor in zip(gradients, expected.parameters(), strict=True):
            assert relative(tensor, expected_tensor.grad) < TOLERANCE
        for tensor, expected_tensor in zip(buffers, expected.buffers(), strict=True):
            assert relative(tensor, expected_tensor) < TOLERANCE
