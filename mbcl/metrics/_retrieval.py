"""Retrieval between two views: does a sample's view 1 find its own view 2 among all others?

Letters: N samples, D dimensions, c rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count, normalize, raise_half

Similarity = Literal["cosine", "dot"]


def retrieval(
    u: Tensor,
    v: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    similarity: Similarity = "cosine",
    *,
    chunk_size: int = 1024,
) -> dict[str, float]:
    r"""Ranks of the true partners, in both directions, summed up.

    With ranks from :func:`ranks`: top-k is the share of ranks :math:`\le k`; mrr the mean of 1/rank; the mean rank;
    and the median rank :math:`\lfloor \mathrm{median}(\mathrm{rank} - 1) \rfloor + 1`.

    Args:
        u: (N, D) float embeddings of view 1, un-normalised.
        v: (N, D) of view 2, row i being the partner of row i of ``u``; same dtype and device.
        ks: the k of top-k.
        similarity: ``cosine``, or ``dot``, the raw inner product, as published.
        chunk_size: rows whose similarities to all N are held at once.

    Returns:
        ``u2v/top1`` (one per k, in [0, 1]), ``u2v/mrr``, ``u2v/mean_rank``, ``u2v/median_rank`` (ranks start at 1),
        and the same for ``v2u``.

    Raises:
        ValueError: if shapes or dtypes do not fit, N is 0, or an entry is not finite.
        ConfigError: if a k, ``similarity`` or ``chunk_size`` is not possible.

    Reference:
        Evaluation of the published method, arXiv 2307.05906, section 6.

    Example:
        >>> retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]], ks=(1,))["u2v/top1"]
        0.3333333333333333
    """
    for k in ks:
        check_count("ks", k)
    check_count("chunk_size", chunk_size)
    if similarity not in ("cosine", "dot"):
        raise ConfigError(f"similarity must be 'cosine' or 'dot', found {similarity!r}")
    if u.ndim != 2 or u.shape != v.shape or len(u) == 0:
        raise ValueError(f"retrieval: two (N, D) tensors, N > 0, are needed; found {tuple(u.shape)}, {tuple(v.shape)}")
    for name, x in (("u", u), ("v", v)):
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(f"retrieval: {int((~finite).sum())} of {len(x)} rows of {name} are not finite")
    prepare = normalize if similarity == "cosine" else raise_half
    result: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(device_type=u.device.type, enabled=False):
        u, v = prepare(u), prepare(v)
        for direction, queries, targets in (("u2v", u, v), ("v2u", v, u)):
            rank_N = ranks(queries, targets, chunk_size=chunk_size)
            result |= {f"{direction}/top{k}": float((rank_N <= k).double().mean()) for k in ks}
            result[f"{direction}/mrr"] = float((1 / rank_N).mean())
            result[f"{direction}/mean_rank"] = float(rank_N.mean())
            result[f"{direction}/median_rank"] = float(torch.quantile(rank_N - 1, 0.5).floor() + 1)
    return result


def ranks(queries: Tensor, targets: Tensor, *, chunk_size: int = 1024) -> Tensor:
    r"""Rank of each query's own target among all targets, by inner product; ties share the middle rank.

    With :math:`S_{ij} = q_i \cdot t_j`:

    .. math:: \mathrm{rank}_i = 1 + \#\{j : S_{ij} > S_{ii}\} + \tfrac12 \#\{j \ne i : S_{ij} = S_{ii}\}

    Without ties this is the usual rank. Counting the larger ones alone would give rank 1 to every sample of a
    collapsed encoder, whose embeddings are all equal.

    Args:
        queries: (N, D) float32 or float64.
        targets: (N, D), same dtype and device.
        chunk_size: rows of S held at once; the N x N matrix never is.

    Returns:
        (N,) float64 CPU tensor, in [1, N], in halves.

    Stability:
        The own similarity is read from the same product as the others: one that is computed apart differs in the last
        bit and would win or lose every tie. For this reason each direction makes its own product.

    Example:
        >>> ranks(torch.ones(3, 2), torch.ones(3, 2)).tolist()
        [2.0, 2.0, 2.0]
    """
    num_samples = len(queries)
    parts = []
    for start in range(0, num_samples, chunk_size):
        s_cN = queries[start : start + chunk_size] @ targets.T
        own_c1 = s_cN.diagonal(offset=start)[:, None]
        larger_c = (s_cN > own_c1).sum(dim=1)
        smaller_c = (s_cN < own_c1).sum(dim=1)
        # What is neither larger nor smaller is equal, or not a number after an overflow, which must not flatter.
        parts.append(1 + larger_c + (num_samples - 1 - larger_c - smaller_c).double() / 2)
    return torch.cat(parts).double().cpu()
