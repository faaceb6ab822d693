"""The examples of other trainers, and what docs/own_loop.md says about them, run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import mbcl

ROOT = Path(__file__).parent.parent.parent


def test_no_example_is_longer_than_80_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")}
    assert len(lengths) >= 6
    assert max(lengths.values()) <= 80, lengths


def test_sentence_transformer_pairs(capsys):
    pytest.importorskip("sentence_transformers")
    example = runpy.run_path(str(ROOT / "examples/sentence_transformer_pairs.py"))
    assert len(example["pairs"]()) > 500
    example["main"](epochs=1)
    shown = re.findall(r"^(\w+): \d+ pairs; .* ([\d.]+)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [sampler for sampler, _ in shown] == ["shuffle", "refined"]
    assert min(float(mrr) for _, mrr in shown) > 0.05, "far above what is found by chance"


def test_hf_trainer():
    pytest.importorskip("transformers")
    from sklearn.datasets import load_digits

    train = runpy.run_path(str(ROOT / "examples/hf_trainer.py"))["train"]
    digits = torch.from_numpy(load_digits().data).long()[:128]
    losses = {epochs: train("refined", digits, epochs, pool=64) for epochs in (1, 5)}
    assert losses[5] < losses[1], "the mean over more epochs is lower"


def test_lightning_trainer():
    pytest.importorskip("lightning")
    from sklearn.datasets import load_digits

    train = runpy.run_path(str(ROOT / "examples/lightning_trainer.py"))["train"]
    digits = torch.from_numpy(load_digits().data).float()[:256] / 16
    module = train("refined", digits, 3, pool=128)
    assert module.replanner.newest.lift > 1, "planned batches are harder than random ones"
    assert train("shuffle", digits, 1).replanner is None


def test_two_tower(capsys):
    example = runpy.run_path(str(ROOT / "examples/two_tower.py"))
    example["main"](epochs=1)
    shares = dict(re.findall(r"^(\w+): ([\d.]+) of the next clicks", capsys.readouterr().out, flags=re.MULTILINE))
    assert sorted(shares) == ["refined", "shuffle"]
    assert min(map(float, shares.values())) > 20 / example["ITEMS"], "above chance"


def test_own_sampler(capsys, monkeypatch):
    monkeypatch.setattr(mbcl.samplers.SAMPLERS, "_parts", dict(mbcl.samplers.SAMPLERS._parts))
    runpy.run_path(str(ROOT / "examples/own_sampler.py"), run_name="__main__")
    losses = dict(re.findall(r"^(\w+): mean loss of a batch ([\d.]+)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert float(losses["axis"]) > float(losses["shuffle"]), "neighbours are hard to tell apart"


# -- the document --------------------------------------------------------------------------------------------------


def section(title: str) -> str:
    """The Python of a section of docs/own_loop.md."""
    text = (ROOT / "docs/own_loop.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return str(block)


def run(title: str, names: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run a section, on a plan of 64 samples in two batches."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mbcl.samplers.build("shuffle", batch_size=32).plan(64, seed=0).save("plan.npz")
    names = {"mbcl": mbcl, "torch": torch, "DataLoader": torch.utils.data.DataLoader} | names
    exec(compile(section(title), f"docs/own_loop.md, {title}", "exec"), names)
    return names


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, position):
        return {"x": torch.full((3,), float(position))}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.steps = nn.Linear(3, 1), 0

    def forward(self, x):
        self.steps += 1
        assert len(x) == 32
        return {"loss": self.layer(x).square().mean()}


def test_the_section_on_sentence_transformers(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    from integrations.test_sentence_transformers import GatheredLoss, encoder, pairs

    model = encoder()
    loss = GatheredLoss(model)
    from datasets import concatenate_datasets

    dataset = concatenate_datasets([pairs(16)] * 4)
    run("sentence-transformers", {"model": model, "dataset": dataset, "loss": loss}, tmp_path, monkeypatch)
    assert [len(batch) for batch in loss.seen] == [32] * 6


def test_the_section_on_the_hugging_face_trainer(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    model = Model()
    run("Hugging Face Trainer", {"model": model, "dataset": Rows()}, tmp_path, monkeypatch)
    assert model.steps == 6


def test_the_section_on_accelerate(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    run("accelerate", {"model": model, "optimizer": optimizer, "dataset": Rows()}, tmp_path, monkeypatch)
    assert model.steps == 4


def test_the_section_on_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    module = Module()
    run("Lightning", {"module": module, "dataset": Rows()}, tmp_path, monkeypatch)
    assert module.model.steps == 4


def test_the_section_on_losses(tmp_path, monkeypatch):
    z1, z2 = torch.randn(2, 8, 3).unbind()
    names = {"z1": z1, "z2": z2, "criterion": mbcl.objectives.build("simclr")}
    made = run("A loss over all ranks", names, tmp_path, monkeypatch)
    assert torch.equal(made["z1"], z1)
