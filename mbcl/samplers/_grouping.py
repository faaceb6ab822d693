"""Partition of many samples into blocks of similar ones, in near-linear time.

Letters: N samples, D dimensions, C samples of a block, B samples a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mbcl.plan import Embeddings
from mbcl.samplers._balanced import balanced_kmeans
from mbcl.samplers._base import Ints
from mbcl.samplers._direction import principal_direction
from mbcl.samplers._normalize import CHUNK_ROWS, pair_sum
from mbcl.seeding import derive, torch_generator

MOST_BLOCKS = 52
"""Blocks that one balanced k-means makes at most: 66,560 samples in blocks of 1,280. Its cost grows as samples times
blocks, so larger sets are halved first."""
POWER_STEPS = 4
POWER_ROWS = 4096


def grouped(embeddings: Embeddings, positions: Ints, block: int, batch_size: int, seed: int) -> list[Ints]:
    """Partition samples into blocks of similar ones, each of ``block`` samples except for a remainder of whole batches.

    Sets of more than :data:`MOST_BLOCKS` blocks are halved along their principal direction until they are small
    enough; then balanced k-means cuts each of them. Memory: one float32 (N, D), the sum of both normalised views.

    Args:
        embeddings: row p holds data-set position p; on any device.
        positions: (N,) int64, a multiple of ``batch_size``.
        block: C, a multiple of ``batch_size``.
        batch_size: B.
        seed: of this partition.

    Returns:
        The positions of each block, in the order of ``positions``; together they are ``positions``.
    """
    x_ND = pair_sums(embeddings, positions)
    blocks: list[Ints] = []
    pending = [np.arange(len(positions))]
    while pending:
        rows = pending.pop()
        if len(rows) > MOST_BLOCKS * block:
            # Depth first: the first half next.
            pending += reversed(halves(x_ND, rows, block, derive(seed, "halves", len(blocks), len(pending))))
            continue
        num_blocks = len(rows) // block
        remainder = len(rows) - num_blocks * block
        if num_blocks < 2:
            parts = [rows] if remainder == 0 or num_blocks == 0 else _split(x_ND, rows, num_blocks * block, seed)
            blocks += parts
            continue
        if remainder:
            # Balanced k-means needs whole blocks: the remainder is split off one end of the principal direction.
            rows, last = _split(x_ND, rows, num_blocks * block, seed)
            blocks.append(last)
        # Rows ascend, so where they are all rows, x_ND serves without a copy.
        part_MD = x_ND if len(rows) == len(x_ND) else x_ND[torch.from_numpy(rows).to(x_ND.device)]
        cluster_M = balanced_kmeans(part_MD[None], num_blocks, [derive(seed, "blocks", len(blocks))])[0].cpu().numpy()
        blocks += list(rows[np.argsort(cluster_M, kind="stable")].reshape(num_blocks, block))
    return [positions[rows] for rows in blocks]


def pair_sums(embeddings: Embeddings, positions: Ints) -> Tensor:
    """(N, D) float32: both normalised views as one row, see :func:`pair_sum`, made in chunks."""
    device = embeddings.z1.device
    width = pair_sum(embeddings.z1[:1].detach(), embeddings.z2[:1].detach()).shape[1]
    x_ND = torch.empty(len(positions), width, dtype=torch.float32, device=device)
    for start in range(0, len(positions), CHUNK_ROWS):
        rows = torch.from_numpy(positions[start : start + CHUNK_ROWS]).to(device)
        x_ND[start : start + len(rows)] = pair_sum(embeddings.z1.detach()[rows], embeddings.z2.detach()[rows])
    return x_ND


def halves(x_ND: Tensor, rows: Ints, unit_size: int, seed: int) -> list[Ints]:
    """Split rows into two halves along the principal direction, the first a multiple of ``unit_size``."""
    units = -(-len(rows) // unit_size)
    return _split(x_ND, rows, (units // 2) * unit_size, seed)


def _split(x_ND: Tensor, rows: Ints, num_first: int, seed: int) -> list[Ints]:
    """Split rows by their projection on the principal direction: the ``num_first`` smallest, and the others."""
    direction_D = _direction(x_ND, rows, seed)
    projection = np.concatenate(
        [
            (x_ND[torch.from_numpy(rows[start : start + CHUNK_ROWS]).to(x_ND.device)] @ direction_D).cpu().numpy()
            for start in range(0, len(rows), CHUNK_ROWS)
        ]
    )
    order = np.argsort(projection, kind="stable")
    return [np.sort(rows[order[:num_first]]), np.sort(rows[order[num_first:]])]


def _direction(x_ND: Tensor, rows: Ints, seed: int) -> Tensor:
    """(D,) the principal direction of some rows, estimated from at most :data:`POWER_ROWS` of them."""
    generator = torch_generator(seed, "principal direction")
    if len(rows) > POWER_ROWS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:POWER_ROWS].numpy()]
    start_D = torch.randn(x_ND.shape[1], generator=generator)
    return principal_direction(x_ND[torch.from_numpy(rows).to(x_ND.device)], start_D, POWER_STEPS)
