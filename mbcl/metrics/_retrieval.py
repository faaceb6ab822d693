"""Retrieval between two views: the rank of a sample's own view 2 among all, by similarity to its view 1.

Letters: N samples, D dimensions, c rows of a chunk, G groups of M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mbcl.functional import check_choice, check_count, normalize, raise_half

Similarity = Literal["cosine", "dot"]
Direction = Literal["u2v", "v2u"]

_CHUNK_ENTRIES = 2**24
_CHUNK_ROWS = 1024


def retrieval(
    u: Tensor,
    v: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    similarity: Similarity = "cosine",
    *,
    directions: Sequence[Direction] = ("u2v", "v2u"),
) -> dict[str, float]:
    r"""Summarise the ranks of the true partners in both directions.

    Top-k is the share of ranks :math:`\le k`, mrr the mean of 1/rank; both are expected values over random orders of
    equally similar targets, so that a collapsed encoder, whose embeddings are all equal, scores like chance: k/N and
    :math:`\sum_{r=1}^N 1 / (rN)`. The mean rank and the median rank
    :math:`\lfloor \mathrm{median}(\mathrm{rank} - 1) \rfloor + 1` are those of :func:`ranks`.

    Cosine is the default because the losses compare normalised projections: their length is never trained. With the raw
    inner product, a few long targets are the nearest of many queries, independent of what the encoder has learnt.

    Args:
        u: (N, D) float embeddings of view 1, un-normalised.
        v: (N, D) of view 2, row i being the partner of row i of ``u``; same dtype and device.
        ks: the k of top-k.
        similarity: ``cosine``, or ``dot``, the raw inner product, as published.
        directions: ``u2v``: rows of ``u`` are the queries and rows of ``v`` the targets; ``v2u``: vice versa.

    Returns:
        ``u2v/top1`` (one per k, in [0, 1]), ``u2v/mrr``, ``u2v/mean_rank``, ``u2v/median_rank`` (ranks start at 1),
        and the same for ``v2u``.

    Raises:
        ValueError: if shapes or dtypes do not fit, N is 0, or an entry is not finite.
        ConfigError: if a k or ``similarity`` is not allowed.

    Reference:
        Evaluation of the published method, arXiv 2307.05906, section 6.

    Example:
        >>> retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]], ks=(1,))["u2v/top1"]
        0.3333333333333333
    """
    for k in ks:
        check_count("ks", k)
    if u.ndim != 2 or u.shape != v.shape or len(u) == 0:
        raise ValueError(f"retrieval: two (N, D) tensors, N > 0, are needed; found {tuple(u.shape)}, {tuple(v.shape)}")
    result: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(device_type=u.device.type, enabled=False):
        u, v = _comparable(u, similarity, "u"), _comparable(v, similarity, "v")
        for direction in directions:
            queries, targets = (u, v) if direction == "u2v" else (v, u)
            above_N, ties_N = _placements(queries, targets)
            rank_N = _middle(above_N, ties_N)
            result |= {f"{direction}/top{k}": float(_chance_within(k, above_N, ties_N).mean()) for k in ks}
            result[f"{direction}/mrr"] = float(_mean_reciprocal(above_N, ties_N).mean())
            result[f"{direction}/mean_rank"] = float(rank_N.mean())
            # The median of an even number is the mean of the middle two. torch.quantile refuses above 16 million.
            middle = rank_N.sort().values[[(len(rank_N) - 1) // 2, len(rank_N) // 2]].mean()
            result[f"{direction}/median_rank"] = float((middle - 1).floor() + 1)
    return result


def both_directions(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the means over both directions of ``mrr`` and ``top1``, as far as the metrics have them.

    Two views are alike in distribution, so that both directions measure one quantity.

    Example:
        >>> both_directions({"u2v/top1": 0.5, "v2u/top1": 0.25, "u2v/median_rank": 3.0, "v2u/median_rank": 2.0})
        {'top1': 0.375}
    """
    names = [name for name in ("mrr", "top1") if f"u2v/{name}" in metrics]
    return {name: (metrics[f"u2v/{name}"] + metrics[f"v2u/{name}"]) / 2 for name in names}


