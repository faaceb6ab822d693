"""Draws of the views: groups of views, and validation as a mean over draws, against a plain loop over draws."""

from dataclasses import replace
from statistics import fmean

import gloo
import pytest
import torch
from engine import runs
from hypothesis import given
from hypothesis import strategies as st

from mbcl.data import make_views
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine.embedding_pass import (
    ViewKey,
    embed_views,
    groups_of_views,
    key_of_draws,
    pass_size,
    two_views,
    views_of,
)
from mbcl.engine.validation import validate
from mbcl.io.store import LocalStore
from mbcl.metrics import retrieval
from mbcl.seeding import derive


@pytest.fixture
def trainer(tmp_path):
    return Trainer(
        runs.experiment(train={"batch_size": 16, "precision": "float64"}), world=World(), store=LocalStore(tmp_path)
    )


@given(st.integers(2, 60), st.integers(1, 600), st.integers(0, 600))
def test_groups_of_views_fit_one_pass_and_have_every_view_once(num_views, num_samples, more):
    batch_size = num_samples + more
    groups = groups_of_views(num_views, num_samples, batch_size)
    assert [view for group in groups for view in group] == list(range(num_views))
    assert all(len(group) * num_samples <= 2 * batch_size for group in groups)
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1


def test_one_draw_is_one_pass_of_both_views():
    assert groups_of_views(2, num_samples=512, batch_size=512) == [range(2)]


def test_pass_of_several_draws_is_smaller_for_large_images_on_a_cpu(trainer):
    small, large = (replace(trainer.validation, image_size=size) for size in (8, 28))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [pass_size(6, images, 512, cpu) for images in (small, large)] == [256, 167]
    assert [pass_size(num, large, 512, device) for num, device in ((2, cpu), (6, gpu))] == [512, 512]
    assert pass_size(6, large, 20, cpu) == 20


def test_views_of_several_numbers_are_those_of_each_number(trainer):
    images, positions, key = trainer.validation, torch.tensor([3, 0, 11]), ViewKey(5)
    together = views_of(images, positions, key, range(1, 5)).unflatten(0, (4, 3))
    for number, views in enumerate(together, start=1):
        assert torch.equal(views, views_of(images, positions, key, range(number, number + 1)))
        pixels = images.pixels(positions)
        assert torch.equal(views, make_views(pixels, positions, images=images, seed=5, epoch=0, view=number))
    assert torch.equal(two_views(images, positions, key), views_of(images, positions, key, range(2)))


def test_key_of_several_draws_is_the_same_for_all_seeds():
    assert key_of_draws(0, "p", 2) == key_of_draws(7, "p", 20) != key_of_draws(0, "q", 2)
    assert [key_of_draws(seed, "p", 1) for seed in (0, 7)] == [ViewKey(derive(seed, "p")) for seed in (0, 7)]


@pytest.mark.parametrize("batch_size", [7, 20, 64, 512])
def test_embed_views_equals_a_loop_over_views(trainer, batch_size):
    images, model, key = trainer.validation, trainer.learner.model, ViewKey(1)
    found = embed_views(model, images, key, num_views=5, mode="eval", batch_size=batch_size, world=World())
    assert len(found) == 5
    model.eval()
    for number, (rows, positions) in enumerate(found):
        assert positions.sort().values.tolist() == list(range(len(images)))
        with torch.no_grad():
            expected = model(views_of(images, positions, key, range(number, number + 1)).double())
        assert runs.largest_difference({"z": rows}, {"z": expected}) < runs.EXACT


def by_loop(trainer, key: ViewKey, draws: int) -> dict[str, float]:
    images, model, found = trainer.validation, trainer.learner.model.eval(), []
    for draw in range(draws):
        with torch.no_grad():
            views = views_of(images, torch.arange(len(images)), key, range(draw, draw + 2))
            metrics = retrieval(*model(views.double()).chunk(2))
        found.append({name: (metrics[f"u2v/{name}"] + metrics[f"v2u/{name}"]) / 2 for name in ("mrr", "top1")})
    return {f"retrieval/{name}": fmean(each[name] for each in found) for name in ("mrr", "top1")}


@pytest.mark.parametrize(("seed", "draws"), [(0, 1), (3, 1), (3, 4)])
def test_validate_is_the_mean_over_draws_and_directions(trainer, seed, draws):
    """One draw, as published, is that of the trial's seed; several are the same for all seeds."""
    settings = trainer.experiment.evaluation.model_copy(update={"validation_draws": draws})
    found = validate(trainer.learner, trainer.validation, settings, seed=seed, epoch=0)
    key = ViewKey(derive(seed if draws == 1 else 0, "validation views"))
    assert found == pytest.approx(by_loop(trainer, key, draws), rel=runs.EXACT)


def test_training_has_both_validation_metrics_in_its_rows(trainer):
    row = trainer.run().row
    found = by_loop(trainer, ViewKey(derive(0, "validation views")), 5)
    assert (row["val/retrieval/mrr"], row["val/retrieval/top1"]) == pytest.approx(
        (found["retrieval/mrr"], found["retrieval/top1"])
    )


def _validated(world: World, folder: str, batch_size: int) -> dict[str, float]:
    content = runs.exact(evaluation={"batch_size": batch_size})
    trainer = Trainer(content, world=world, store=LocalStore(folder))
    return validate(trainer.learner, trainer.validation, content.evaluation, seed=2, epoch=0)


@pytest.mark.dist
@pytest.mark.parametrize("batch_size", [12, 4])
def test_validation_of_several_draws_is_the_same_on_several_ranks(tmp_path, batch_size):
    """The images are one chunk, whose views the ranks share, or several, which the ranks share in turn."""
    expected = _validated(World(), str(tmp_path), batch_size)
    for found in gloo.run(_validated, 2, str(tmp_path), batch_size):
        assert found == pytest.approx(expected, rel=runs.EXACT)
