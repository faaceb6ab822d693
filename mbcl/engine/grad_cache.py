r"""GradCache with batch norm: exact gradients of a batch that does not fit into memory, computed chunk by chunk.

A contrastive loss couples all samples, so chunks cannot each have a loss of their own. Gao et al. 2021 ("Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983, section 3.2) cut the chain rule at the
features f: compute all f without graphs, then the loss L and g = dL/df, then each chunk again with its graph, adding
up (df/dw)^T g. That is exact if only the loss couples samples. Batch norm couples them in the encoder, too:

    y = w (x - mean) / sqrt(var + eps) + b,   mean = sum x / n,   var = sum (x - mean)^2 / n,

with sums over all n values that a channel has in the batch: in all chunks, on all ranks. The same cut applies there.
Call S_j = (mean, var) of the j-th batch norm in order of execution, whose input is x_j.

Forward: S_1 needs the chunks up to the first batch norm; S_j needs them up to the j-th, with S_1 ... S_{j-1} given.
Given all S, samples are independent. That is one pass over the chunks per batch norm, and one for the outputs y.

Backward: the whole derivative of L by S_j is its direct effect on y, the later S given, and its effect through them:

    S̄_j = d/dS_j [ <y, ȳ> + sum_{k>j} ( <mean̄_k, sum x_k / n_k> + <var̄_k, sum (x_k - mean_k)^2 / n_k> ) ]

where bars are derivatives of L. (In the last term mean_k is a constant: its derivative, sum (x_k - mean_k), is zero.)
One pass per batch norm, from the last to the first, and one for the parameters, in which the bracket has all k.

An encoder of m batch norms would need 2m + 2 passes. An encoder that offers ``segments()`` is also cut between them:
as in gradient checkpointing the inputs of each segment are stored, and a segment of m batch norms costs 2m + 2 passes
of that segment alone. A segment without batch norm costs one pass forward and one backward.

Letters: B samples of a chunk, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.distributed.sync_batchnorm import merge_moments, moments, precise, update_running
from mbcl.errors import ConfigError
from mbcl.models.segments import segments_of

Autocast = Callable[[], AbstractContextManager[object]]


class ChunkedEncoder:
    """GradCache for an encoder: the features of a whole batch without graphs, then its gradient, chunk by chunk.

    Batch norms of every class use the statistics of the whole batch, over chunks and ranks, and update their running
    statistics once per :meth:`forward`.

    All ranks pass the same number of chunks, of any sizes. Chunks are recomputed several times, so the encoder must
    neither draw random numbers (encoders have no dropout here) nor change other state in its forward pass.

    Args:
        encoder: not wrapped in DDP; cut into the segments of :func:`mbcl.models.segments.segments_of`.
        world: the ranks that hold the batch.
        autocast: factory of the context in which the encoder computes; callers must be outside of autocast.
    """

    def __init__(self, encoder: nn.Module, world: World, *, autocast: Autocast = nullcontext) -> None:
        self.encoder = encoder
        self.world = world
        self.autocast = autocast
        self._segments: list[_Segment] = []

    @torch.no_grad()
    def forward(self, chunks: Sequence[Tensor]) -> list[Tensor]:
        """Compute the features of this rank's chunks; stores the segments' inputs until backward or the next forward.

        Args:
            chunks: (B, ...) each.

        Returns:
            (B, F) for each chunk, without graph.

        Raises:
            ConfigError: if a batch norm runs twice within one segment.
            ValueError: if a batch norm has fewer than two values per channel in the whole batch.
        """
        self._segments = []  # free the old inputs before new ones are allocated
        segments: list[_Segment] = []
        outputs = [chunk.detach() for chunk in chunks]
        for module in segments_of(self.encoder):
            segment = _Segment(module, outputs, self.world, self.autocast)
            outputs = segment.forward()
            segments.append(segment)
        self._segments = segments
        return outputs

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add this rank's samples' contributions to ``.grad`` of the encoder's parameters; the caller sums over ranks.

        Args:
            gradients: (B, F) for each chunk of the last forward: of the sum of all ranks' losses by the features. The
                parameters must be unchanged since that forward.
        """
        assert self._segments, "backward follows a forward, once"
        assert len(gradients) == len(self._segments[0].inputs), "a gradient for each chunk"
        upstream = [gradient.detach() for gradient in gradients]
        while self._segments:
            segment = self._segments.pop()  # frees the segment's inputs after its backward
            upstream = segment.backward(upstream, needs_input=bool(self._segments))


