"""Rows of embeddings for a replanner: computed by the caller's function, or handed over by its loop.

Letters: N samples of the data set, m rows, D dimensions, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import ConfigError
from mbcl.plan import FLOATS, Embeddings
from mbcl.planner import random_chunks

Embed = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From (m,) int64 CPU positions to two (m, D) float tensors, each with a D of its own for the sides of pairs."""
Widths = tuple[int, int]
"""D of both views."""


def embed_shard(embed: Embed, num_samples: int, batch_size: int, world: World, *keys: int) -> Embeddings:
    """Compute this rank's share of the embeddings of all samples. A collective call.

    The samples are split into nearly equal random chunks, a function of ``keys``: seed, epoch and round. One rank
    computes a whole chunk, so the embeddings do not depend on W.

    Raises:
        MbclError: on every rank alike, if shapes or dtypes do not fit, or a value is not finite.
    """
    chunks = random_chunks(num_samples, batch_size, *keys)[world.rank :: world.size]
    shard = collectives.run_and_sync_errors(_embed_chunks, world, embed, chunks, world.device)
    kinds = collectives.gather_objects(None if shard is None else (shard.widths, shard.z1.dtype), world)
    known = {kind for kind in kinds if kind is not None}
    if len(known) > 1:
        raise ConfigError(f"embed: dimensions or dtypes differ between the ranks: {kinds}")
    if shard is not None:
        return shard
    ((widths, dtype),) = known
    z1, z2 = (torch.zeros((0, width), dtype=dtype, device=world.device) for width in widths)
    return Embeddings(z1, z2, torch.zeros(0, dtype=torch.int64))


@torch.no_grad()
def _embed_chunks(embed: Embed, chunks: tuple[Tensor, ...], device: torch.device) -> Embeddings | None:
    """Embed this rank's chunks; None if it has none."""
    parts: list[Embeddings] = []
    for positions in chunks:
        views = embed(positions)
        if not (isinstance(views, tuple | list) and len(views) == 2 and all(isinstance(z, Tensor) for z in views)):
            raise ConfigError(f"embed must return two tensors, found a {type(views).__name__}")
        z1, z2 = views
        check_views("embed", z1, z2, len(positions), parts[0].widths if parts else None)
        parts.append(Embeddings(z1.detach().to(device), z2.detach().to(device), positions))
    return Embeddings.concatenate(parts) if parts else None


def observed_rows(
    indices: Tensor, z1: Tensor, z2: Tensor, num_samples: int, widths: Widths | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the rows of one step; returns positions on the CPU, and both views detached, in float32 or better.

    Raises:
        ConfigError: if shapes, dtypes or positions do not fit.
    """
    if not isinstance(indices, Tensor) or indices.ndim != 1 or indices.dtype != torch.int64:
        found = f"{tuple(indices.shape)} {indices.dtype}" if isinstance(indices, Tensor) else type(indices).__name__
        raise ConfigError(f"observe: indices must be an (m,) int64 tensor, found {found}")
    positions = indices.detach().cpu()
    check_views("observe", z1, z2, len(positions), widths)
    if len(positions) and not (0 <= int(positions.min()) and int(positions.max()) < num_samples):
        raise ConfigError(
            f"observe: indices must be in 0..{num_samples - 1}, found {int(positions.min())}..{int(positions.max())}"
        )
    if len(torch.unique(positions)) != len(positions):
        raise ConfigError("observe: indices hold a sample twice")
    dtype = z1.dtype if z1.dtype == torch.float64 else torch.float32
    return positions, z1.detach().to(device, dtype), z2.detach().to(device, dtype)


def check_views(name: str, z1: Tensor, z2: Tensor, rows: int, widths: Widths | None) -> None:
    """Check that two views are (rows, D) of one float dtype; ``widths`` are the D of earlier rows.

    Raises:
        ConfigError: if they are not.
    """
    first, second = widths or (z1.shape[-1] if z1.ndim else 0, z2.shape[-1] if z2.ndim else 0)
    fits = z1.shape == (rows, first) and z2.shape == (rows, second)
    if not fits or z1.dtype != z2.dtype or z1.dtype not in FLOATS:
        expected = f"({rows}, D)" if widths is None else f"({rows}, {first})"
        if widths is not None and first != second:
            expected += f" and ({rows}, {second})"
        raise ConfigError(
            f"{name}: expected two {expected} tensors of one float dtype, found "
            f"{tuple(z1.shape)} {z1.dtype} and {tuple(z2.shape)} {z2.dtype}"
        )
