"""The evaluation of weights, written to ``evaluation.json``; interrupted evaluations resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import fmean
from typing import Any, Literal

import torch

import mbcl
from mbcl.config.base import validate
from mbcl.config.data import Data
from mbcl.config.evaluation import Baseline, Evaluation
from mbcl.data.samples import differing_sources
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.precision import Compute
from mbcl.engine.setup import SplitData, check_takes, load_data
from mbcl.errors import CheckpointError, ConfigError, DataError
from mbcl.evaluation.baselines import BASELINES, CachedMetrics, baseline, initial_weights, untrained
from mbcl.evaluation.pieces import Piece, note_of_views, pieces_of
from mbcl.evaluation.subject import Representation, Subject
from mbcl.evaluation.weights import INITIAL, find_weights
from mbcl.export import Weights
from mbcl.io.store import Store, read_text, write_text

EVALUATION_FILE = "evaluation.json"
PART_FILE = "evaluation.part.json"
"""The partial result of a running or interrupted evaluation."""
INITIAL_WEIGHTS = "initial_weights"
"""The key of a request for the file that the baseline ``random`` begins with."""

Record = dict[str, Any]
"""A measured piece: its request, under ``asked``, its ``metrics``, and ``draws``, the values of each draw of views."""


def usable_device(name: str) -> torch.device:
    """Return the device of this name, after checking that it works.

    Raises:
        ConfigError: if this machine has no such device.
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
    keep: bool = False,
    load: Callable[..., SplitData] = load_data,
    log: Callable[[str], object] | None = None,
    before: Callable[[Store, Mapping[str, Any], Mapping[str, Any]], object] | None = None,
) -> dict[str, float]:
    """Evaluate weights and write ``evaluation.json``.

    Results for the same weights, data and versions in an existing file are reused, for each metric independently, and
    for each severity of the corrupted ones.

    Args:
        store: the folder of a training or of an export.
        checkpoint: name of a training's checkpoint; the newest valid one by default, ``INITIAL`` for the initial
            weights.
        settings: the evaluation block; the experiment's own by default.
        device: where to compute.
        data: the images, if others than those of training.
        out: where ``evaluation.json`` is written; ``store`` by default.
        earlier: the folder whose ``evaluation.json`` may contain reusable results; ``out`` by default.
        baselines: the cache for metrics of baselines, which evaluations may share; a folder in ``out`` by default.
        force: measure everything again, baselines too.
        keep: also take the metrics and baselines of an existing file for the same weights, data and other settings.
        load: loads data sets, with the arguments of :func:`mbcl.engine.setup.load_data`.
        log: receives one line for each measured piece.
        before: called before anything is measured, with the store of the new ``evaluation.json``, the request of the
            existing file (empty if there is none) and the current request; it may raise to abort.

    Returns:
        Metrics by their contract names, for example ``retrieval/u2v/top1``; those of baselines under
        ``baseline/KIND/``.

    Raises:
        CheckpointError: if the folder has no valid checkpoint, or embeddings are not finite.
        DataError: if the data are missing.
        ConfigError: if the settings do not fit the data.
    """
    weights = find_weights(store, checkpoint)
    settings = settings or weights.experiment.evaluation
    data, out = data or weights.experiment.data, out or store
    existing = _read(earlier or out, EVALUATION_FILE)
    settings, request = _requested(weights, settings, data, existing if keep else {})
    previous = {} if force else existing
    if previous.get("asked") == request and (earlier or out) is out:
        return dict(previous["metrics"])
    if before is not None:
        before(out, existing.get("asked", {}), request)
    start = time.perf_counter()
    used_device, log = usable_device(device), log or (lambda line: None)
    evaluator = _Evaluator(weights, settings, data, used_device, load, log, pieces_of(settings, data.name))
    cache_store = baselines or out.child(BASELINES)
    reusable = _reusable(request, {} if force else _read(out, PART_FILE), previous)
    try:
        records, others = evaluator.measure_missing(reusable, lambda done: _write(out, PART_FILE, request, {}, done))
        of_all = {"": records} | {
            f"baseline/{kind}/": evaluator.baseline(kind, cache_store, force=force) for kind in settings.baselines
        }
    except CheckpointError as error:
        raise CheckpointError(f"{store.uri}: {weights.name}: {error}") from error
    metrics, draws = _values(of_all, "metrics"), _values(of_all, "draws")
    seconds = time.perf_counter() - start
    _write(out, EVALUATION_FILE, request, metrics, records + others, draws=draws, seconds=seconds)
    out.delete(PART_FILE)
    return metrics


