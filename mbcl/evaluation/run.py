"""From weights and settings to ``evaluation.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Protocol

import torch

import mbcl
from mbcl.config.evaluation import Baseline
from mbcl.config.experiment import Data, Evaluation
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.setup import SplitData, check_takes, load_data
from mbcl.errors import CheckpointError, ConfigError
from mbcl.evaluation.baselines import BASELINES, Kept, baseline
from mbcl.evaluation.pieces import Piece, pieces_of
from mbcl.evaluation.subject import Representation, Subject
from mbcl.evaluation.weights import INITIAL, Weights, find_weights, initial_weights
from mbcl.io.store import Store, read_text, write_text

EVALUATION_FILE = "evaluation.json"
PART_FILE = "evaluation.part.json"
"""What is measured of an evaluation that goes on, or was interrupted."""

Record = dict[str, Any]
"""A piece that was measured: what was ``asked``, and its ``metrics``."""


class LoadData(Protocol):
    """Reads a data set and splits it; :func:`mbcl.engine.setup.load_data`."""

    def __call__(self, data: Data, *, seed: int) -> SplitData:
        """All parts of it."""


def usable_device(name: str) -> torch.device:
    """The device of this name, if this machine has it.

    Raises:
        ConfigError: if there is no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} cannot be used here; allowed: cpu, cuda, cuda:N")
    return device


