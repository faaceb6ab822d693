"""The options of ``mbcl bench train``, the arms that they select, and the experiment that every arm trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mbcl.bench.measure import check_device
from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.config.sampler_spec import Spec, parse_spec, split_spec
from mbcl.config.train import Precision
from mbcl.data import DATASETS, DatasetSpec, ImageSet, Splits, ViewRecipe
from mbcl.data.datasets.request import LARGEST_SIZE, DatasetRequest
from mbcl.engine import SplitData, check_model
from mbcl.errors import ConfigError, nearest, pluralize
from mbcl.functional import check_choice, check_count
from mbcl.samplers import SAMPLERS
from mbcl.seeding import torch_generator

Kind = Literal["ceiling", "trainer", "usual", "lightly"]
ARMS = ("ceiling", "shuffle", "planned", "usual", "lightly")
"""What ``--arms`` selects: each is one arm or several."""
WARM_UP_EPOCHS = 2
"""Epochs that do not count: libraries are loaded, code is compiled, the planner's process starts."""
POOL = 1280
"""The usual size of a pool; with fewer samples all of them are one pool."""
NUM_VALIDATION = 8
NUM_TEST = 8
NUM_CLASSES = 10
LEAST_IMAGE_SIZE = 8
POOL_BATCHES, OSGD_BATCHES = 40, 20
"""Batches of a pool of ``spectral`` (the published number) and of ``osgd`` (that of the shipped space), at most."""


@dataclass(frozen=True)
class Arm:
    """One way of training the same model.

    Args:
        kind: the loop that trains.
        label: its name in tables.
        threads: torch's threads.
        channels_last: ``train.channels_last``.
        sampler: name and parameters of the trainer's sampler.
        overlap: ``planner.overlap``.
        embeddings: the ``embeddings`` block.
    """

    kind: Kind
    label: str
    threads: int
    channels_last: bool | str
    sampler: Mapping[str, object] = field(default_factory=lambda: {"name": "shuffle"})
    overlap: int = 0
    embeddings: Mapping[str, object] = field(default_factory=lambda: {"source": "fresh"})