def _requested(
    weights: Weights, settings: Evaluation, data: Data, kept: Mapping[str, Any]
) -> tuple[Evaluation, dict[str, Any]]:
    """Return the settings, with the metrics and baselines of a result that is kept, and the request.

    The request is all that the metrics follow from, as plain data. It is stored with them.
    """
    request = {
        "checkpoint": weights.name,
        "sha256": weights.sha256,
        "experiment": weights.experiment.digest,
        "data": data.model_dump(mode="json"),
        "versions": {"mbcl": mbcl.__version__, "torch": torch.__version__},
        "settings": settings.model_dump(mode="json"),
        **note_of_views(settings),
    }
    if _same_but_settings(kept, request):
        settings = _merged(settings, kept["asked"]["settings"])
        request["settings"] = settings.model_dump(mode="json")
    if "random" in settings.baselines and (file := initial_weights(weights.experiment)):
        request[INITIAL_WEIGHTS] = file
    return settings, request


def _reusable(request: Mapping[str, Any], *results: Mapping[str, Any]) -> list[Record]:
    """Return the measured pieces of earlier results of the same request, whatever their settings."""
    return [record for result in results if _same_but_settings(result, request) for record in result["pieces"]]


def _values(of_all: Mapping[str, Sequence[Record]], part: Literal["metrics", "draws"]) -> dict[str, Any]:
    """Return a part of all records by the names of their metrics, under the owner's prefix."""
    return {
        f"{owner}{key}": value
        for owner, found in of_all.items()
        for each in found
        for key, value in each.get(part, {}).items()
    }


