"""The samplers of the synthetic study: ``full``, ``all_batches`` and ``osgd_exhaustive``. None of them is random.

Letters: N samples of the data set, C batches, B samples a batch, D dimensions, R runs with embeddings of their own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import ConfigError, PlanError
from mbcl.functional import check_temperature, cosine_similarity
from mbcl.plan import Embeddings
from mbcl.samplers._base import SAMPLERS
from mbcl.samplers._random import WholeSampler

MOST_BATCHES = 10**6
"""The largest C(N, B) that is accepted."""
MOST_PLACES = 10**8
"""The largest C(N, B) * B that is accepted: 0.8 GB of int64 positions. It matters for large B, where C(N, B) may still
be below :data:`MOST_BATCHES`."""
CHUNK_ELEMENTS = 2**21
"""Similarities in memory at once while batches are scored, 16 MiB in float64."""
SAFE_EXPONENT = 75.0
"""e^75 is representable in float32, and so are sums of it."""
TIE = 1e-12
"""Losses that differ by at most this are ties: sums of the same terms in another order differ in their last bits."""


def count_batches(name: str, num_samples: int, batch_size: int) -> int:
    """Return C(N, B), the number of batches.

    Raises:
        ConfigError: if it is above :data:`MOST_BATCHES`, or C(N, B) * B above :data:`MOST_PLACES`.

    Example:
        >>> count_batches("all_batches", 8, 2)
        28
    """
    count = math.comb(num_samples, batch_size)
    if count > MOST_BATCHES:
        shown = f"{count:,}" if count < 10**12 else f"about 10^{int(math.log10(count))}"
        raise ConfigError(
            f"sampler {name!r}: there are {shown} batches of {batch_size} of {num_samples} samples; allowed are at "
            f"most {MOST_BATCHES:,}"
        )
    if count * batch_size > MOST_PLACES:
        raise ConfigError(
            f"sampler {name!r}: its {count:,} batches of {batch_size} have {count * batch_size:,} places; allowed are "
            f"at most {MOST_PLACES:,}"
        )
    return count


@lru_cache(maxsize=4)
def combinations(num_samples: int, batch_size: int) -> Tensor:
    """(C, B) int64, all batches of B of N samples in lexicographic order; cached, so callers must not write to it.

    Example:
        >>> combinations(3, 2).tolist()
        [[0, 1], [0, 2], [1, 2]]
    """
    count = math.comb(num_samples, batch_size) * batch_size
    positions = itertools.chain.from_iterable(itertools.combinations(range(num_samples), batch_size))
    return torch.from_numpy(np.fromiter(positions, dtype=np.int64, count=count)).view(-1, batch_size)


def hardest_batches(similarity_RNN: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    r"""Find the batch with the highest CLIP loss among all C(N, B), for each of R runs.

    Of equal losses (to :data:`TIE`) the first in lexicographic order is taken, as published.

    Args:
        similarity_RNN: (R, N, N) float, cosines of view 1 and view 2 over the temperature; float64 where near-ties
            matter. Batches are scored on its device.
        batch_size: B.

    Returns:
        (R, B) int64 ascending positions; (R,) their losses, :math:`L(u, v) + L(v, u)` of :func:`mbcl.functional.clip`.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5 (OSGD on all batches).

    Example:
        >>> hardest_batches(torch.tensor([[[1.0, 0.0, 0.9], [0.0, 1.0, 0.0], [0.9, 0.0, 1.0]]]), 2)[0]
        tensor([[0, 2]])
    """
    num_runs, num_samples, _ = similarity_RNN.shape
    batches_CB = combinations(num_samples, batch_size).to(similarity_RNN.device)
    similarity_RN = similarity_RNN.reshape(num_runs, -1)
    positive_RN = similarity_RNN.diagonal(dim1=1, dim2=2)
    # If no sum can overflow, take each similarity's exponential once, not once for every batch that contains it.
    in_range = float(similarity_RN.abs().amax()) < SAFE_EXPONENT
    source_RN = similarity_RN.exp() if in_range else similarity_RN
    chunk = max(1, CHUNK_ELEMENTS // (num_runs * batch_size**2))
    losses = []
    for chunk_CB in batches_CB.split(chunk):
        cells = (chunk_CB[:, :, None] * num_samples + chunk_CB[:, None, :]).flatten()
        x_RCBB = source_RN[:, cells].view(num_runs, len(chunk_CB), batch_size, batch_size)
        if in_range:
            total_RC = (x_RCBB.sum(dim=3).log_() + x_RCBB.sum(dim=2).log_()).sum(dim=2)
        else:
            total_RC = (x_RCBB.logsumexp(dim=3) + x_RCBB.logsumexp(dim=2)).sum(dim=2)
        losses.append((total_RC - 2 * positive_RN[:, chunk_CB].sum(dim=2)) / batch_size)
    loss_RC = torch.cat(losses, dim=1)
    highest_R1 = loss_RC.amax(dim=1, keepdim=True)
    first_R = (loss_RC >= highest_R1 - TIE).to(torch.uint8).argmax(dim=1)
    return batches_CB[first_R], loss_RC.gather(1, first_R[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class Exhaustive(WholeSampler):
    """Base of the samplers that enumerate all C(N, B) batches."""

    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        count_batches(self.name, num_samples, self.batch_size)


@SAMPLERS.register("full")
@dataclass(frozen=True, kw_only=True)
class Full(WholeSampler):
    """One batch of all N samples, whose loss the other samplers approximate.

    Formula:
        One batch {0, ..., N - 1}.

    Cost:
        No embeddings. The loss of a step takes N² similarities.

    When to use:
        In the synthetic study, as the loss that mini-batches are compared with.

    Args:
        batch_size: B, global; not used. Training with this sampler needs a batch size of all training samples.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 4.

    Example:
        >>> Full(batch_size=2).plan(5).batches
        tensor([[0, 1, 2, 3, 4]])
    """

    name: ClassVar[str] = "full"

    def plan_length(self, num_samples: int) -> int:
        return 1

    def plan_width(self, num_samples: int) -> int:
        return num_samples

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        return torch.arange(num_samples)[None], None


@SAMPLERS.register("all_batches", aliases=("NcB",))
@dataclass(frozen=True, kw_only=True)
class AllBatches(Exhaustive):
    """All C(N, B) batches in lexicographic order, refused above 1,000,000.

    Minimising their mean loss is minimising the loss of the whole data set (where the optimum is known).

    Formula:
        All subsets of B samples.

    Cost:
        No embeddings, but C(N, B) batches: 28 for N = 8 and B = 2, 1.3·10^12 for N = 50 and B = 12, which is refused.

    When to use:
        In the synthetic study, to check that mini-batches have the optimum of the whole if every one of them is used.

    Args:
        batch_size: B, global.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 4.

    Example:
        >>> AllBatches(batch_size=2).plan(3).batches.tolist()
        [[0, 1], [0, 2], [1, 2]]
    """

    name: ClassVar[str] = "all_batches"

    @property
    def no_repeats(self) -> bool:
        """False: every sample is in C(N - 1, B - 1) batches."""
        return False

    def plan_length(self, num_samples: int) -> int:
        return math.comb(num_samples, self.batch_size)

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        return combinations(num_samples, self.batch_size).clone(), None


@SAMPLERS.register("osgd_exhaustive", aliases=("osgd_NcB",))
@dataclass(frozen=True, kw_only=True)
class OSGDExhaustive(Exhaustive):
    """The batch with the highest CLIP loss among all C(N, B), the first of ties; refused above 1,000,000 batches.

    Formula:
        The B samples whose CLIP loss L(u, v) + L(v, u) is the largest.

    Cost:
        Embeddings of all samples before each step, and C(N, B) losses.

    When to use:
        In the synthetic study: the limit of ordered SGD, with all batches as candidates.

    Args:
        batch_size: B, global. (The published search takes batches of 2, whatever the batch size.)
        temperature: of the loss; 1, as the synthetic study has none.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
        >>> OSGDExhaustive(batch_size=2).plan(3, Embeddings(z, z)).batches.tolist()
        [[0, 2]]
    """

    name: ClassVar[str] = "osgd_exhaustive"
    needs_embeddings: ClassVar[bool] = True

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    @property
    def covers_all(self) -> bool:
        return False

    def plan_length(self, num_samples: int) -> int:
        return 1

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        """Return the hardest batch and its loss, scored in float64 on the embeddings' device."""
        if embeddings is None:
            raise PlanError(f"sampler {self.name!r} needs embeddings")
        ordered = embeddings.ordered(num_samples)
        z1_ND, z2_ND = ordered.z1.detach().double(), ordered.z2.detach().double()
        batch_1B, loss_1 = hardest_batches(cosine_similarity(z1_ND, z2_ND)[None] / self.temperature, self.batch_size)
        return batch_1B.cpu(), loss_1.cpu()
