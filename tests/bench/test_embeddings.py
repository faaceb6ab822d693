"""The data sets of the benchmark have their documented properties."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from mbcl.bench.embeddings import MAKERS, digits, fashion_pca, mixture, train_encoder, views
from mbcl.errors import DataError
from mbcl.functional import nt_xent

pytestmark = pytest.mark.filterwarnings("ignore:fashion_mnist.*not the official checksum:UserWarning")


@pytest.fixture
def data_dir(tmp_path):
    """Fashion-MNIST's files with 200 training images: blobs at a position given by their class."""
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
def test_mixture_has_the_variances_of_its_definition(noise):
    """The variance within a class is noise^2 between samples plus 0.25 between views."""
    data = mixture(noise, 20_000, seed=3)
    z1, z2 = data.embeddings.z1.double(), data.embeddings.z2.double()
    assert float((z1 - z2).var()) == pytest.approx(2 * 0.25, rel=0.01)
    members = z1[data.labels == 7]
    assert float((members - members.mean(0)).pow(2).mean()) == pytest.approx(noise**2 + 0.25, rel=0.03)
    centres = torch.stack([z1[data.labels == label].mean(0) for label in range(100)])
    assert float(centres.var()) == pytest.approx(1.0 + (noise**2 + 0.25) / 200, rel=0.05)
    assert torch.bincount(data.labels, minlength=100).min() > 100


def test_mixture_and_digits_have_the_first_measured_random_loss():
    """NT-Xent of random batches of 32 at temperature 0.1, as measured when these sets were defined."""
    for data, expected in ((mixture(1, 12_800, 0), 0.0217), (mixture(2, 12_800, 0), 0.0071), (digits(0), 0.340)):
        num = len(data) // 32 * 32
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num].view(-1, 32)
        z1, z2 = data.embeddings.z1[rows], data.embeddings.z2[rows]
        assert float(nt_xent(z1, z2, temperature=0.1).mean()) == pytest.approx(expected, rel=0.06)


def test_mixture_and_digits_depend_on_the_seed():
    first, again, other = mixture(1, 100, 0), mixture(1, 100, 0), mixture(1, 100, 1)
    assert torch.equal(first.embeddings.z1, again.embeddings.z1)
    assert not torch.equal(first.embeddings.z1, other.embeddings.z1)
    assert not torch.equal(digits(0).embeddings.z2, digits(1).embeddings.z2)


def test_views_shift_by_at_most_two_pixels_and_mirror():
    """One bright pixel appears at every position of the 25 shifts, mirrored or not, and at no other."""
    image = np.zeros((4000, 9, 9), dtype=np.float32)
    image[:, 4, 3] = 10.0
    shifted = views(image, np.random.default_rng(0)).reshape(-1, 9, 9)
    positions = {tuple(np.unravel_index(view.argmax(), view.shape)) for view in shifted}
    allowed = {(row, column) for row in range(2, 7) for column in (*range(1, 6), *range(3, 8))}
    assert positions == allowed
    shifted[shifted > 5] = 0
    assert shifted.std() == pytest.approx(0.1, rel=0.02)


def test_fashion_pca_components_are_uncorrelated_and_descending(data_dir):
    data = fashion_pca(data_dir, 200, 0)
    z = data.embeddings.z1.double().numpy()
    assert z.shape == (200, 128)
    covariance = np.cov(z, rowvar=False)
    variances = covariance.diagonal()
    assert (np.diff(variances) < 1e-6).all()
    assert np.abs(covariance - np.diag(variances)).max() < 1e-4 * variances[0]
    assert not torch.equal(data.embeddings.z1, data.embeddings.z2)


def test_train_encoder_lowers_the_loss():
    """Images of four large squares, which shifts hardly change."""
    coarse = np.random.default_rng(0).random((128, 2, 2), dtype=np.float32)
    pixels = coarse.repeat(14, axis=1).repeat(14, axis=2)
    z = [torch.from_numpy(views(pixels, np.random.default_rng(seed))) for seed in (1, 2)]
    models = [train_encoder(pixels, 0, steps) for steps in (0, 12)]
    before, after = (float(nt_xent(*(model(x).detach() for x in z), temperature=0.1)) for model in models)
    assert after < 0.9 * before


def test_makers_make_fashion_mnist_once(data_dir, monkeypatch):
    monkeypatch.setattr("mbcl.bench.embeddings.TRAINING_STEPS", 0)
    for name in ("fm_pca", "fm_simclr"):
        data = MAKERS[name](64, data_dir, 0)
        assert data.embeddings.z1.shape == (200, 128)
        assert MAKERS[name](128, data_dir, 1) is data
    assert MAKERS["mix_1"](64, data_dir, 0) is not MAKERS["mix_1"](64, data_dir, 0)


def test_makers_name_missing_files(tmp_path):
    with pytest.raises(DataError, match="fashion_mnist: .* holds none of the files"):
        MAKERS["fm_simclr"](0, str(tmp_path), 0)
