"""The last, short batch of an epoch: the samples that no planned batch holds.

Letters: N samples of the data set, B samples of a global batch, W ranks.
"""

from __future__ import annotations

from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.torch._sources import FixedPlan, PlanSource, left_out, require_partition


def left_out_of(source: PlanSource, epoch: int) -> Tensor:
    """Return the positions that no planned batch of an epoch holds, (n,) int64, ascending.

    Raises:
        ConfigError: if N is not known, or if the epoch is planned in parts and the last is not planned yet.
    """
    if source.num_samples is None:
        raise ConfigError("num_samples is needed: a plan does not tell how many samples the data set has")
    plan = source.plan(epoch)
    if len(plan) < source.num_batches(epoch):
        raise ConfigError(f"only {len(plan)} of {source.num_batches(epoch)} batches are planned yet")
    return left_out(plan, source.num_samples)


def num_short(source: PlanSource, epoch: int, world_size: int) -> int:
    """Return the number of samples of an epoch's short batch; 0 if there is none.

    Raises:
        ConfigError: if they cannot be a batch.
    """
    num_samples, width = source.num_samples, source.batch_size
    assert num_samples is not None
    if width is None:
        plan = source.plan(epoch)
        require_partition(plan, num_samples)
        width = plan.batches.shape[1]
    short = num_samples - source.num_batches(epoch) * width
    if short == 1:
        raise ConfigError("drop_last=False: the last batch would be one sample, which has no negatives")
    if short % world_size:
        raise ConfigError(f"drop_last=False: {world_size} ranks cannot share the last batch of {short} samples equally")
    return short


def check_short_batch(source: PlanSource, epoch: int, world_size: int) -> None:
    """Check all about the short batch that is known before the plans are made.

    Raises:
        ConfigError: if there cannot be one.
    """
    if source.num_samples is None:
        raise ConfigError("drop_last=False: num_samples is needed, a plan does not tell which samples it leaves out")
    if source.is_partition:
        num_short(source, epoch, world_size)
    elif isinstance(source, FixedPlan):
        require_partition(source.plan(0), source.num_samples)
    elif source.is_partition is False:
        raise ConfigError(
            "drop_last=False: the epochs repeat samples, leave a batch or more of them out, or keep sources together, "
            "so what is left is no short batch"
        )