def retrieval_within(u: Tensor, v: Tensor, similarity: Similarity = "cosine") -> dict[str, float]:
    """Top-1 retrieval within each group: member m of ``u`` among the M members of the same group in ``v``.

    As published, a group is one image and its members are the image's corrupted versions: this measures how well the
    corruptions of an image are distinguished, not how well images are recognised under corruption.

    Args:
        u: (G, M, D) float embeddings of view 1, un-normalised.
        v: (G, M, D) of view 2; same dtype and device.
        similarity: ``cosine``, or ``dot``, as published.

    Returns:
        ``u2v/top1`` and ``v2u/top1``, in [0, 1]: the share of members whose partner is more similar than all other
        members of the group. A partner that is as similar as others counts as its chance to be the first of them.

    Raises:
        ValueError: if shapes or dtypes do not fit, G, M or D is 0, or an entry is not finite.
        ConfigError: if ``similarity`` is unknown.

    Reference:
        Corrupted evaluation of the published method, arXiv 2307.05906, section 6.

    Example:
        >>> retrieval_within(torch.eye(3)[None], torch.eye(3)[None][:, [0, 2, 1]])["u2v/top1"]
        0.3333333333333333
    """
    if u.ndim != 3 or u.shape != v.shape or 0 in u.shape:
        raise ValueError(
            f"retrieval within groups: two (G, M, D) tensors are needed; found {tuple(u.shape)}, {tuple(v.shape)}"
        )
    hits = {"u2v": 0.0, "v2u": 0.0}
    rows = max(1, _CHUNK_ENTRIES // u.shape[1] ** 2)
    with torch.no_grad(), torch.autocast(device_type=u.device.type, enabled=False):
        u, v = _comparable(u, similarity, "u"), _comparable(v, similarity, "v")
        for u_gMD, v_gMD in zip(u.split(rows), v.split(rows), strict=True):
            for direction, queries, targets in (("u2v", u_gMD, v_gMD), ("v2u", v_gMD, u_gMD)):
                s_gMM = queries @ targets.mT
                above_gM, ties_gM = _above_and_ties(s_gMM, s_gMM.diagonal(dim1=-2, dim2=-1)[..., None].clone())
                hits[direction] += float(_chance_within(1, above_gM, ties_gM).sum())
    return {f"{direction}/top1": count / (u.shape[0] * u.shape[1]) for direction, count in hits.items()}


def ranks(queries: Tensor, targets: Tensor) -> Tensor:
    r"""Rank of each query's own target among all targets, by inner product; ties share the middle rank.

    With :math:`S_{ij} = q_i \cdot t_j`:

    .. math:: \mathrm{rank}_i = 1 + \#\{j : S_{ij} > S_{ii}\} + \tfrac12 \#\{j \ne i : S_{ij} = S_{ii}\}
              = \tfrac12 \Big( N + 1 + \sum_j \mathrm{sign}(S_{ij} - S_{ii}) \Big)

    Without ties this is the usual rank. Counting the larger ones alone would give rank 1 to every sample of a
    collapsed encoder, whose embeddings are all equal. S is made in chunks of rows, never the whole N x N matrix.

    Args:
        queries: (N, D) float32 or float64.
        targets: (N, D), same dtype and device.

    Returns:
        (N,) float64 CPU tensor, in [1, N], in halves.

    Stability:
        :math:`S_{ii}` is read from the same matrix product as the other entries: computed separately it would differ in
        the last bit and win or lose every tie. For this reason each direction has its own product. Sums of signs are
        integers, exact in float32 up to 16 million samples.

    Example:
        >>> ranks(torch.ones(3, 2), torch.ones(3, 2)).tolist()
        [2.0, 2.0, 2.0]
    """
    return _middle(*_placements(queries, targets))


def chunk_rows(num_columns: int) -> int:
    """Return how many rows of a matrix with ``num_columns`` columns fit 64 MiB of float32, 1,024 at most.

    Example:
        >>> chunk_rows(100), chunk_rows(100_000)
        (1024, 167)
    """
    return max(1, min(_CHUNK_ROWS, _CHUNK_ENTRIES // max(1, num_columns)))


def _placements(queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float64 CPU tensors: how many targets are more similar than the own one; how many as similar, with it."""
    rows = chunk_rows(len(targets))
    parts = []
    for start in range(0, len(queries), rows):
        s_cN = queries[start : start + rows] @ targets.T
        parts.append(_above_and_ties(s_cN, s_cN.diagonal(offset=start)[:, None].clone()))
    above_N, ties_N = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return above_N, ties_N


def _above_and_ties(s: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """(..., c) float64 twice, from (..., c, N) similarities, overwritten, and the partners', (..., c, 1).

    How many similarities are larger than the partner's, and how many are equal to it, its own among them.
    """
    # In place and without booleans, whose sums are sixty times slower in torch.
    signs = s.sub_(partner).sign_()
    balance = signs.sum(dim=-1)
    if bool(balance.isnan().any()):  # inf - inf after an overflow counts as a tie, so that it cannot improve a rank
        balance = signs.nan_to_num_(nan=0.0).sum(dim=-1)
    unequal = signs.abs_().sum(dim=-1).double()
    return (unequal + balance.double()) / 2, s.shape[-1] - unequal


def _middle(above: Tensor, ties: Tensor) -> Tensor:
    """Return the middle of the ranks that ties share."""
    return above + (ties + 1) / 2


def _chance_within(k: int, above: Tensor, ties: Tensor) -> Tensor:
    """Return the chance of a rank of at most k where ties are in random order."""
    return ((k - above) / ties).clamp(0, 1)


def _mean_reciprocal(above: Tensor, ties: Tensor) -> Tensor:
    """Return the mean of 1/rank over the ranks above + 1 to above + ties, by differences of harmonic numbers."""
    sums = torch.digamma(above + ties + 1) - torch.digamma(above + 1)
    return torch.where(ties == 1, 1 / (above + 1), sums / ties)


def _comparable(x: Tensor, similarity: Similarity, name: str) -> Tensor:
    """Check the rows and prepare them, so that their inner products are the similarities."""
    check_choice("similarity", similarity, ("cosine", "dot"))
    finite = torch.isfinite(x).all(dim=-1)
    if not bool(finite.all()):
        raise ValueError(f"retrieval: {int((~finite).sum())} of {finite.numel()} rows of {name} are not finite")
    return normalize(x) if similarity == "cosine" else raise_half(x)
