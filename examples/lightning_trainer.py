"""Chosen batches in Lightning: two noisy views of real digits, a small network, plans from what the steps compute.

``python examples/lightning_trainer.py`` compares random batches with planned ones; it downloads nothing.
"""

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mbcl
from mbcl.distributed import collectives
from mbcl.integrations.lightning import PlannedBatches

BATCH_SIZE, SEED = 32, 0


class Contrastive(LightningModule):
    """An encoder, and the loss of the global batch: each rank gathers the others' embeddings with their gradients."""

    def __init__(self, replanner: mbcl.torch.Replanner | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
        self.criterion = mbcl.objectives.build("simclr", temperature=0.1)
        self.replanner = replanner

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (m, 32) embeddings of two views, of which each misses a quarter of the pixels."""
        views = (images * (torch.rand_like(images) > 0.25) + 0.2 * torch.randn_like(images) for _ in range(2))
        z1, z2 = map(self.encoder, views)
        return z1, z2

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss, and hand the embeddings over to the next plan."""
        images, positions = batch
        z1, z2 = self.embed(images)
        if self.replanner:
            self.replanner.observe(positions, z1, z2)
        world = collectives.current(self.device)
        return self.criterion(*(collectives.gather_with_grad(z, world) for z in (z1, z2)), None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def train(sampler: str, images: torch.Tensor, epochs: int, **parameters: object) -> Contrastive:
    """Train on batches of a sampler; the first epoch of a replanner that only observes is random."""
    seed_everything(SEED, verbose=False)
    made = mbcl.samplers.build(sampler, batch_size=BATCH_SIZE, **parameters)
    replanner = mbcl.torch.Replanner(made, num_samples=len(images)) if made.needs_embeddings else None
    if replanner:
        batches = mbcl.torch.PlannedBatchSampler(replanner)
    else:
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(made, num_samples=len(images))
    module = Contrastive(replanner)
    loader = DataLoader(TensorDataset(images, torch.arange(len(images))), batch_sampler=batches)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": epochs, "accelerator": "cpu", "devices": 1, "use_distributed_sampler": False}
    Trainer(callbacks=[PlannedBatches(batches)], **options, **quiet).fit(module, loader)
    return module


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    digits = torch.from_numpy(load_digits().data).float() / 16
    for name, options in (("shuffle", {}), ("refined", {"pool": 128})):
        trained = train(name, digits[:1500], 10, **options)
        with torch.no_grad():
            top1 = mbcl.metrics.retrieval(*trained.embed(digits[1500:]), ks=(1,))["u2v/top1"]
        lift = f"; its last plan {trained.replanner.newest.lift:.2f} times as hard as random" if options else ""
        print(f"{name}: retrieval top-1 {top1:.3f}{lift}")
