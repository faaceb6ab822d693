"""The embeddings on which planners are compared, made from a seed: the same on every machine up to rounding.

Letters: N samples, D dimensions, B images of a training batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mbcl.data import ImageSet
from mbcl.data.datasets import fashion_mnist
from mbcl.data.datasets.request import DatasetRequest
from mbcl.functional import nt_xent
from mbcl.plan import Embeddings
from mbcl.seeding import derive, numpy_generator

NUM_CLASSES = 100
DIMENSIONS = 128
VIEW_NOISE = 0.5
MIX_CHUNK = 2**13
"""Samples of a mixture that are made at a time, so that the peak of memory is little above the result's size."""

FASHION_SAMPLES = 49_920
"""39 pools of 1,280: an epoch of the published planner on 50,000 samples."""
SHIFT = 2
PIXEL_NOISE = 0.1

TRAINING_STEPS = 1200
TRAINING_BATCH = 256
LEARNING_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class DataSet:
    """Two views of N samples, float32 and un-normalised, with the samples' classes, (N,) int64 on the same device."""

    name: str
    embeddings: Embeddings
    labels: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    def map(self, function: Callable[[Tensor], Tensor]) -> DataSet:
        """Return the data set with the results of a function of each of its tensors."""
        embeddings = Embeddings(function(self.embeddings.z1), function(self.embeddings.z2))
        return DataSet(self.name, embeddings, function(self.labels))

    def take(self, rows: Tensor) -> DataSet:
        """Return the samples of these (M,) rows as a new data set."""
        rows = rows.to(self.labels.device)
        return self.map(lambda tensor: tensor[rows])

    def first(self, num_samples: int) -> DataSet:
        """Return the first samples, as views without a copy."""
        return self.map(lambda tensor: tensor[:num_samples])

    def to(self, device: str) -> DataSet:
        """Return the data set on another device."""
        return self.map(lambda tensor: tensor.to(device))


def mixture(noise: float, num_samples: int, seed: int) -> DataSet:
    r"""Two noisy views of samples from 100 Gaussian classes in 128 dimensions.

    .. math:: x = c_y + s\,e, \qquad z_i = x + 0.5\,e_i, \qquad c, e, e_i \sim N(0, I_{128}),\ y \text{ uniform}

    ``noise`` is s, within a class. All scales are a coordinate's standard deviation and nothing is normalised in
    between.
    """
    generator = numpy_generator(seed, "bench/mixture")
    centres = generator.standard_normal((NUM_CLASSES, DIMENSIONS), dtype=np.float32)
    labels = generator.integers(NUM_CLASSES, size=num_samples)
    z1, z2 = (np.empty((num_samples, DIMENSIONS), dtype=np.float32) for _ in range(2))
    for start in range(0, num_samples, MIX_CHUNK):
        part = slice(start, min(start + MIX_CHUNK, num_samples))
        shape = (part.stop - start, DIMENSIONS)
        x_ND = centres[labels[part]] + np.float32(noise) * generator.standard_normal(shape, dtype=np.float32)
        for z in (z1, z2):
            z[part] = x_ND + np.float32(VIEW_NOISE) * generator.standard_normal(shape, dtype=np.float32)
    return DataSet(f"mix_{noise:g}", Embeddings(torch.from_numpy(z1), torch.from_numpy(z2)), torch.from_numpy(labels))


