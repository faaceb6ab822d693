"""The swap search of :mod:`mbcl.samplers._swaps` in torch, batched over pools, on any device.

The compiled search takes one sample after the other. Here a round finds the best partner of every sample of all pools
at once, and makes those swaps that raise the loss and are the best of all swaps of both their batches. A round changes
a batch at most once, so the computed change of every swap is exact and the loss never falls. Rounds are repeated until
no swap is left or a limit is reached.

Letters: P pools, M samples of a pool, K batches, B samples a batch, D dimensions, T candidate partners.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mbcl.samplers._swaps import DOUBLE_RANGE, MIN_GAIN, SINGLE_RANGE

ROUNDS_A_SWEEP = 24
"""Rounds whose total gain is about that of one sweep of the compiled search."""
PARTNERS = 8


def refine_batched(
    u_PMD: Tensor, v_PMD: Tensor, rows_PKB: Tensor, *, temperature: float, sweeps: int, apart_PMM: Tensor | None = None
) -> Tensor:
    """Improve batches by swaps; their loss does not fall.

    Arguments and result are those of :func:`mbcl.samplers._swaps.refine`, stacked over P pools, on any device. A sweep
    is :data:`ROUNDS_A_SWEEP` rounds.
    """
    search = _Search(u_PMD, v_PMD, rows_PKB.clone(), temperature, apart_PMM)
    for _ in range(ROUNDS_A_SWEEP * sweeps):
        if not search.round():
            break
    return search.rows_PKB


class _Search:
    """The state of the search: the rows of every batch, and what a column adds to the sum of every anchor."""

    def __init__(
        self, u_PMD: Tensor, v_PMD: Tensor, rows_PKB: Tensor, temperature: float, apart_PMM: Tensor | None
    ) -> None:
        inverse = min(1 / temperature, DOUBLE_RANGE)
        dtype = torch.float32 if inverse <= SINGLE_RANGE else torch.float64
        u_PMD, v_PMD = (z.to(dtype) * math.sqrt(inverse) for z in (u_PMD, v_PMD))
        uv = torch.bmm(u_PMD, v_PMD.mT).exp_()
        self.own_PM = uv.diagonal(dim1=1, dim2=2).clone()
        # What column j adds to the sums of the anchors u and v of row i; zero for j = i.
        self.a_PMM = torch.bmm(u_PMD, u_PMD.mT).exp_() + uv
        self.c_PMM = torch.bmm(v_PMD, v_PMD.mT).exp_() + uv.mT
        self.a_PMM.diagonal(dim1=1, dim2=2).zero_()
        self.c_PMM.diagonal(dim1=1, dim2=2).zero_()
        self.rows_PKB = rows_PKB
        self.apart_PMM = apart_PMM
        self.num_pools, self.num_batches, self.batch_size = rows_PKB.shape
        self.pool_P1 = torch.arange(self.num_pools, device=rows_PKB.device)[:, None]

    def round(self) -> bool:
        """Make the best swaps of all batches; return whether there was any."""
        batch_PM, slot_PM = self._places()
        member_PMK = torch.nn.functional.one_hot(batch_PM, self.num_batches).to(self.a_PMM.dtype)
        s_PMK = self.own_PM[:, :, None] + torch.bmm(self.a_PMM, member_PMK)
        t_PMK = self.own_PM[:, :, None] + torch.bmm(self.c_PMM, member_PMK)
        s_PM, t_PM = (x.gather(2, batch_PM[:, :, None])[:, :, 0] for x in (s_PMK, t_PMK))
        partner_PMT = self._candidates(batch_PM, member_PMK, s_PMK, t_PMK, s_PM, t_PM)
        change_PMT = self._changes(partner_PMT, batch_PM, s_PM, t_PM)
        best_PM, choice_PM = change_PMT.max(dim=2)
        other_PM = partner_PMT.gather(2, choice_PM[:, :, None])[:, :, 0]
        wins_PM = self._winners(best_PM, batch_PM, batch_PM.gather(1, other_PM))
        if not bool(wins_PM.any()):
            return False
        pool, j = wins_PM.nonzero(as_tuple=True)
        other = other_PM[pool, j]
        home, target = batch_PM[pool, j], batch_PM[pool, other]
        home_slot, target_slot = slot_PM[pool, j], slot_PM[pool, other]
        self.rows_PKB[pool, home, home_slot] = other
        self.rows_PKB[pool, target, target_slot] = j
        return True

    def _places(self) -> tuple[Tensor, Tensor]:
        """(P, M) twice: the batch of each sample and its place in it."""
        flat_PM = self.rows_PKB.flatten(1)
        place_PM = flat_PM.argsort(dim=1)
        return place_PM // self.batch_size, place_PM % self.batch_size

    def _candidates(
        self, batch_PM: Tensor, member_PMK: Tensor, s_PMK: Tensor, t_PMK: Tensor, s_PM: Tensor, t_PM: Tensor
    ) -> Tensor:
        """(P, M, T) int64: the partners of every sample with the largest estimated change of a swap."""
        gain_PMM = torch.log1p(self.a_PMM / s_PM[:, :, None]) + torch.log1p(self.c_PMM / t_PM[:, :, None])
        gain_PMK = torch.bmm(gain_PMM.mT, member_PMK) + s_PMK.log() + t_PMK.log()
        del gain_PMM
        leave_PM = (s_PM.log() + t_PM.log()) - self._leave_changes(s_PM, t_PM)
        # What j adds to the batch of l, less what its own batch loses without it; plus the same for l and j exchanged.
        moves_PMM = gain_PMK.gather(2, batch_PM[:, None, :].expand(-1, batch_PM.shape[1], -1)) - leave_PM[:, :, None]
        promise_PMM = moves_PMM + moves_PMM.mT
        promise_PMM.masked_fill_(batch_PM[:, :, None] == batch_PM[:, None, :], -torch.inf)
        return promise_PMM.topk(min(PARTNERS, promise_PMM.shape[2]), dim=2).indices

    def _leave_changes(self, s_PM: Tensor, t_PM: Tensor) -> Tensor:
        """(P, M): the change of the sum of the other members' logarithms if a sample left its batch."""
        pool = self.pool_P1[:, :, None, None]
        row, column = self.rows_PKB[:, :, :, None], self.rows_PKB[:, :, None, :]
        tiny = torch.finfo(s_PM.dtype).tiny
        change_PKBB = (1 - self.a_PMM[pool, row, column] / s_PM[pool, row]).clamp_(min=tiny).log_()
        change_PKBB += (1 - self.c_PMM[pool, row, column] / t_PM[pool, row]).clamp_(min=tiny).log_()
        change_PM = torch.empty_like(s_PM)
        return change_PM.scatter_(1, self.rows_PKB.flatten(1), change_PKBB.sum(dim=2).flatten(1))

    def _changes(self, partner_PMT: Tensor, batch_PM: Tensor, s_PM: Tensor, t_PM: Tensor) -> Tensor:
        """(P, M, T): the exact change of the sum of log s + log t for every candidate swap."""
        num_rows, num_candidates = partner_PMT.shape[1:]
        pool = self.pool_P1[:, :, None, None]
        j = torch.arange(num_rows, device=partner_PMT.device)[None, :, None, None]
        other = partner_PMT[:, :, :, None]
        home_PM1B = self.rows_PKB[self.pool_P1, batch_PM][:, :, None, :]
        target_PMT = batch_PM.gather(1, partner_PMT.flatten(1)).view_as(partner_PMT)
        target_PMTB = self.rows_PKB[self.pool_P1[:, :, None], target_PMT]
        own_PM = s_PM.log() + t_PM.log()
        change_PMT = -own_PM[:, :, None] - own_PM.gather(1, partner_PMT.flatten(1)).view_as(partner_PMT)
        for matrix, sums_PM in ((self.a_PMM, s_PM), (self.c_PMM, t_PM)):
            for members, arriving, leaving in ((home_PM1B, other, j), (target_PMTB, j, other)):
                swapped = matrix[pool, members, arriving] - matrix[pool, members, leaving]
                ratio = swapped / sums_PM[pool, members]
                # The sample that leaves is no longer an anchor of this batch.
                change_PMT += torch.where(members == leaving, 0, ratio).clamp(min=-1 + 1e-6).log1p().sum(dim=3)
                arriving_sum = torch.where(members == leaving, 0, matrix[pool, arriving, members]).sum(dim=3)
                change_PMT += (arriving_sum + self.own_PM[pool, arriving][:, :, :, 0]).log()
        if self.apart_PMM is not None:
            crowding = torch.zeros(partner_PMT.shape, dtype=torch.int64, device=partner_PMT.device)
            for members, arriving, leaving in ((home_PM1B, other, j), (target_PMTB, j, other)):
                added = self.apart_PMM[pool, members, arriving].long() - self.apart_PMM[pool, members, leaving].long()
                crowding += torch.where(members == leaving, 0, added).sum(dim=3)
            change_PMT.masked_fill_(crowding > 0, -torch.inf)
        return change_PMT.masked_fill_(target_PMT == batch_PM[:, :, None], -torch.inf)

    def _winners(self, best_PM: Tensor, home_PM: Tensor, target_PM: Tensor) -> Tensor:
        """(P, M) bool: samples whose best swap is the best of all swaps of its two batches; at most one for a batch."""
        num_rows = best_PM.shape[1]
        # Ranks instead of changes, since no two ranks are equal. Both partners may have the same swap as their best:
        # then the one with the higher rank makes it.
        order_PM = best_PM.argsort(dim=1, stable=True)
        rank_PM = torch.empty_like(order_PM).scatter_(
            1, order_PM, torch.arange(num_rows, device=best_PM.device).expand_as(order_PM)
        )
        rank_PM = torch.where(best_PM > MIN_GAIN, rank_PM, -1)
        top_PK = torch.full((self.num_pools, self.num_batches), -1, dtype=torch.int64, device=best_PM.device)
        top_PK.scatter_reduce_(1, home_PM, rank_PM, "amax").scatter_reduce_(1, target_PM, rank_PM, "amax")
        return (rank_PM >= 0) & (top_PK.gather(1, home_PM) == rank_PM) & (top_PK.gather(1, target_PM) == rank_PM)
