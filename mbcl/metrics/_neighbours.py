"""Classification by the k nearest neighbours.

Letters: N bank, Q queries, F features, C classes, c rows of a chunk.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_choice, check_count, check_temperature, normalize
from mbcl.metrics._retrieval import chunk_rows

Weighting = Literal["similarity", "uniform"]


def knn(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    weighting: Weighting = "similarity",
    temperature: float = 0.07,
) -> Tensor:
    r"""Classify each query by a vote of its k nearest samples in the bank, by cosine.

    .. math:: \hat y_q = \arg\max_c \sum_{i \in \mathrm{kNN}(q),\; y_i = c} w_i, \qquad
              w_i = \exp(\cos(q, x_i) / \tau) \;\text{or}\; 1

    Args:
        bank: (N, F) float features with known classes.
        labels: (N,) int64, any whole numbers, on any device.
        queries: (Q, F), same dtype and device as ``bank``.
        k: neighbours that vote.
        weighting: ``similarity``, weights as above; ``uniform``, one vote each.
        temperature: tau of ``similarity``, > 0.

    Returns:
        (Q,) int64 labels on the CPU. Of classes with equal votes the smallest label wins. Samples as near as the k-th
        share the votes that are left, so the order of the bank does not matter.

    Raises:
        ValueError: if shapes do not fit or an entry is not finite.
        ConfigError: if a parameter is out of range, or k is above N.

    Reference:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4;
        k = 20 as in Caron et al., ICCV 2021.

    Example:
        >>> knn(torch.eye(2), torch.tensor([7, 3]), torch.tensor([[0.9, 0.1]]), k=1).tolist()
        [7]
    """
    check_choice("weighting", weighting, ("similarity", "uniform"))
    check_temperature(temperature)
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or labels.shape != bank.shape[:1]:
        raise ValueError(
            f"knn: (N, F), (N,) and (Q, F) are needed; found {tuple(bank.shape)}, {tuple(labels.shape)} and "
            f"{tuple(queries.shape)}"
        )
    if check_count("k", k) > len(bank):
        raise ConfigError(f"k must be at most the {len(bank)} samples of the bank, found {k}")
    if not bool(torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise ValueError("knn: features are not finite")
    classes, members = labels.cpu().unique(return_inverse=True)
    members = members.to(bank.device)

    def weights(cosines: Tensor, nearest: Tensor) -> Tensor:
        if weighting == "uniform":
            return torch.ones_like(cosines, dtype=torch.float64)
        # Cosines relative to the nearest one: this scales all weights of a query alike and prevents overflow.
        return ((cosines - nearest).double() / temperature).exp()

    winners = []
    with torch.no_grad(), torch.autocast(device_type=bank.device.type, enabled=False):
        bank = normalize(bank)
        for part in queries.split(chunk_rows(len(bank))):
            s_cN = normalize(part) @ bank.T
            nearest_cK, index_cK = s_cN.topk(min(k + 1, len(bank)), dim=1)  # one more shows whether the last is tied
            weights_ck = weights(nearest_cK[:, :k], nearest_cK[:, :1])
            votes_cC = torch.zeros((len(part), len(classes)), dtype=torch.float64, device=bank.device)
            votes_cC.scatter_add_(1, members[index_cK[:, :k]], weights_ck)
            tied_c = (nearest_cK[:, k:] == nearest_cK[:, k - 1 : k]).any(dim=1)
            if bool(tied_c.any()):
                s_tN = s_cN[tied_c]
                weights_tN = _shares(s_tN, nearest_cK[tied_c, k - 1 : k], k) * weights(s_tN, nearest_cK[tied_c, :1])
                votes_cC[tied_c] = torch.zeros_like(votes_cC[tied_c]).index_add_(1, members, weights_tN)
            winners.append(votes_cC.argmax(dim=1).cpu())  # the first of ties
    return classes[torch.cat(winners)] if winners else torch.zeros(0, dtype=torch.int64)


def _shares(s_tN: Tensor, last_t1: Tensor, k: int) -> Tensor:
    """(t, N) float64: the votes of every sample, k for each query; those as near as the k-th share what is left."""
    nearer_tN, as_near_tN = s_tN > last_t1, (s_tN == last_t1).double()
    left_t1 = k - nearer_tN.sum(dim=1, keepdim=True)
    return nearer_tN + as_near_tN * left_t1 / as_near_tN.sum(dim=1, keepdim=True)
