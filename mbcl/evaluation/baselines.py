"""Baselines of an evaluation: the same metrics for the experiment's initial weights and for raw pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mbcl
from mbcl.config.evaluation import Baseline
from mbcl.config.experiment import Experiment
from mbcl.data.samples import SampleSet
from mbcl.engine.embedding_pass import set_statistics
from mbcl.engine.precision import Compute
from mbcl.engine.setup import model_of
from mbcl.evaluation.subject import Representation
from mbcl.io.store import Store, read_text, write_text
from mbcl.models import ContrastiveModel, digest_of_weights

BASELINES = "baselines"
"""The folder that caches the metrics of baselines for other trials and checkpoints."""
_PIXEL_SIDE = 32


class Pixels:
    """The pixel baseline: features and projection are the normalised pixels, averaged to at most 32 x 32."""

    def features(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) images to (B, C min(H, 32) min(W, 32))."""
        height, width = (min(side, _PIXEL_SIDE) for side in x.shape[-2:])
        return F.adaptive_avg_pool2d(x, (height, width)).flatten(1)

    def project(self, features: Tensor) -> Tensor:
        """Return the features unchanged."""
        return features


def baseline(kind: Baseline, experiment: Experiment, *, train: SampleSet, device: torch.device) -> Representation:
    """Build a baseline: ``random``, the trial's own initial weights in evaluation mode, or ``pixels``."""
    if kind == "pixels":
        return Pixels()
    return untrained(experiment, train=train, device=device)


def untrained(experiment: Experiment, *, train: SampleSet, device: torch.device) -> ContrastiveModel:
    """Build the model with its initial weights in evaluation mode; its batch norms get statistics of training samples.

    Without any their running mean would be 0 and their variance 1, as no trained model has them.
    """
    model = model_of(experiment, in_channels=train.channels).eval()
    Compute.of(experiment.train, device, model).place(model)
    set_statistics(
        model,
        len(train),
        lambda rows: train.clean(rows).to(device),
        seed=experiment.seed,
    )
    return model


def initial_weights(experiment: Experiment) -> dict[str, str]:
    """Return the digest of the file of ``encoder.weights`` under ``weights``; empty if there is none."""
    location = experiment.encoder.get("weights")
    return {"weights": digest_of_weights(location)} if location else {}


class CachedMetrics:
    """A cache entry for the metrics of one piece of a baseline's evaluation, in a folder that trials of a study share.

    The key covers all that they depend on: versions, the experiment's seed and dtype, for ``random`` its model, content
    of initial weights and memory format, the request of the piece, and ``extra`` (data, device).
    """

    def __init__(
        self, store: Store, kind: Baseline, experiment: Experiment, piece: dict[str, Any], **extra: Any
    ) -> None:
        self._store = store
        dump = experiment.model_dump(mode="json")
        model = None
        if kind == "random":
            model = {"encoder": dump["encoder"] | initial_weights(experiment), "projector": dump["projector"]}
            model |= {key: dump["train"][key] for key in ("precision", "channels_last")}
        versions = {"mbcl": mbcl.__version__, "torch": torch.__version__}
        seed, dtype = experiment.seed, str(experiment.train.dtype)
        request = {"baseline": kind, "seed": seed, "model": model, "versions": versions, "dtype": dtype, "piece": piece}
        self._request: dict[str, Any] = request | extra
        text = json.dumps(self._request, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._file = f"{kind}-{piece['metric']}-{digest}.json"

    def read(self) -> dict[str, Any] | None:
        """Return the cached ``metrics`` and their ``draws``; None if there are none, or the file is damaged."""
        try:
            content = json.loads(read_text(self._store, self._file))
            record = {part: dict(content[part]) for part in ("metrics", "draws")}
            return record if content["asked"] == self._request else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the metrics of a record and their draws to the cache."""
        content = {"asked": self._request, "metrics": record["metrics"], "draws": record["draws"]}
        write_text(self._store, self._file, json.dumps(content, indent=1, allow_nan=False))
