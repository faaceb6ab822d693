"""Chosen batches in sentence-transformers: names of functions, and what they do, by a small model made on the spot.

``python examples/sentence_transformer_pairs.py`` compares random batches with planned ones; it downloads nothing.
"""

import importlib
import inspect
import re
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import mbcl
from mbcl.integrations.sentence_transformers import PlannedBatches

MODULES = "numpy", "numpy.linalg", "scipy.signal", "scipy.special", "scipy.stats", "scipy.optimize", "sklearn.metrics"
BATCH_SIZE, SEED = 16, 0


def pairs() -> list[tuple[str, str]]:
    """Return the words of a function's name, and the first sentence of its documentation."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name, value in inspect.getmembers(module, callable):
            text = re.sub(r"^\w+\(.*\)", "", inspect.getdoc(value) or "").strip().split("\n\n")[0]
            if not name.startswith("_") and len(text.split()) > 3:
                found[text] = name.replace("_", " ")
    return [(name, text) for text, name in sorted(found.items())]


def encoder(sentences: list[str]) -> SentenceTransformer:
    """Return a model that averages vectors of word pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(sentences, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=["[UNK]"]))
    torch.manual_seed(SEED)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)], device="cpu")


def train(sampler: str, data: list[tuple[str, str]], epochs: int, **parameters: object) -> SentenceTransformer:
    """Train on batches of a sampler."""
    names, texts = map(list, zip(*data, strict=True))
    model = encoder(names + texts)

    def embed(positions: torch.Tensor) -> list[torch.Tensor]:
        sides = ([side[i] for i in positions.tolist()] for side in (names, texts))
        return [model.encode(side, convert_to_tensor=True) for side in sides]

    made = mbcl.samplers.build(sampler, batch_size=BATCH_SIZE, **parameters)
    if made.needs_embeddings:
        batches = mbcl.torch.PlannedBatchSampler(mbcl.torch.Replanner(made, num_samples=len(data), embed=embed))
    else:
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(made, num_samples=len(data))
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": BATCH_SIZE, "num_train_epochs": epochs, "learning_rate": 0.02}
        quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 10**6}
        planned = PlannedBatches(batches)
        args = SentenceTransformerTrainingArguments(folder, batch_sampler=planned, **options, **quiet)
        data_set, loss = Dataset.from_dict({"name": names, "text": texts}), MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model, args, train_dataset=data_set, loss=loss, callbacks=[planned]).train()
    return model


def main(epochs: int = 5) -> None:
    """Train on random and on planned batches, and find the text of functions that were not trained on."""
    train_data, test_data = [p for i, p in enumerate(pairs()) if i % 4], pairs()[::4]
    for sampler, parameters in (("shuffle", {}), ("refined", {"pool": 64})):
        model = train(sampler, train_data, epochs, **parameters)
        z1, z2 = (model.encode(list(side), convert_to_tensor=True) for side in zip(*test_data, strict=True))
        mrr = mbcl.metrics.retrieval(z1, z2, ks=(1,))["u2v/mrr"]
        print(f"{sampler}: {len(train_data)} pairs; reciprocal rank of the text for a new name {mrr:.3f}")


if __name__ == "__main__":
    main()
