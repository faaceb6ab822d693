"""Chosen batches in a PyTorch loop of one's own: two noisy views of real digits, a small network, a replanner.

``python examples/own_loop.py`` compares random batches with planned ones. It takes seconds and downloads nothing.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mbcl

BATCH_SIZE, SEED = 32, 0


def two_views(images: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Return two views of (m, 64) images: each with its own noise, and a quarter of the pixels hidden."""
    noisy = [images + 0.2 * torch.randn(images.shape, generator=generator) for _ in range(2)]
    return [view * (torch.rand(view.shape, generator=generator) > 0.25) for view in noisy]


def train(sampler: str, images: torch.Tensor, epochs: int, **parameters: object) -> tuple[nn.Module, list[float]]:
    """Train an encoder on batches of a sampler; return it with the mean loss of each epoch."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    noise = torch.Generator().manual_seed(SEED)
    criterion = mbcl.objectives.build("simclr", temperature=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def embed(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view1, view2 = two_views(images[positions], noise)
        return model(view1), model(view2)

    made = mbcl.samplers.build(sampler, batch_size=BATCH_SIZE, **parameters)
    replanner = None
    if made.needs_embeddings:  # embed everything once, then use what the steps compute anyway
        replanner = mbcl.torch.Replanner(made, num_samples=len(images), embed=embed, embeddings="cached", seed=SEED)
        batches = mbcl.torch.PlannedBatchSampler(replanner)
    else:
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(made, num_samples=len(images), seed=SEED)
    loader = DataLoader(TensorDataset(images, torch.arange(len(images))), batch_sampler=batches)

    losses = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        total = 0.0
        for pixels, positions in loader:
            view1, view2 = two_views(pixels, noise)
            z1, z2 = model(view1), model(view2)
            loss = criterion(z1, z2, positions)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if replanner:
                replanner.observe(positions, z1, z2)
            total += loss.item()
        losses.append(total / len(batches))
        lift = f", its plan {replanner.newest.lift:.2f} times as hard as random batches" if replanner else ""
        print(f"{made.name}, epoch {epoch + 1}: loss {losses[-1]:.3f}{lift}")
    return model, losses


def main(epochs: int = 10) -> None:
    """Train on random and on planned batches, and retrieve one view of the test images by the other."""
    images = torch.from_numpy(load_digits().data).float() / 16
    train_images, test_images = images[:1500], images[1500:]
    for sampler, parameters in (("shuffle", {}), ("refined", {"pool": 128})):
        model, _ = train(sampler, train_images, epochs, **parameters)
        with torch.no_grad():
            z1, z2 = map(model, two_views(test_images, torch.Generator().manual_seed(SEED + 1)))
        top1 = mbcl.metrics.retrieval(z1, z2, ks=(1,))["u2v/top1"]
        print(f"{sampler}: retrieval top-1 {top1:.3f}")


if __name__ == "__main__":
    main()
