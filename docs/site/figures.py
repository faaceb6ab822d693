"""The pictures of docs/concepts.md: real computations on scikit-learn's digits, half a minute on one core.

``python docs/site/figures.py`` writes the SVG files of ``docs/figures`` again and prints what they show.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mbcl
from mbcl.errors import SamplerWarning

FOLDER = Path(__file__).parent.parent / "figures"
BATCH_SIZE, TEMPERATURE, EPOCHS = 32, 0.1, 10
POOLS = (2, 4, 8, 16, 32)
"""Batches of a pool: the larger, the harder."""
COLOURS = {"grey": "#7f8792", "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "pink": "#cc79a7"}


def views(images: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two views of (m, 64) images: each with its own noise, and a tenth of the pixels hidden."""

    def view() -> Tensor:
        noisy = images + 0.1 * torch.randn(images.shape, generator=noise)
        return noisy * (torch.rand(images.shape, generator=noise) > 0.1)

    return view(), view()


def trained(images: Tensor) -> Iterator[mbcl.Embeddings]:
    """Train a small encoder on random batches; yield embeddings of new views before each epoch and at the end."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    noise = torch.Generator().manual_seed(0)
    criterion = mbcl.objectives.build("simclr", temperature=TEMPERATURE)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = mbcl.torch.PlannedBatchSampler.from_sampler("shuffle", num_samples=len(images), batch_size=BATCH_SIZE)
    for epoch in range(EPOCHS + 1):
        with torch.no_grad():
            z1, z2 = (model(view) for view in views(images, torch.Generator().manual_seed(epoch)))
        yield mbcl.Embeddings(z1, z2)
        batches.set_epoch(epoch)
        for positions in batches:
            z1, z2 = (model(view) for view in views(images[positions], noise))
            optimizer.zero_grad()
            criterion(z1, z2).backward()
            optimizer.step()


def planned(name: str, embeddings: mbcl.Embeddings, **parameters: Any) -> mbcl.BatchPlan:
    """Plan batches with a sampler; ``apart`` goes to ``plan``."""
    groups = {key: parameters.pop(key) for key in ("apart",) if key in parameters}
    sampler = mbcl.samplers.build(name, batch_size=BATCH_SIZE, **parameters)
    with warnings.catch_warnings():  # 174 to 183 images of a digit, more than there are batches: some must share one
        warnings.filterwarnings("ignore", ".*the largest group of apart", SamplerWarning)
        return sampler.plan(len(embeddings), embeddings, **groups)


def losses(plan: mbcl.BatchPlan, embeddings: mbcl.Embeddings, temperature: float = TEMPERATURE) -> Tensor:
    """(S,) the NT-Xent of each batch of a plan."""
    z1, z2 = embeddings.z1[plan.batches], embeddings.z2[plan.batches]
    return mbcl.functional.nt_xent(z1, z2, temperature=temperature)


def lift(plan: mbcl.BatchPlan, embeddings: mbcl.Embeddings, temperature: float = TEMPERATURE) -> float:
    """Return the mean loss of a plan over that of random batches."""
    return mbcl.samplers.quality(plan, embeddings, temperature=temperature)["lift"]


# -- the figures ---------------------------------------------------------------------------------------------------


def batches(embeddings: list[mbcl.Embeddings], images: Tensor, labels: Tensor, figure: Figure) -> dict[str, float]:
    """Draw sixteen images of a batch of each of three samplers, and the losses of all their batches."""
    figure.set_size_inches(8, 3.1)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
    below = figure.add_subplot(grid[:, 1])
    found = {}
    plans = {
        "random": ("grey", planned("shuffle", embeddings[-1])),
        "k-means, pools of 4 batches": ("blue", planned("kmeans", embeddings[-1], pool=4 * BATCH_SIZE)),
        "refined, the whole data set": ("orange", planned("refined", embeddings[-1], pool=None)),
    }
    for row, (name, (colour, plan)) in enumerate(plans.items()):
        loss_S = losses(plan, embeddings[-1])
        median = plan.batches[loss_S.argsort()[len(loss_S) // 2]]
        strip = torch.nn.functional.pad(images[median[:16]].reshape(16, 8, 8), (1, 0)).permute(1, 0, 2).reshape(8, -1)
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(strip, cmap="gray_r", interpolation="nearest")
        axes.set_title(f"{name}: loss {loss_S[loss_S.argsort()[len(loss_S) // 2]]:.2f}", color=COLOURS[colour])
        axes.set_axis_off()
        below.hist(loss_S.numpy(), bins=np.linspace(0, 3, 61), color=COLOURS[colour], alpha=0.8, label=name)
        found[f"loss of {name}"] = float(loss_S.mean())
        found[f"one digit in {name}"] = mbcl.samplers.same_class_share(plan, labels).value
    below.set(xlabel="NT-Xent of a batch", ylabel="batches", xlim=(0, None))
    below.legend()
    return found


def hardness(embeddings: list[mbcl.Embeddings], images: Tensor, labels: Tensor, figure: Figure) -> dict[str, float]:
    """Draw lift against the size of pools by temperature, and which negatives the gradient comes from."""
    figure.set_size_inches(8, 3.1)
    left, right = figure.subplots(1, 2)
    found = {}
    plans = [planned("kmeans", embeddings[-1], pool=pool * BATCH_SIZE) for pool in POOLS]
    for colour, temperature in zip(("orange", "pink", "blue", "green"), (0.05, 0.1, 0.2, 0.5), strict=True):
        lifts = [lift(plan, embeddings[-1], temperature) for plan in plans]
        left.plot(POOLS, lifts, "o-", color=COLOURS[colour], label=f"temperature {temperature}")
        found[f"lift at {temperature}, pools of 8"] = lifts[POOLS.index(8)]
    left.set(xlabel="batches of a pool (k-means)", ylabel="lift over random batches", xscale="log", xticks=POOLS)
    left.set_xticks(POOLS, [str(pool) for pool in POOLS], minor=False)
    left.minorticks_off()
    left.legend()
    temperatures = np.geomspace(0.03, 1, 24)
    for name, colour, plan in (
        ("random batches", "grey", planned("shuffle", embeddings[-1])),
        ("pools of 8", "blue", plans[2]),
    ):
        shares = [hardest_share(plan, embeddings[-1], temperature) for temperature in temperatures]
        right.plot(temperatures, shares, color=COLOURS[colour], label=name)
        found[f"share of the hardest tenth at 0.1, {name}"] = hardest_share(plan, embeddings[-1], 0.1)
    right.axhline(0.1, color="black", linewidth=0.7, linestyle=":")
    right.set(xlabel="temperature", ylabel="weight of the hardest tenth", xscale="log", ylim=(0, 1))
    right.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    right.legend()
    return found


def hardest_share(plan: mbcl.BatchPlan, embeddings: mbcl.Embeddings, temperature: float) -> float:
    """Return the share of the weight of an anchor's negatives that its hardest tenth has: the mean over anchors."""
    u, v = (mbcl.functional.normalize(z)[plan.batches] for z in (embeddings.z1, embeddings.z2))
    similarity_SBB = u @ v.transpose(1, 2)
    others = ~torch.eye(BATCH_SIZE, dtype=torch.bool)
    weight_SBn = (similarity_SBB[:, others].reshape(len(u), BATCH_SIZE, -1) / temperature).softmax(-1)
    hardest = round(0.1 * (BATCH_SIZE - 1))
    return float(weight_SBn.topk(hardest).values.sum(-1).mean())