@dataclass(frozen=True, kw_only=True)
class TrainBenchSettings:
    """The options of ``mbcl bench train``; its ``--help`` describes them."""

    encoder: str
    image_size: int
    batch_size: int
    samples: int
    epochs: int
    runs: int
    arms: Sequence[str]
    samplers: Sequence[str]
    threads: Sequence[int]
    workers: int
    device: str
    precision: str
    compile: bool
    seed: int
    json: str | None = None
    overwrite: bool = False

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch_size

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")

    def check(self) -> None:
        """Check every option, and each arm's experiment, before the first measurement.

        Raises:
            ConfigError: if a value is not allowed; one line with the value and what is allowed.
        """
        self._check_numbers()
        for option, values, known in (("--arms", self.arms, ARMS), ("--samplers", self.samplers, None)):
            for value in values:
                if known and value not in known:
                    raise ConfigError(f"{option}: unknown {value!r}; {nearest(value, known)}")
            if len(set(values)) < len(values):
                raise ConfigError(f"{option}: each once, found {' '.join(values)}")
        check_choice("--precision", self.precision, get_args(Precision))
        check_device(self.device)
        ceilings, others = self.ceilings(), self.other_arms(channels_last="auto", threads=max(self.threads))
        if not ceilings and not others:
            raise ConfigError("--arms: planned needs a sampler that uses embeddings, found none in --samplers")
        for arm in (*ceilings, *others):
            for sampler in self.experiment(arm).samplers().values():
                try:
                    sampler.check(self.samples)
                except ConfigError as error:
                    raise ConfigError(f"--samplers: {sampler.name}: {error}") from error
        images = random_images(2, self.image_size, self.seed)
        try:
            check_model(self.experiment((*ceilings, *others)[0]), SplitData(images, images, images))
        except ConfigError as error:
            raise ConfigError(f"--encoder {self.encoder}: {error}") from error

    def _check_numbers(self) -> None:
        for option, value in (("--epochs", self.epochs), ("--runs", self.runs)):
            check_count(option, value)
        for threads in self.threads:
            check_count("--threads", threads)
        if len(set(self.threads)) < len(self.threads):
            raise ConfigError(f"--threads: each once, found {' '.join(map(str, self.threads))}")
        check_count("--batch-size", self.batch_size, least=2)
        check_count("--samples", self.samples, least=self.batch_size)
        check_count("--image-size", self.image_size, least=LEAST_IMAGE_SIZE)
        if self.image_size > LARGEST_SIZE:
            raise ConfigError(f"--image-size must be at most {LARGEST_SIZE}, found {self.image_size}")
        check_count("--workers", self.workers, least=0)
        check_count("--seed", self.seed, least=0)

    # -- the arms ------------------------------------------------------------------------------------------------------

    def ceilings(self) -> list[Arm]:
        """Return the arms of the ceiling: every memory format with every number of threads."""
        if "ceiling" not in self.arms:
            return []
        return [
            Arm("ceiling", f"ceiling, {format_}, {pluralize(threads, 'thread')}", threads, format_ == "channels_last")
            for format_ in ("contiguous", "channels_last")
            for threads in self.threads
        ]

    def other_arms(self, *, channels_last: bool | str, threads: int) -> list[Arm]:
        """Return all arms but the ceiling, with the memory format and the threads of the best ceiling."""
        arms: list[Arm] = []
        if "shuffle" in self.arms:
            arms.append(Arm("trainer", "trainer, shuffle", threads, channels_last))
        if "planned" in self.arms:
            arms += [arm for text in self.samplers for arm in self._planned(parse_spec(text), threads, channels_last)]
        if "usual" in self.arms:
            label = f"usual pipeline, {pluralize(self.workers, 'worker')}"
            arms += [
                Arm("usual", f"{label}, contiguous", threads, channels_last=False),  # torch's default
                Arm("usual", f"{label}, channels_last", threads, channels_last=True),
            ]
        if "lightly" in self.arms:
            arms.append(Arm("lightly", f"lightly, {pluralize(self.workers, 'worker')}", threads, channels_last))
        return arms

    def _planned(self, spec: Spec, threads: int, channels_last: bool | str) -> list[Arm]:
        """Return the trainer's arms of a sampler: each overlap with each way of embedding that it allows."""
        osgd = min(OSGD_BATCHES, self.steps)
        defaults: dict[str, dict[str, object]] = {
            "spectral": {"k": min(POOL_BATCHES, self.steps)},
            "osgd": {"k": osgd, "q": max(1, osgd // 4)},
        }
        if "pool" in signature(SAMPLERS[spec.name]).parameters and self.samples < POOL:
            defaults[spec.name] = {"pool": None}  # one pool of all samples
        sampler = {"name": spec.name, **defaults.get(spec.name, {}), **spec.parameters}
        fresh = Arm("trainer", f"trainer, {spec.text}", threads, channels_last, sampler)
        built = self.experiment(fresh).build_sampler()
        if not built.needs_embeddings:
            return []
        other = {"cached": {"source": "cached"}} if built.covers_all else {"fresh an epoch": {"refresh": "epoch"}}
        return [
            replace(fresh, label=f"{fresh.label}, {embeddings}, overlap {overlap}", embeddings=block, overlap=overlap)
            for embeddings, block in ({"fresh": fresh.embeddings} | other).items()
            for overlap in (0, 1)
        ]

    # -- what every arm trains -----------------------------------------------------------------------------------------

    def experiment(self, arm: Arm) -> Experiment:
        """Return the experiment of an arm: the same encoder, objective and optimiser for all.

        Raises:
            ConfigError: if an option does not fit the experiment.
        """
        name, parameters = split_spec("--encoder", self.encoder)
        epochs = WARM_UP_EPOCHS + self.epochs + 1  # the last one has the validation and does not count
        content: dict[str, Any] = {
            "seed": self.seed,
            "data": {
                "name": register_random_images(self.samples, self.image_size, self.seed),
                "validation": NUM_VALIDATION / (self.samples + NUM_VALIDATION),
            },
            "encoder": {"name": name, **parameters},
            "sampler": dict(arm.sampler),
            "schedule": {"warmup_epochs": 1},
            "embeddings": dict(arm.embeddings),
            "planner": {"overlap": arm.overlap},
            "train": {
                "epochs": epochs,
                "eval_every": epochs,
                "batch_size": self.batch_size,
                "keep_checkpoints": 1,
                "precision": self.precision,
                "channels_last": arm.channels_last,
                "compile": self.compile,
            },
            "track": [],
        }
        return validate(Experiment, content, "mbcl bench train")


def random_images(num: int, size: int, seed: int) -> ImageSet:
    """Make random images, (N, 3, S, S) uint8, of ten classes in turn; the speed does not depend on their content."""
    generator = torch_generator(seed, "bench/train images")
    pixels: Tensor = torch.randint(0, 256, (num, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num) % NUM_CLASSES
    return ImageSet(pixels, labels, "random", ViewRecipe(), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=size)


def register_random_images(num: int, size: int, seed: int) -> str:
    """Register random images as a data set of this process, once, and return its name.

    A split of ``NUM_VALIDATION`` leaves ``num`` training images.
    """
    name = f"random_{num}_{size}_{seed}"

    def read(request: DatasetRequest) -> Splits:
        images = random_images(num + NUM_VALIDATION + NUM_TEST, size, seed)
        positions = torch.arange(len(images))
        return Splits(images.part(positions[:-NUM_TEST]), images.part(positions[-NUM_TEST:]))

    if name not in DATASETS:
        DATASETS.register(name)(DatasetSpec(read, "random images of `mbcl bench train`", ""))
    return name
