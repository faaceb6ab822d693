"""When a replanner makes a plan, and for which steps.

Letters: S batches of an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from mbcl.planner import PlanKey


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The epochs and steps with which plans begin.

    Args:
        steps: S.
        part: the steps of an epoch for which a plan is made at a time.
        every: the epochs for which a plan is made.
        warmup_epochs: the first epochs, without a plan.
        epochs: of the training; None if that is not known.
        plan_length: the batches of one plan of the sampler. Several rounds are planned at once for a longer part.
    """

    steps: int
    part: int
    every: int
    warmup_epochs: int
    epochs: int | None
    plan_length: int

    def planned_in(self, epoch: int) -> int | None:
        """Return the epoch whose plan an epoch trains on, itself or an earlier one; None in the warm-up."""
        since = epoch - self.warmup_epochs
        return epoch - since % self.every if since >= 0 else None

    def key(self, epoch: int, step: int) -> PlanKey | None:
        """Return the key of the plan that begins at a step; None in the warm-up."""
        planned_in = self.planned_in(epoch)
        if planned_in is None:
            return None
        rounds = -(-self.part // self.plan_length)
        return PlanKey(planned_in, step // self.part * rounds, rounds, min(self.part, self.steps - step))

    def next_key(self, epoch: int, planned: int) -> PlanKey | None:
        """Return the key of the plan that is due after so many steps of an epoch; None if no later step needs one."""
        if planned < self.steps:
            return self.key(epoch, planned)
        if epoch + 1 == self.epochs or self.planned_in(epoch + 1) != epoch + 1:
            return None
        return self.key(epoch + 1, 0)