@dataclass(frozen=True)
class _Evaluator:
    """An evaluation of weights; images and models are created lazily, when a piece needs them."""

    weights: Weights
    settings: Evaluation
    data: Data
    device: torch.device
    load: Callable[..., SplitData]
    log: Callable[[str], object]
    requested: Sequence[Piece]

    def measure_missing(
        self, done: Sequence[Record], save: Callable[[list[Record]], None]
    ) -> tuple[list[Record], list[Record]]:
        """Measure the pieces that are missing in ``done``.

        After each measurement ``save`` receives all records so far, so that an interrupted evaluation resumes there.

        Returns:
            The records of the requested pieces, and the other records in ``done``.
        """
        records = {_key(record["asked"]): record for record in done}
        subject = cache(lambda: self._subject(self._trained()))
        for piece in self.requested:
            if _key(piece.request) not in records:
                records[_key(piece.request)] = self._measure(piece, subject, "")
                save(list(records.values()))
        requested = [records.pop(_key(piece.request)) for piece in self.requested]
        return requested, list(records.values())

    def baseline(self, kind: Baseline, store: Store, *, force: bool) -> list[Record]:
        """Return the records of a baseline; cached ones are reused unless ``force``."""
        experiment, data, records = self.weights.experiment, self.data.model_dump(mode="json"), []

        @cache
        def subject() -> Subject:
            return self._subject(baseline(kind, experiment, train=self._images.train, device=self.device))

        for piece in self.requested:
            cached = CachedMetrics(store, kind, experiment, piece.request, data=data, device=self.device.type)
            record = None if force else cached.read()
            if record is None:
                record = self._measure(piece, subject, f" of {kind}")
                cached.write(record)
            records.append(record)
        return records

    def _measure(self, piece: Piece, subject: Callable[[], Subject], owner: str) -> Record:
        """Measure a piece and log its duration."""
        start = time.perf_counter()
        measured = piece.measure(subject())
        title = f"{piece.title}{owner}{self._note_on_draws(piece)}"
        self.log(f"{self.weights.name}: {title}: {time.perf_counter() - start:.1f} s")
        draws = {key: list(value) for key, value in measured.items() if isinstance(value, Sequence)}
        metrics = {key: fmean(value) if isinstance(value, Sequence) else value for key, value in measured.items()}
        return {"asked": piece.request, "metrics": metrics, "draws": draws}

    def _note_on_draws(self, piece: Piece) -> str:
        """Return a note if fewer draws than the requested ones were measured, because all would be the same."""
        samples = self._images.part(self.settings.split)
        if "draws" not in piece.request or samples.to_eval_draws(self.settings.draws) == self.settings.draws:
            return ""
        return f", one draw, because {samples.noun}s are measured as they are"

    def _subject(self, representation: Representation) -> Subject:
        """Combine a representation with images and settings."""
        return Subject(
            representation,
            self._images,
            data=self.data,
            settings=self.settings,
            seed=self.weights.experiment.seed,
            device=self.device,
            dtype=self.weights.experiment.train.dtype,
        )

    @cached_property
    def _images(self) -> SplitData:
        """All parts of the data set, checked against the settings and the training's data."""
        images = self.load(self.data, seed=self.weights.experiment.seed)
        is_same = self.data.name == self.weights.experiment.data.name
        if is_same and (differing := differing_sources(self.weights.sources, images.train.sources)):
            raise DataError(f"data: {self.data.name} is not what {self.weights.name} was trained on: {differing}")
        check_evaluation(self.settings, images, name=self.data.name, verify=self.data.verify)
        return images

    def _trained(self) -> Representation:
        """Build the model with the evaluated weights, after checking that it takes the images."""
        experiment, train = self.weights.experiment, self._images.train
        model = self.weights.model(in_channels=train.channels)
        check_takes(model, experiment, self._images.test)
        if self.weights.name == INITIAL:
            return untrained(experiment, train=train, device=self.device)
        return Compute.of(experiment.train, self.device, model).place(model)


def _merged(settings: Evaluation, earlier: Mapping[str, Any]) -> Evaluation:
    """Return settings with the metrics and baselines of an earlier evaluation, if they differ in nothing else."""
    content = settings.model_dump(mode="json")
    merged = {key: [*dict.fromkeys([*earlier[key], *content[key]])] for key in ("metrics", "baselines")}
    if content | merged != {**earlier, **merged}:
        return settings
    return validate(Evaluation, content | merged, "evaluation")


def _key(request: Mapping[str, Any]) -> str:
    """Return a hashable form of a request, independent of the order of its keys."""
    return json.dumps(request, sort_keys=True)


def _same_but_settings(earlier: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Tell whether an earlier result has the same request, apart from the settings and what baselines depend on."""
    left_out = dict.fromkeys(("settings", "views", INITIAL_WEIGHTS))
    return bool(earlier) and {**earlier["asked"], **left_out} == {**request, **left_out}


def _write(
    store: Store,
    name: str,
    request: Mapping[str, Any],
    metrics: Mapping[str, float],
    pieces: Sequence[Record],
    **extra: Any,
) -> None:
    """Write a result file with its request, so that a later evaluation can reuse it."""
    content = {"asked": request, "metrics": metrics, **extra, "pieces": pieces}
    write_text(store, name, json.dumps(content, indent=1, allow_nan=False))


def _read(store: Store, name: str) -> dict[str, Any]:
    """Read an earlier result; empty if there is none or the file is damaged, so that it is measured again."""
    try:
        content = json.loads(read_text(store, name))
        is_valid = isinstance(content["metrics"], dict) and isinstance(content["asked"], dict)
        is_valid = is_valid and all(
            isinstance(record["metrics"], dict) and record["asked"] for record in content["pieces"]
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return dict(content) if is_valid else {}
