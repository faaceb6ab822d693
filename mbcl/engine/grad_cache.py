r"""An encoder's pass over a batch that does not fit into memory: chunk by chunk, and yet the gradient of the whole.

A contrastive loss couples all samples, so chunks cannot each have a loss of their own. Gao et al. 2021 ("Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983, section 3.2) cut the chain rule at the
features f: compute all f without graphs, then the loss L and g = dL/df, then each chunk again with its graph, adding
up (df/dw)^T g. That is exact if samples meet in the loss alone. Batch norm couples them in the encoder, too:

    y = w (x - mean) / sqrt(var + eps) + b,   mean = sum x / n,   var = sum (x - mean)^2 / n,

with sums over all n values that a channel has in the batch: in all chunks, on all ranks. The same cut heals that.
Call S_j = (mean, var) of the j-th batch norm in order of execution, whose input is x_j.

Forward: S_1 needs the chunks up to the first batch norm; S_j needs them up to the j-th, with S_1 ... S_{j-1} given.
With all S given no sample knows of another. That is one pass over the chunks a batch norm, and one for the outputs y.

Backward: the whole derivative of L by S_j is its direct effect on y, the later S given, and its effect through them:

    S̄_j = d/dS_j [ <y, ȳ> + sum_{k>j} ( <mean̄_k, sum x_k / n_k> + <var̄_k, sum (x_k - mean_k)^2 / n_k> ) ]

where bars are derivatives of L. (In the last term mean_k is a constant: its derivative, sum (x_k - mean_k), is zero.)
One pass a batch norm, from the last to the first, and one for the parameters, in which the bracket has all k.

An encoder of m batch norms would need 2m + 2 passes. An encoder that offers ``segments()`` is cut between them as well:
the inputs of each segment are kept, as gradient checkpointing keeps them, and a segment of m batch norms costs 2m + 2
passes of its own. A segment without batch norm costs one pass forward and one backward.

Letters: B samples of a chunk, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
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
    """Features of a whole batch without graphs, then its gradient, chunk by chunk.

    Batch norms use the statistics of the whole batch, over chunks and ranks, whatever class they have, and update their
    running statistics once a :meth:`forward`.

    All ranks give the same number of chunks, of any sizes. Chunks are computed several times, so the encoder may
    neither draw random numbers (encoders have no dropout here) nor change other state while it computes.

    Args:
        encoder: not wrapped in DDP. It is cut where :func:`mbcl.models.segments.segments_of` says.
        world: the ranks that hold the batch.
        autocast: makes the context in which the encoder computes; callers must not be inside one themselves.
    """

    def __init__(self, encoder: nn.Module, world: World, *, autocast: Autocast = nullcontext) -> None:
        self.encoder = encoder
        self.world = world
        self.autocast = autocast
        self._segments: list[_Segment] = []

    @torch.no_grad()
    def forward(self, chunks: Sequence[Tensor]) -> list[Tensor]:
        """Features of this rank's chunks; what backward needs is kept until then, or until the next forward.

        Args:
            chunks: (B, ...) each.

        Returns:
            (B, F) for each chunk, without graph.

        Raises:
            ConfigError: if a batch norm runs twice within one segment.
            ValueError: if a batch norm has fewer than two values a channel in the whole batch.
        """
        self._segments = []  # free them before others are made
        done: list[_Segment] = []
        outputs = [chunk.detach() for chunk in chunks]
        for module in segments_of(self.encoder):
            segment = _Segment(module, outputs, self.world, self.autocast)
            outputs = segment.forward()
            done.append(segment)
        self._segments = done
        return outputs

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add this rank's samples' contributions to ``.grad`` of the encoder's parameters; the caller sums over ranks.

        Args:
            gradients: (B, F) for each chunk of the last forward: of the sum of all ranks' losses by the features. The
                parameters must be the ones of that forward still.
        """
        assert self._segments, "backward follows a forward, once"
        assert len(gradients) == len(self._segments[0].inputs), "a gradient for each chunk"
        flowing = [gradient.detach() for gradient in gradients]
        while self._segments:
            segment = self._segments.pop()  # and with it, when done, its inputs
            flowing = segment.backward(flowing, needs_input=bool(self._segments))


# -- one segment -------------------------------------------------------------------------------------------------------


@dataclass
class _Statistics:
    """A batch norm and S = (mean, var) of its inputs in the whole batch, then S̄; (C,) each, float32 or better."""

    norm: _BatchNorm
    mean: Tensor
    var: Tensor
    count: int
    mean_bar: Tensor | None = None
    var_bar: Tensor | None = None

    def gradient(self, x: Tensor) -> Tensor:
        """Of <mean̄, sum x / n> + <var̄, sum (x - mean)^2 / n> by ``x``."""
        assert self.mean_bar is not None
        assert self.var_bar is not None
        view = (1, -1, *(1 for _ in x.shape[2:]))
        centred = x.detach().to(self.mean.dtype) - self.mean.view(view)
        slope, offset = 2 * self.var_bar / self.count, self.mean_bar / self.count
        return centred.mul_(slope.view(view)).add_(offset.view(view)).to(x.dtype)


class _Reached(Exception):
    """A pass came to the batch norm whose statistics are being collected: there is no need to go on."""