def digits(seed: int) -> DataSet:
    """scikit-learn's 1,797 digits: centred pixels plus noise of half the standard deviation over all pixels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    generator = numpy_generator(seed, "bench/digits")
    x_ND = bunch.data - bunch.data.mean(axis=0)
    scale = VIEW_NOISE * x_ND.std()
    z1, z2 = (torch.from_numpy(x_ND + scale * generator.standard_normal(x_ND.shape)).float() for _ in range(2))
    return DataSet("digits", Embeddings(z1, z2), torch.from_numpy(bunch.target.astype(np.int64)))


def views(images_NHW: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """One view, flattened, of every image in [0, 1].

    It is a shift of up to 2 pixels each way, a mirror image half of the time, and noise of 0.1.
    """
    num, height, width = images_NHW.shape
    padded = np.pad(images_NHW, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    down_N, right_N = generator.integers(0, 2 * SHIFT + 1, size=(2, num))
    column_NW = np.arange(width) + right_N[:, None]
    column_NW = np.where(generator.random((num, 1)) < 0.5, column_NW[:, ::-1], column_NW)
    row_NH = np.arange(height) + down_N[:, None]
    view_NHW: NDArray[np.float32] = padded[np.arange(num)[:, None, None], row_NH[:, :, None], column_NW[:, None, :]]
    view_NHW += np.float32(PIXEL_NOISE) * generator.standard_normal(view_NHW.shape, dtype=np.float32)
    return view_NHW.reshape(num, -1)


@cache
def fashion_pca(data_dir: str | None, num_samples: int, seed: int) -> DataSet:
    """The leading 128 principal components of two views of the first ``num_samples`` training images of Fashion-MNIST.

    Mean and components are those of view 1.
    """
    _, x1_ND, x2_ND, labels = _fashion(data_dir, num_samples, seed)
    mean_D = x1_ND.mean(axis=0)
    _, vectors_DD = np.linalg.eigh(np.cov(x1_ND, rowvar=False))
    basis_DD = vectors_DD[:, ::-1][:, :DIMENSIONS].astype(np.float32)
    z1, z2 = (torch.from_numpy((x_ND - mean_D) @ basis_DD) for x_ND in (x1_ND, x2_ND))
    return DataSet("fm_pca", Embeddings(z1, z2), labels)


@cache
def fashion_simclr(data_dir: str | None, num_samples: int, seed: int) -> DataSet:
    """The views of :func:`fashion_pca`, embedded by a perceptron (784-512-512-128).

    The perceptron is trained with NT-Xent on other views of the same images.
    """
    images_NHW, x1_ND, x2_ND, labels = _fashion(data_dir, num_samples, seed)
    model = train_encoder(images_NHW, seed, TRAINING_STEPS)
    with torch.no_grad():
        z1, z2 = (model(torch.from_numpy(x_ND)) for x_ND in (x1_ND, x2_ND))
    return DataSet("fm_simclr", Embeddings(z1, z2), labels)


def train_encoder(images_NHW: NDArray[np.float32], seed: int, steps: int) -> nn.Module:
    """Train a perceptron with NT-Xent at temperature 0.1, B = 256, Adam 1e-3."""
    with torch.random.fork_rng(devices=[]):
        # torch's layers draw their weights from the global generator; fork_rng restores its state afterwards.
        torch.random.manual_seed(derive(seed, "bench/encoder"))  # noqa: TID251
        model = nn.Sequential(
            nn.Linear(images_NHW[0].size, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, DIMENSIONS)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = numpy_generator(seed, "bench/training")
    for _ in range(steps):
        rows_B = generator.integers(len(images_NHW), size=TRAINING_BATCH)
        x1_BD, x2_BD = (torch.from_numpy(views(images_NHW[rows_B], generator)) for _ in range(2))
        loss = nt_xent(model(x1_BD), model(x2_BD), temperature=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def _fashion(
    data_dir: str | None, num_samples: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], Tensor]:
    """Return the first training images, two views of each, and the labels."""
    train = fashion_mnist.read(DatasetRequest(dir=data_dir)).train
    assert isinstance(train, ImageSet)
    images_NHW = (train.images[:num_samples, 0].float() / 255).numpy()
    generator = numpy_generator(seed, "bench/views")
    return images_NHW, views(images_NHW, generator), views(images_NHW, generator), train.labels[:num_samples]


Maker = Callable[[int, str | None, int], DataSet]

MAKERS: dict[str, Maker] = {
    "mix_0.5": lambda num_samples, data_dir, seed: mixture(0.5, num_samples, seed),
    "mix_1": lambda num_samples, data_dir, seed: mixture(1, num_samples, seed),
    "mix_2": lambda num_samples, data_dir, seed: mixture(2, num_samples, seed),
    "digits": lambda num_samples, data_dir, seed: digits(seed),
    "fm_pca": lambda num_samples, data_dir, seed: fashion_pca(data_dir, FASHION_SAMPLES, 0),
    "fm_simclr": lambda num_samples, data_dir, seed: fashion_simclr(data_dir, FASHION_SAMPLES, 0),
}
"""Each maker takes (requested samples, ``--data-dir``, seed). Only mixtures have the requested number of samples;
Fashion-MNIST's views and encoder are the same for every seed, and are made once."""