def evaluate(
    store: Store,
    *,
    checkpoint: str | None = None,
    settings: Evaluation | None = None,
    device: str = "cpu",
    data: Data | None = None,
    out: Store | None = None,
    earlier: Store | None = None,
    baselines: Store | None = None,
    force: bool = False,
    load: LoadData = load_data,
    log: Callable[[str], object] | None = None,
    before: Callable[[Store, Mapping[str, Any], Mapping[str, Any]], object] | None = None,
) -> dict[str, float]:
    """Evaluate weights and write ``evaluation.json``.

    What such a file holds already of the same weights, data and versions is not measured again: each metric by itself,
    and each severity of the corrupted ones.

    Args:
        store: the folder of a training or of an export.
        checkpoint: which one of a training; the last good one by default, the initial weights as ``INITIAL``.
        settings: what to measure; the experiment's own by default.
        device: where to compute.
        data: the images, if others than those of training.
        out: where ``evaluation.json`` goes; ``store`` by default.
        earlier: whose ``evaluation.json`` may hold some of it; ``out`` by default.
        baselines: where metrics of baselines are kept for others; a folder in ``out`` by default.
        force: measure all of it again, baselines too.
        load: reads data sets.
        log: is told what was measured, a line each.
        before: is told, before anything is measured, where ``evaluation.json`` will be written, what the one that is
            there was asked for (nothing if there is none) and what is asked for now; it may refuse by raising.

    Returns:
        Metrics by their contract names, for example ``retrieval/u2v/top1``; those of baselines under
        ``baseline/KIND/``.

    Raises:
        CheckpointError: if the folder holds no whole checkpoint, or embeddings are not finite.
        DataError: if the data are missing.
        ConfigError: if settings and data do not go together.
    """
    weights = initial_weights(store) if checkpoint == INITIAL else find_weights(store, checkpoint)
    settings = settings or weights.experiment.evaluation
    data = data or weights.experiment.data
    asked = {
        "checkpoint": weights.name,
        "sha256": weights.sha256,
        "experiment": weights.experiment.digest,
        "data": data.model_dump(mode="json"),
        "versions": {"mbcl": mbcl.__version__, "torch": torch.__version__},
        "settings": settings.model_dump(mode="json"),
    }
    out = out or store
    place = earlier or out
    there = _read(place, EVALUATION_FILE)
    done = {} if force else there
    if done.get("asked") == asked and place is out:
        return dict(done["metrics"])
    if before is not None:
        before(out, there.get("asked", {}), asked)
    start = time.perf_counter()
    run = _Run(weights, settings, data, usable_device(device), load, log or (lambda line: None))
    kept = baselines or out.child(BASELINES)
    begun = {} if force else _read(out, PART_FILE)
    try:
        known = [record for each in (begun, done) if _same_but_settings(each, asked) for record in each["pieces"]]
        pieces, others = run.pieces(known, lambda records: _write(out, PART_FILE, asked, {}, records))
        metrics = {key: value for record in pieces for key, value in record["metrics"].items()}
        for kind in settings.baselines:
            found = run.baseline(kind, kept, force=force)
            metrics |= {f"baseline/{kind}/{key}": value for key, value in found.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{store.uri}: {weights.name}: {error}") from error
    _write(out, EVALUATION_FILE, asked, metrics, pieces + others, seconds=time.perf_counter() - start)
    out.delete(PART_FILE)
    return metrics


class _Run:
    """One evaluation of weights: images and models are made when a piece needs them.

    Args:
        weights: what is evaluated.
        settings: what is measured.
        data: the data set.
        device: where to compute.
        load: reads it.
        log: is told what was measured.
    """

    def __init__(
        self,
        weights: Weights,
        settings: Evaluation,
        data: Data,
        device: torch.device,
        load: LoadData,
        log: Callable[[str], object],
    ) -> None:
        self._weights = weights
        self._experiment = weights.experiment
        self._settings = settings
        self._data = data
        self._device = device
        self._load = load
        self._log = log
        self._pieces = pieces_of(settings, data.name)

    def pieces(self, done: Sequence[Record], keep: Callable[[list[Record]], None]) -> tuple[list[Record], list[Record]]:
        """Records of what is asked for, those in ``done`` taken from there, and what else is in ``done``.

        What is measured is kept at once, with all that was known before.
        """
        known = {_key(record["asked"]): record for record in done}
        subject = cache(lambda: self._subject(self._trained()))
        for piece in self._pieces:
            if _key(piece.asked) not in known:
                known[_key(piece.asked)] = {"asked": piece.asked, "metrics": self._measured(piece, subject, "")}
                keep(list(known.values()))
        found = [known.pop(_key(piece.asked)) for piece in self._pieces]
        return found, list(known.values())

    def baseline(self, kind: Baseline, kept: Store, *, force: bool) -> dict[str, float]:
        """Metrics of a baseline, those that are kept already taken from there unless ``force``."""
        subject = cache(lambda: self._subject(self._baseline(kind)))
        data, metrics = self._data.model_dump(mode="json"), dict[str, float]()
        for piece in self._pieces:
            place = Kept(kept, kind, self._experiment, piece.asked, data=data, device=self._device.type)
            found = None if force else place.read()
            if found is None:
                found = self._measured(piece, subject, f" of {kind}")
                place.write(found)
            metrics |= found
        return metrics

    def _measured(self, piece: Piece, subject: Callable[[], Subject], owner: str) -> dict[str, float]:
        start = time.perf_counter()
        metrics = piece.measure(subject())
        self._log(f"{self._weights.name}: {piece.title}{owner}: {time.perf_counter() - start:.1f} s")
        return metrics

    def _subject(self, representation: Representation) -> Subject:
        return Subject(
            representation,
            self._images,
            data=self._data,
            settings=self._settings,
            seed=self._experiment.seed,
            device=self._device,
            dtype=self._experiment.train.dtype,
        )

    @cached_property
    def _images(self) -> SplitData:
        images = self._load(self._data, seed=self._experiment.seed)
        check_evaluation(self._settings, images, name=self._data.name, verify=self._data.verify)
        return images

    def _trained(self) -> Representation:
        model = self._weights.model(in_channels=self._images.train.channels)
        check_takes(model, self._experiment, self._images.test)
        return model.to(self._device)

    def _baseline(self, kind: Baseline) -> Representation:
        return baseline(kind, self._experiment, in_channels=self._images.train.channels, device=self._device)


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True)


def _same_but_settings(earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return bool(earlier) and {**earlier["asked"], "settings": None} == {**asked, "settings": None}


def _write(
    store: Store,
    name: str,
    asked: Mapping[str, Any],
    metrics: Mapping[str, float],
    pieces: Sequence[Record],
    **more: float,
) -> None:
    content = {"asked": asked, "metrics": metrics, **more, "pieces": pieces}
    write_text(store, name, json.dumps(content, indent=1, allow_nan=False))


def _read(store: Store, name: str) -> dict[str, Any]:
    """What an earlier evaluation left; nothing if there is none or it is damaged, and is then made again."""
    try:
        content = json.loads(read_text(store, name))
        whole = isinstance(content["metrics"], dict) and isinstance(content["asked"], dict)
        whole = whole and all(isinstance(record["metrics"], dict) and record["asked"] for record in content["pieces"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return dict(content) if whole else {}