# -- one segment -------------------------------------------------------------------------------------------------------


@dataclass
class _Statistics:
    """A batch norm with S = (mean, var) of its inputs in the whole batch, and later S̄; (C,) each, float32 or better."""

    norm: _BatchNorm
    mean: Tensor
    var: Tensor
    count: int
    mean_bar: Tensor | None = None
    var_bar: Tensor | None = None

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of <mean̄, sum x / n> + <var̄, sum (x - mean)^2 / n> by ``x``."""
        assert self.mean_bar is not None
        assert self.var_bar is not None
        view = (1, -1, *(1 for _ in x.shape[2:]))
        centred = x.detach().to(self.mean.dtype) - self.mean.view(view)
        slope, offset = 2 * self.var_bar / self.count, self.mean_bar / self.count
        return centred.mul_(slope.view(view)).add_(offset.view(view)).to(x.dtype)


class _StopForward(Exception):
    """Stops a forward pass at the batch norm whose statistics are being collected."""


@dataclass
class _Segment:
    """A segment of the encoder: its module, its inputs, and its batch norms' statistics in order of execution."""

    module: nn.Module
    inputs: list[Tensor]
    world: World
    autocast: Autocast
    statistics: list[_Statistics] = field(default_factory=list)

    def __post_init__(self) -> None:
        norms = {part: name for name, part in self.module.named_modules() if isinstance(part, _BatchNorm)}
        # By torch's rule, these normalise with the statistics of their batch.
        self._norms = {norm: name for norm, name in norms.items() if norm.training or norm.running_mean is None}

    def forward(self) -> list[Tensor]:
        """Collect the statistics of all batch norms, then return the outputs of all chunks, without graphs."""
        while True:
            parts, outputs = [], []
            for x in self.inputs:
                output, norms = self._run(x, [(s.mean, s.var) for s in self.statistics])
                if output is None:
                    parts.append(moments(norms[-1][1]))
                    norm, dtype = norms[-1][0], precise(norms[-1][1])
                else:
                    outputs.append(output)
            if not parts:
                return outputs
            assert not outputs, "all chunks pass the same batch norms"
            mean, var, count = merge_moments(collectives.all_gather_stack(torch.stack(parts), self.world).flatten(0, 1))
            update_running(norm, mean, var, count)
            self.statistics.append(_Statistics(norm, mean.to(dtype), var.to(dtype), count))

    def backward(self, gradients: list[Tensor], *, needs_input: bool) -> list[Tensor]:
        """Accumulate the parameters' gradients from those of the outputs; return those of the inputs, if needed."""
        for index in reversed(range(len(self.statistics))):
            self._adjoint(index, gradients)
        given = [(s.mean, s.var) for s in self.statistics]
        input_gradients = []
        for x, gradient in zip(self.inputs, gradients, strict=True):
            leaf = x.detach().requires_grad_(needs_input)
            tensors, tensor_gradients = self._tensors_and_gradients(leaf, given, gradient, after=-1)
            if tensors:
                torch.autograd.backward(tensors, tensor_gradients)
            if needs_input:
                input_gradients.append(torch.zeros_like(x) if leaf.grad is None else leaf.grad)
        return input_gradients

    def _adjoint(self, index: int, gradients: list[Tensor]) -> None:
        """Compute S̄ of one batch norm, given the S̄ of all later ones."""
        stats = self.statistics[index]
        leaves = [stats.mean.clone().requires_grad_(), stats.var.clone().requires_grad_()]
        given = [(s.mean, s.var) for s in self.statistics]
        given[index] = (leaves[0], leaves[1])
        total = torch.zeros(2, len(stats.mean), dtype=torch.float64, device=stats.mean.device)
        for x, gradient in zip(self.inputs, gradients, strict=True):
            tensors, tensor_gradients = self._tensors_and_gradients(x, given, gradient, after=index)
            # None if the output does not depend on this batch norm, or another one cancels its mean or variance.
            partials = (
                torch.autograd.grad(tensors, leaves, tensor_gradients, allow_unused=True) if tensors else (None, None)
            )
            for row, part in zip(total, partials, strict=True):
                if part is not None:
                    row += part
        stats.mean_bar, stats.var_bar = collectives.all_reduce_sum(total, self.world).to(stats.mean.dtype)

    def _tensors_and_gradients(
        self, x: Tensor, given: list[tuple[Tensor, Tensor]], gradient: Tensor, *, after: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run a chunk with its graph; return y and x_k, k > ``after``, and the bracket's gradient by each of them."""
        with torch.enable_grad():
            output, norms = self._run(x, given)
        assert output is not None
        pairs = [(output, gradient.to(output.dtype))]
        for stats, (_, norm_input) in list(zip(self.statistics, norms, strict=True))[after + 1 :]:
            if norm_input.requires_grad:
                pairs.append((norm_input, stats.gradient(norm_input)))
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        return [tensor for tensor, _ in pairs], [gradient for _, gradient in pairs]

    def _run(
        self, x: Tensor, given: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor | None, list[tuple[_BatchNorm, Tensor]]]:
        """Run the module on one chunk, up to the first batch norm without given statistics.

        Returns:
            The output, or None if a batch norm has no statistics yet; and the batch norms that ran, with their inputs.
        """
        calls: list[tuple[_BatchNorm, Tensor]] = []

        def forward(norm: _BatchNorm, x: Tensor) -> Tensor:
            norm._check_input_dim(x)
            if any(norm is other for other, _ in calls):
                raise ConfigError(
                    f"cached accumulation: batch norm {self._norms[norm]!r} runs twice in one pass; each may run once"
                )
            calls.append((norm, x))
            if len(calls) > len(given):
                raise _StopForward
            return _normalise(norm, x, *given[len(calls) - 1])

        with self.autocast(), _replaced(list(self._norms), forward):
            try:
                # A module may work in place, but the stored input is needed again by the next pass.
                return self.module(x.clone()), calls
            except _StopForward:
                return None, calls


# -- batch norm with given statistics ----------------------------------------------------------------------------------


def _normalise(norm: _BatchNorm, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Compute (x - mean) / sqrt(var + eps) · weight + bias in the dtype of ``x``, differentiable by all of them.

    It uses torch's kernel, which treats the statistics as constants. So their derivatives are routed through scale and
    shift, which have the values of weight and bias:
    d scale = -weight d var / (2 (var + eps)), d shift = -weight d mean / sqrt(var + eps).
    """
    fixed_mean, fixed_var = mean.detach(), var.detach()
    scale = torch.ones_like(fixed_mean) if norm.weight is None else norm.weight.to(mean.dtype)
    shift = torch.zeros_like(fixed_mean) if norm.bias is None else norm.bias.to(mean.dtype)
    if mean.requires_grad:
        shift = shift + scale.detach() * (fixed_mean - mean) * torch.rsqrt(fixed_var + norm.eps)
        scale = scale * torch.sqrt((fixed_var + norm.eps) / (var + norm.eps))
    return F.batch_norm(x, fixed_mean, fixed_var, scale, shift, training=False, eps=norm.eps)


@contextmanager
def _replaced(norms: Sequence[_BatchNorm], forward: Callable[[_BatchNorm, Tensor], Tensor]) -> Iterator[None]:
    """Patch the forward of batch norms temporarily: an instance attribute shadows the method of the class."""
    try:
        for norm in norms:
            norm.forward = partial(forward, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