class _Segment:
    """A module, its inputs and, in order of execution, the statistics of its batch norms."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], world: World, autocast: Autocast) -> None:
        self.module = module
        self.inputs = inputs
        self.world = world
        self.autocast = autocast
        self.statistics: list[_Statistics] = []
        self._norms = {part: name for name, part in module.named_modules() if _uses_batch(part)}

    def forward(self) -> list[Tensor]:
        """The outputs of all chunks, without graphs, after the statistics."""
        while True:
            parts, outputs = [], []
            for x in self.inputs:
                output, norms = self._run(x, [(s.mean, s.var) for s in self.statistics])
                if output is None:
                    parts.append(moments(norms[-1][1]))
                    reached, dtype = norms[-1][0], precise(norms[-1][1])
                else:
                    outputs.append(output)
            if not parts:
                return outputs
            assert not outputs, "all chunks pass the same batch norms"
            mean, var, count = merge_moments(collectives.all_gather_stack(torch.stack(parts), self.world).flatten(0, 1))
            update_running(reached, mean, var, count)
            self.statistics.append(_Statistics(reached, mean.to(dtype), var.to(dtype), count))

    def backward(self, gradients: list[Tensor], *, needs_input: bool) -> list[Tensor]:
        """Parameters' gradients from those of the outputs; returns those of the inputs, if they are needed."""
        for index in reversed(range(len(self.statistics))):
            self._adjoint(index, gradients)
        given = [(s.mean, s.var) for s in self.statistics]
        flowing = []
        for x, gradient in zip(self.inputs, gradients, strict=True):
            leaf = x.detach().requires_grad_(needs_input)
            ends, their_gradients = self._ends(leaf, given, gradient, after=-1)
            if ends:
                torch.autograd.backward(ends, their_gradients)
            if needs_input:
                flowing.append(torch.zeros_like(x) if leaf.grad is None else leaf.grad)
        return flowing

    def _adjoint(self, index: int, gradients: list[Tensor]) -> None:
        """S̄ of one batch norm, those of the later ones being known."""
        own = self.statistics[index]
        leaves = [own.mean.clone().requires_grad_(), own.var.clone().requires_grad_()]
        given = [(s.mean, s.var) for s in self.statistics]
        given[index] = (leaves[0], leaves[1])
        total = torch.zeros(2, len(own.mean), dtype=torch.float64, device=own.mean.device)
        for x, gradient in zip(self.inputs, gradients, strict=True):
            ends, their_gradients = self._ends(x, given, gradient, after=index)
            # None if the output does not depend on this batch norm, or another one hides its mean or variance.
            found = torch.autograd.grad(ends, leaves, their_gradients, allow_unused=True) if ends else (None, None)
            for row, part in zip(total, found, strict=True):
                if part is not None:
                    row += part
        own.mean_bar, own.var_bar = collectives.all_reduce_sum(total, self.world).to(own.mean.dtype)

    def _ends(
        self, x: Tensor, given: list[tuple[Tensor, Tensor]], gradient: Tensor, *, after: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A chunk with its graph: y and x_k, k > ``after``, and the gradients that the bracket has in each of them."""
        with torch.enable_grad():
            output, norms = self._run(x, given)
        assert output is not None
        pairs = [(output, gradient.to(output.dtype))]
        for own, (_, entered) in list(zip(self.statistics, norms, strict=True))[after + 1 :]:
            if entered.requires_grad:
                pairs.append((entered, own.gradient(entered)))
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        return [end for end, _ in pairs], [gradient for _, gradient in pairs]

    def _run(
        self, x: Tensor, given: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor | None, list[tuple[_BatchNorm, Tensor]]]:
        """The module on one chunk, as far as the statistics reach.

        Returns:
            The output, or None if a batch norm has no statistics yet; and the batch norms that ran, with their inputs.
        """
        ran: list[tuple[_BatchNorm, Tensor]] = []

        def forward(norm: _BatchNorm, x: Tensor) -> Tensor:
            norm._check_input_dim(x)
            if any(norm is other for other, _ in ran):
                raise ConfigError(
                    f"cached accumulation: batch norm {self._norms[norm]!r} runs twice in one pass; each may run once"
                )
            ran.append((norm, x))
            if len(ran) > len(given):
                raise _Reached
            return _normalise(norm, x, *given[len(ran) - 1])

        with self.autocast(), _replaced(list(self._norms), forward):
            try:
                # A module may work in place, but what is kept for the next pass must stay.
                return self.module(x.clone()), ran
            except _Reached:
                return None, ran


# -- batch norm with given statistics ----------------------------------------------------------------------------------


def _uses_batch(module: nn.Module) -> bool:
    """Whether it is a batch norm that normalises with the statistics of its batch: torch's rule."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _normalise(norm: _BatchNorm, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias in the dtype of ``x``, differentiable by all of them.

    torch's kernel does the work. The statistics are constants to it, so their derivatives go through scale and shift,
    which equal weight and bias: d scale = -weight d var / (2 (var + eps)), d shift = -weight d mean / sqrt(var + eps).
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
    """Let batch norms compute ``forward`` for a while: an attribute of the object hides the method of its class."""
    try:
        for norm in norms:
            norm.forward = partial(forward, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
