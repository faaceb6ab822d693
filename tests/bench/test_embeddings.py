"""The data sets of the benchmark are what their descriptions say."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from mbcl.bench.embeddings import Library, digits, fashion_pca, mixture, train_encoder, views
from mbcl.errors import DataError
from mbcl.functional import nt_xent

pytestmark = pytest.mark.filterwarnings("ignore:fashion_mnist.*not the official checksum:UserWarning")


@pytest.fixture
def data_dir(tmp_path):
    """Fashion-MNIST's files with 200 training images: blobs whose place is their class."""
    rng = np.random.default_rng(0)
    for part, num in (("train", 200), ("t10k", 10)):
        labels = rng.integers(0, 10, num, dtype=np.uint8)
        images = rng.integers(0, 30, (num, 28, 28), dtype=np.uint8)
        for row, label in enumerate(labels):
            images[row, 2 * label : 2 * label + 8, 8:14] = 200
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    return str(tmp_path)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_mixtures_have_the_variances_of_their_definition(noise):
    """Sums over independent parts: within a class noise^2 between samples, 0.25 between views."""
    made = mixture(noise, 20_000, seed=3)
    z1, z2 = made.embeddings.z1.double(), made.embeddings.z2.double()
    assert float((z1 - z2).var()) == pytest.approx(2 * 0.25, rel=0.01)
    members = z1[made.labels == 7]
    assert float((members - members.mean(0)).pow(2).mean()) == pytest.approx(noise**2 + 0.25, rel=0.03)
    centres = torch.stack([z1[made.labels == label].mean(0) for label in range(100)])
    assert float(centres.var()) == pytest.approx(1.0 + (noise**2 + 0.25) / 200, rel=0.05)
    assert torch.bincount(made.labels, minlength=100).min() > 100


def test_random_losses_are_those_of_the_first_measurement():
    """NT-Xent of random batches of 32 at temperature 0.1, as measured when these sets were defined."""
    for made, expected in ((mixture(1, 12_800, 0), 0.0217), (mixture(2, 12_800, 0), 0.0071), (digits(0), 0.340)):
        num = len(made) // 32 * 32
        rows = torch.randperm(len(made), generator=torch.Generator().manual_seed(0))[:num].view(-1, 32)
        z1, z2 = made.embeddings.z1[rows], made.embeddings.z2[rows]
        assert float(nt_xent(z1, z2, temperature=0.1).mean()) == pytest.approx(expected, rel=0.06)


def test_a_seed_makes_the_same_data_and_another_seed_others():
    first, again, other = mixture(1, 100, 0), mixture(1, 100, 0), mixture(1, 100, 1)
    assert torch.equal(first.embeddings.z1, again.embeddings.z1)
    assert not torch.equal(first.embeddings.z1, other.embeddings.z1)
    assert not torch.equal(digits(0).embeddings.z2, digits(1).embeddings.z2)


def test_views_shift_by_two_pixels_at_most_and_mirror():
    """One bright pixel: it must lie where one of 25 shifts, mirrored or not, puts it, and everywhere of these."""
    image = np.zeros((4000, 9, 9), dtype=np.float32)
    image[:, 4, 3] = 10.0
    made = views(image, np.random.default_rng(0)).reshape(-1, 9, 9)
    found = {tuple(np.unravel_index(view.argmax(), view.shape)) for view in made}
    allowed = {(row, column) for row in range(2, 7) for column in (*range(1, 6), *range(3, 8))}
    assert found == allowed
    made[made > 5] = 0
    assert made.std() == pytest.approx(0.1, rel=0.02)


def test_principal_components_are_uncorrelated_and_descend(data_dir):
    made = fashion_pca(data_dir, 200, 0)
    z = made.embeddings.z1.double().numpy()
    assert z.shape == (200, 128)
    covariance = np.cov(z, rowvar=False)
    variances = covariance.diagonal()
    assert (np.diff(variances) < 1e-6).all()
    assert np.abs(covariance - np.diag(variances)).max() < 1e-4 * variances[0]
    assert not torch.equal(made.embeddings.z1, made.embeddings.z2)


def test_the_encoder_learns():
    """Images of four coarse squares each, which shifts leave alike."""
    coarse = np.random.default_rng(0).random((128, 2, 2), dtype=np.float32)
    pixels = coarse.repeat(14, axis=1).repeat(14, axis=2)
    z = [torch.from_numpy(views(pixels, np.random.default_rng(seed))) for seed in (1, 2)]
    models = [train_encoder(pixels, 0, steps) for steps in (0, 12)]
    before, after = (float(nt_xent(*(model(x).detach() for x in z), temperature=0.1)) for model in models)
    assert after < 0.9 * before


def test_fashion_mnist_is_made_once_whatever_is_asked_for(data_dir, monkeypatch):
    monkeypatch.setattr("mbcl.bench.embeddings.TRAINING_STEPS", 0)
    library = Library(data_dir, "cpu")
    for name in ("fm_pca", "fm_simclr"):
        made = library.get(name, 64, 0)
        assert made.embeddings.z1.shape == (200, 128)
        assert library.get(name, 128, 1) is made
    assert library.get("mix_1", 64, 0) is not library.get("mix_1", 64, 0)


def test_missing_files_are_an_error_that_names_them(tmp_path):
    with pytest.raises(DataError, match="fashion_mnist: .* holds none of the files"):
        Library(str(tmp_path), "cpu").get("fm_simclr", 0, 0)
