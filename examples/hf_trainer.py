"""Chosen batches in Hugging Face's Trainer: a small BERT made on the spot embeds two noisy readings of each sequence.

``python examples/hf_trainer.py`` compares random batches with planned ones; it downloads nothing. On two ranks:
``torchrun --nproc-per-node 2 examples/hf_trainer.py``.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import mbcl
from mbcl.distributed import collectives
from mbcl.integrations.transformers import train_on

BATCH_SIZE, SEED, GREY = 32, 0, 16


class Digits(torch.utils.data.Dataset):
    """Digits as sequences of 64 grey values, each with the position that it has in the data set."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.images[position], "position": torch.tensor(position)}


class Contrastive(nn.Module):
    """BERT, and the loss of the global batch: each rank gathers the others' embeddings with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        self.bert = BertModel(BertConfig(vocab_size=GREY + 2, max_position_embeddings=64, **size))
        self.criterion = mbcl.objectives.build("simclr", temperature=0.1)

    def embed(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (m, 32) embeddings of two readings, of which each misses a quarter of the values."""
        kept = (torch.rand(tokens.shape, device=tokens.device) > 0.25 for _ in range(2))
        z1, z2 = (self.bert(torch.where(keep, tokens, GREY + 1)).last_hidden_state.mean(1) for keep in kept)
        return z1, z2

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss."""
        world = collectives.current(tokens.device)
        z1, z2 = (collectives.gather_with_grad(z, world) for z in self.embed(tokens))
        return {"loss": self.criterion(z1, z2, None)}


def train(sampler: str, images: torch.Tensor, epochs: int, **parameters: object) -> float:
    """Train on batches of a sampler; return the mean loss."""
    torch.manual_seed(SEED)
    model, dataset = Contrastive(), Digits(images)
    made = mbcl.samplers.build(sampler, batch_size=BATCH_SIZE, **parameters)
    if made.needs_embeddings:
        replanner = mbcl.torch.Replanner(made, num_samples=len(images), embed=lambda rows: model.embed(images[rows]))
        batches = mbcl.torch.PlannedBatchSampler(replanner)
    else:
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(made, num_samples=len(images))
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 10**6}
        args = TrainingArguments(folder, num_train_epochs=epochs, learning_rate=2e-3, **quiet)
        args.per_device_train_batch_size = BATCH_SIZE // args.world_size
        trainer = Trainer(model, args, train_dataset=dataset)
        train_on(trainer, batches)
        return trainer.train().training_loss


if __name__ == "__main__":
    digits = torch.from_numpy(load_digits().data).long()
    for name, options in (("shuffle", {}), ("refined", {"pool": 128})):
        print(f"{name}: mean loss {train(name, digits, 2, **options):.3f}")
