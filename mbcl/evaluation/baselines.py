"""Where a representation stands: the same metrics of the experiment's initial weights, and of raw pixels."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mbcl
from mbcl.config.evaluation import Baseline
from mbcl.config.experiment import Experiment
from mbcl.engine.setup import model_of
from mbcl.evaluation.subject import Representation
from mbcl.io.store import Store, read_text, write_text

BASELINES = "baselines"
"""The folder that keeps the metrics of baselines for other trials and checkpoints."""
_PIXEL_SIDE = 32


class Pixels:
    """The image itself as its features and its projection: normalised pixels, averaged to at most 32 x 32."""

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, C min(H, 32) min(W, 32))."""
        height, width = (min(side, _PIXEL_SIDE) for side in x.shape[-2:])
        return F.adaptive_avg_pool2d(x, (height, width)).flatten(1)

    def project(self, features: Tensor) -> Tensor:
        """The same."""
        return features


def baseline(kind: Baseline, experiment: Experiment, *, in_channels: int, device: torch.device) -> Representation:
    """The baseline of a kind: ``random``, the trial's own initial weights, in evaluation mode; ``pixels``."""
    if kind == "pixels":
        return Pixels()
    return model_of(experiment, in_channels=in_channels).eval().to(device)


class Kept:
    """Metrics of one piece of a baseline's evaluation, kept in a store under everything that they follow from.

    Args:
        store: the folder; trials of a study share one.
        kind: which baseline.
        experiment: whose: its seed and dtype, and for ``random`` its model, count.
        piece: what is measured, and its settings.
        more: what else they follow from: data, device.
    """

    def __init__(
        self, store: Store, kind: Baseline, experiment: Experiment, piece: dict[str, Any], **more: Any
    ) -> None:
        self._store = store
        dump = experiment.model_dump(mode="json")
        model = {key: dump[key] for key in ("encoder", "projector")} if kind == "random" else None
        versions = {"mbcl": mbcl.__version__, "torch": torch.__version__}
        self._asked: dict[str, Any] = {"baseline": kind, "seed": experiment.seed, "model": model, "versions": versions}
        self._asked |= {"dtype": str(experiment.train.dtype), "piece": piece, **more}
        text = json.dumps(self._asked, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._file = f"{kind}-{piece['metric']}-{digest}.json"

    def read(self) -> dict[str, float] | None:
        """What was kept; None if there is nothing, or it is damaged."""
        try:
            content = json.loads(read_text(self._store, self._file))
            return dict(content["metrics"]) if content["asked"] == self._asked else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, metrics: dict[str, float]) -> None:
        """Keep metrics."""
        content = {"asked": self._asked, "metrics": metrics}
        write_text(self._store, self._file, json.dumps(content, indent=1, allow_nan=False))
