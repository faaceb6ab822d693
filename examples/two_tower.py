"""Chosen batches for a two-tower recommender: made-up clicks of users on items, one embedding table each.

``python examples/two_tower.py`` compares random batches with planned ones. A batch's other items are the negatives of
its users; planned batches hold items that those users nearly clicked on.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mbcl

USERS, ITEMS, CLICKS, DIMENSIONS, BATCH_SIZE, SEED = 500, 400, 6000, 16, 32, 0


def clicks() -> torch.Tensor:
    """Return (CLICKS, 2) user and item: users click on items near their taste, and on popular ones more often."""
    generator = torch.Generator().manual_seed(SEED)
    tastes, items = (torch.randn(n, 6, generator=generator) for n in (USERS, ITEMS))
    popularity = torch.randn(ITEMS, generator=generator)
    odds = (2 * tastes @ items.T + popularity).softmax(1)
    users = torch.randint(USERS, (CLICKS,), generator=generator)
    return torch.stack([users, torch.multinomial(odds[users], 1, generator=generator).flatten()], 1)


class Towers(nn.Module):
    """A vector of each user, and of each item."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, DIMENSIONS), nn.Embedding(ITEMS, DIMENSIONS)

    def forward(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (m, DIMENSIONS) vectors of the users and of the items of (m, 2) clicks."""
        return self.users(pairs[:, 0]), self.items(pairs[:, 1])


def train(sampler: str, pairs: torch.Tensor, epochs: int, **parameters: object) -> Towers:
    """Train on batches of a sampler."""
    torch.manual_seed(SEED)
    towers = Towers()
    criterion = mbcl.objectives.build("clip", temperature=0.1)
    optimizer = torch.optim.Adam(towers.parameters(), lr=5e-3)
    made = mbcl.samplers.build(sampler, batch_size=BATCH_SIZE, **parameters)
    if made.needs_embeddings:
        replanner = mbcl.torch.Replanner(made, num_samples=len(pairs), embed=lambda rows: towers(pairs[rows]))
        batches = mbcl.torch.PlannedBatchSampler(replanner)
    else:
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(made, num_samples=len(pairs))
    loader = DataLoader(TensorDataset(pairs), batch_sampler=batches)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for (batch,) in loader:
            optimizer.zero_grad()
            criterion(*towers(batch), None).backward()
            optimizer.step()
    return towers


@torch.no_grad()
def recall(towers: Towers, pairs: torch.Tensor, k: int = 20) -> float:
    """Return the share of clicks whose item is among the k nearest of all items."""
    users, items = (nn.functional.normalize(table.weight) for table in (towers.users, towers.items))
    nearest = (users[pairs[:, 0]] @ items.T).topk(k).indices
    return (nearest == pairs[:, 1:]).any(1).float().mean().item()


def main(epochs: int = 10) -> None:
    """Train on random and on planned batches, and recommend items that were not trained on."""
    pairs = clicks()
    train_pairs, test_pairs = pairs[:5000], pairs[5000:]
    for sampler, parameters in (("shuffle", {}), ("refined", {"pool": 128})):
        towers = train(sampler, train_pairs, epochs, **parameters)
        print(f"{sampler}: {recall(towers, test_pairs):.3f} of the next clicks are among 20 of {ITEMS} items")


if __name__ == "__main__":
    main()