def false_negatives(
    embeddings: list[mbcl.Embeddings], images: Tensor, labels: Tensor, figure: Figure
) -> dict[str, float]:
    """Draw the share of pairs of one class against lift, for pools of several sizes and rules that keep pairs apart."""
    figure.set_size_inches(6, 3.6)
    axes = figure.subplots()
    found = {}
    rules: dict[str, tuple[str, dict[str, Any]]] = {
        "no rule": ("orange", {}),
        "relative_margin 0.05": ("blue", {"relative_margin": 0.05}),
        "skip 3": ("pink", {"skip": 3}),
        "apart: labels": ("green", {"apart": labels}),
    }
    for name, (colour, rule) in rules.items():
        plans = [planned("kmeans", embeddings[-1], pool=pool * BATCH_SIZE, **rule) for pool in POOLS]
        lifts = [lift(plan, embeddings[-1]) for plan in plans]
        shares = [mbcl.samplers.same_class_share(plan, labels).value for plan in plans]
        axes.plot(lifts, shares, "o-", color=COLOURS[colour], label=name)
        for pool, x, y in zip(POOLS, lifts, shares, strict=True):
            if name == "no rule":
                axes.annotate(str(pool), (x, y), textcoords="offset points", xytext=(0, 5), ha="center")
        found |= {f"lift, share with {name}, pools of 8": lifts[2], f"share with {name}, pools of 8": shares[2]}
    axes.plot(
        [1], [mbcl.samplers.same_class_share(planned("shuffle", embeddings[-1]), labels).expected], "s", color="black"
    )
    axes.set(xlabel="lift over random batches (square)", ylabel="pairs of one digit", ylim=(0, 1))
    axes.legend()
    return found


