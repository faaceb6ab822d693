"""Specifications of a command line, of samplers and other components: ``refined:sweeps=3``, ``resnet18:stem=small``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature

import numpy as np
from numpy.typing import NDArray

from mbcl.config.yaml_reader import parse_yaml
from mbcl.errors import ConfigError
from mbcl.functional import check_count
from mbcl.samplers import SAMPLERS, Sampler, build

FORM = "NAME or NAME:KEY=VALUE,KEY=VALUE"


@dataclass(frozen=True)
class Spec:
    """A sampler with its given parameters; ``text`` is the specification as given, the sampler's label in tables.

    ``groups`` are the keys ``apart`` and ``together`` of the specification: ``labels``, or the number of samples of
    each random group.
    """

    text: str
    name: str
    parameters: Mapping[str, object]
    groups: Mapping[str, object] = field(default_factory=dict)

    def ids(self, labels: NDArray[np.integer]) -> dict[str, NDArray[np.integer]]:
        """Return the ids of ``apart`` and ``together`` for a data set with these labels."""
        return {
            key: labels if value == "labels" else np.arange(len(labels)) // value  # type: ignore[operator]
            for key, value in self.groups.items()
        }

    def in_pool(self, batch_size: int, num_samples: int) -> Sampler:
        """Build the sampler that plans one pool as a whole, as the published planner does.

        ``osgd`` selects a tenth of the pool's batches, its published share. Given parameters take precedence.
        """
        num_batches = num_samples // batch_size
        defaults: dict[str, dict[str, object]] = {
            "spectral": {"k": num_batches},
            "osgd": {"k": num_batches, "q": max(1, num_batches // 10)},
        }
        return self._build(batch_size, defaults.get(self.name, self._pool(num_samples)))

    def whole(self, batch_size: int) -> Sampler:
        """Build the sampler for a whole data set: one pool, unless ``pool`` was given.

        ``chain`` keeps its pools: a walk over a million samples as one pool would take days.
        """
        return self._build(batch_size, {} if self.name == "chain" else self._pool(None))

    def _pool(self, value: int | None) -> dict[str, object]:
        return {"pool": value} if "pool" in signature(SAMPLERS[self.name]).parameters else {}

    def _build(self, batch_size: int, defaults: Mapping[str, object]) -> Sampler:
        return build(self.name, batch_size=batch_size, **{**defaults, **self.parameters})


def parse_spec(text: str) -> Spec:
    """Parse one specification.

    Raises:
        ConfigError: if the text is malformed, or no sampler has this name.

    Example:
        >>> parse_spec("osgd:k=20,criterion=min").parameters
        {'k': 20, 'criterion': 'min'}
    """
    name, parameters = split_spec("--samplers", text)
    if "batch_size" in parameters:
        raise ConfigError(f"--samplers {text}: batch_size is an option of its own, --batch-size")
    groups: dict[str, object] = {key: parameters.pop(key) for key in ("apart", "together") if key in parameters}
    for key, value in groups.items():
        if value != "labels":
            check_count(f"--samplers {text}: {key}", value)
    try:
        return Spec(text, SAMPLERS.canonical(name), parameters, groups)
    except ConfigError as error:
        raise ConfigError(f"--samplers {text}: {error}") from error


def split_spec(option: str, text: str) -> tuple[str, dict[str, object]]:
    """Split ``NAME:KEY=VALUE,KEY=VALUE`` into the name and the parameters.

    Raises:
        ConfigError: if the text is malformed; the message names the option.

    Example:
        >>> split_spec("--encoder", "resnet18:stem=small")
        ('resnet18', {'stem': 'small'})
    """
    name, colon, rest = text.partition(":")
    parameters: dict[str, object] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in parameters:
            raise ConfigError(f"{option} {text}: expected {FORM}, each key once, found {part!r}")
        parameters[key] = parse_yaml(value, f"{option} {text}")
    return name, parameters