def staleness(embeddings: list[mbcl.Embeddings], images: Tensor, labels: Tensor, figure: Figure) -> dict[str, float]:
    """Draw the lift of plans that are kept while training goes on, and of a fresh plan in each epoch."""
    figure.set_size_inches(6, 3.2)
    axes = figure.subplots()
    plans = [planned("refined", each, pool=8 * BATCH_SIZE) for each in embeddings]
    fresh = [lift(plan, each) for plan, each in zip(plans, embeddings, strict=True)]
    axes.plot(range(len(fresh)), fresh, "o-", color="black", label="a fresh plan each epoch")
    found = {"lift of a fresh plan after 5 epochs": fresh[5]}
    for colour, start in zip(("orange", "blue", "green"), (0, 2, 5), strict=True):
        kept = [lift(plans[start], each) for each in embeddings[start:]]
        axes.plot(range(start, len(fresh)), kept, "o-", color=COLOURS[colour], label=f"the plan of epoch {start}, kept")
        found |= {
            f"kept from epoch {start}, of the fresh one's lift, at age {age}": kept[age] / fresh[start + age]
            for age in (1, 5)
        }
    axes.set(xlabel="epochs of training", ylabel="lift over random batches", ylim=(1, None))
    axes.legend()
    return found


Draw = Callable[[list[mbcl.Embeddings], Tensor, Tensor, Figure], dict[str, float]]
FIGURES: dict[str, Draw] = {
    "batches": batches,
    "hardness": hardness,
    "false_negatives": false_negatives,
    "staleness": staleness,
}


def make(folder: Path) -> dict[str, dict[str, float]]:
    """Write all figures into a folder; return the numbers that each shows."""
    content, target = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(content).float() / 16, torch.from_numpy(target).long()
    embeddings = list(trained(images))
    folder.mkdir(parents=True, exist_ok=True)
    style = {"font.size": 9, "axes.titlesize": 9, "legend.frameon": False, "legend.fontsize": 8, "svg.hashsalt": "mbcl"}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    found = {}
    for name, draw in FIGURES.items():
        with mpl.rc_context(style):
            figure = Figure(layout="constrained")
            found[name] = draw(embeddings, images, labels, figure)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the figures")
    for figure, numbers in make(parser.parse_args().out).items():
        print(figure, *(f"  {name}: {number:.3f}" for name, number in numbers.items()), sep="\n")


if __name__ == "__main__":
    main()
