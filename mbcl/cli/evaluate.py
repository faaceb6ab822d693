"""``mbcl evaluate``: evaluate one or several checkpoints of a training, or an export. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError

if TYPE_CHECKING:
    from mbcl.config.data import Data
    from mbcl.config.evaluation import Evaluation
    from mbcl.config.experiment import Experiment
    from mbcl.io.store import Store

EVALUATIONS = "evaluations"
"""The folder with one ``evaluation.json`` for each checkpoint, if several are evaluated."""

_DESCRIPTION = """\
Evaluate the last valid checkpoint of a trained experiment, or exported weights, and write evaluation.json next to them.
The settings are those of the experiment's evaluation block, changed by these options. What an existing evaluation.json
holds for the same weights, data and settings is not measured again, and stays in it beside the new metrics. An
evaluation.json with other settings is replaced, with a note. The folder of a sweep's trial needs --out, because the
sweep's tables are made from the evaluation.json in it."""

_KEYS = """\
keys for --set:
  similarity=cosine             similarity of retrieval; dot as published
  draws=20                      draws of the two views, of which retrieval is the mean; 1 as published
  validation_draws=5            the same for the validation of a training
  validation_metrics=[]         of a training only
  batch_size=512                images per forward pass
  corrupted.meanings=[within, clean]
                                within the versions of one image, as published; against the clean originals
  corrupted.corruptions=[fog, snow]
                                default: all fifteen, or all that an official set holds
  knn.k=20, knn.weighting=similarity, knn.temperature=0.07
  probe.penalties=[1.0, 0.1, 0.01, 0.001, 0.0001], probe.held_out=0.2

examples:
  mbcl evaluate --checkpoint /tmp/run --metrics retrieval knn probe repr --baselines random pixels
  mbcl evaluate --checkpoint /tmp/run --corrupted --severity 1 3 5
  mbcl evaluate --checkpoint /tmp/run --epochs -1 9 10 --metrics knn
  mbcl evaluate --checkpoint /tmp/run --split train --set similarity=dot"""


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the commands."""
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate checkpoints or an export",
        description=_DESCRIPTION,
        epilog=_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = evaluate.option
    checkpoint = "output folder of a training (it contains checkpoints/), one checkpoint folder, or an export"
    add("--checkpoint", "DIR", checkpoint, required=True)
    epochs = "evaluate the checkpoints after these epochs, each into evaluations/NAME/; 0 or -1: the initial weights"
    add("--epochs", "N", epochs, type=int, nargs="+")
    metrics = "any of retrieval, corrupted, knn, probe, repr (default: those of the experiment)"
    add("--metrics", "NAME", metrics, nargs="+")
    evaluate.flag("--corrupted", "add corrupted retrieval to the other metrics")
    add("--severity", "N", "severities of the corruptions, 1 to 5 (default: all)", type=int, nargs="+")
    folder = "folder of the data set's official corrupted version (default: images are corrupted as needed)"
    add("--corrupted-dir", "DIR", folder)
    baselines = "also evaluate baselines: random (random weights), pixels (raw pixels)"
    add("--baselines", "NAME", baselines, nargs="+")
    split = "test, validation or train; train: the training images, as published but without the validation split"
    add("--split", "NAME", split)
    evaluate.overrides("override a key of the evaluation block")
    add("--data", "NAME", "another data set than that of the training")
    add("--data-dir", "DIR", "folder of the data on this machine")
    out = "folder of evaluation.json (default: that of the checkpoints; required for the trial of a sweep)"
    add("--out", "DIR", out)
    evaluate.plugins(note=" that the training used")
    add("--device", None, "cpu or cuda", "cpu")
    evaluate.flag("--force", "evaluate again even if the result exists")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    import torch

    from mbcl.engine.checkpoint import folder_and_checkpoint
    from mbcl.engine.setup import load_data
    from mbcl.evaluation import evaluate, find_weights, of_epochs
    from mbcl.evaluation.baselines import BASELINES
    from mbcl.io.store import open_store

    folder, checkpoint = folder_and_checkpoint(arguments.checkpoint)
    if arguments.epochs and checkpoint is not None:
        raise ConfigError(
            f"--epochs: chooses among all checkpoints, found {checkpoint}: give the folder of the training"
        )
    store = open_store(folder)
    out = open_store(arguments.out or folder)
    names = of_epochs(store, arguments.epochs) if arguments.epochs else [checkpoint]
    experiments: dict[str, Experiment] = {}
    for name in names:  # read all before the first evaluation, so that a damaged one is refused at once
        weights = find_weights(store, name)
        experiments[name or weights.name] = weights.experiment
    threads = next(iter(experiments.values())).train.threads
    if threads is not None:  # the last bits of sums are those of the trial
        torch.set_num_threads(threads)
    name_of_data, data_dir = _data_and_folder(arguments)
    settings = _settings(next(iter(experiments.values())), arguments)
    load = lru_cache(maxsize=1)(load_data)  # once for all checkpoints
    results = {
        name: evaluate(
            store,
            checkpoint=name if arguments.epochs else checkpoint,
            settings=settings,
            device=arguments.device,
            data=data_of(experiment, name_of_data, data_dir),
            out=out.child(f"{EVALUATIONS}/{name}") if arguments.epochs else out,
            baselines=out.child(BASELINES),
            force=arguments.force,
            keep=True,
            load=load,
            log=lambda line: sys.stderr.write(f"{line}\n"),
            before=_check_out,
        )
        for name, experiment in experiments.items()
    }
    shown = results if arguments.epochs else next(iter(results.values()))
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 0


def _check_out(out: Store, earlier: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Refuse an output folder that must not be written, and print a note if an earlier evaluation will be replaced.

    Raises:
        ConfigError: if the folder cannot be written, or belongs to a trial of a sweep.
    """
    from mbcl.evaluation import EVALUATION_FILE
    from mbcl.io.store import check_writable

    study = _study_of(out)
    if study is not None:
        raise ConfigError(
            f"{out.uri}: belongs to the study {study}, whose tables are made from its {EVALUATION_FILE}; choose "
            f"another folder with --out"
        )
    check_writable(out, "--out")
    lost = _lost_requests(earlier, requested)
    if lost:
        sys.stderr.write(
            f"note: {out.uri}/{EVALUATION_FILE} will be replaced, which was asked for with {', '.join(lost)}; another "
            f"--out keeps both\n"
        )


def _study_of(out: Store) -> str | None:
    """Return the study to which a trial's folder ``STUDY/trials/ID`` belongs; None for any other folder."""
    from mbcl.io.store import open_store
    from mbcl.study.record import STUDY_FILE

    folder, mark, query = out.uri.partition("?")
    parts = folder.rstrip("/").split("/")
    if len(parts) < 3 or parts[-2] != "trials":
        return None
    study = "/".join(parts[:-2]) + mark + query
    return study if study and open_store(study).exists(STUDY_FILE) else None


def _lost_requests(earlier: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Describe the requests of an earlier evaluation that the new one drops or changes; added metrics drop nothing."""
    then, now = ({**request, **request.get("settings", {})} for request in (earlier, requested))
    lost = []
    for key, value in then.items():
        # The views follow from the draws; baselines are measured anew.
        if key in ("settings", "views", "initial_weights") or value == now.get(key):
            continue
        if key in ("metrics", "baselines") and set(value) <= set(now[key]):
            continue
        lost.append(f"{key} {value if isinstance(value, str) else json.dumps(value)}")
    return lost


def _data_and_folder(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """Return data set and folder. An official corrupted set is read as its clean one with ``--corrupted``."""
    from mbcl.data import CORRUPTED

    name, folder = arguments.data, arguments.data_dir
    if name not in CORRUPTED:
        return name, folder
    if folder is None or arguments.corrupted_dir is not None:
        raise ConfigError(f"--data {name}: its folder is given by --data-dir")
    arguments.corrupted, arguments.corrupted_dir = True, folder
    return CORRUPTED[name].clean, None


def _settings(experiment: Experiment, arguments: argparse.Namespace) -> Evaluation:
    """Return the experiment's evaluation block, changed by the options; ``--set`` takes precedence."""
    from mbcl.config.base import apply_overrides, validate
    from mbcl.config.evaluation import Evaluation

    content = experiment.evaluation.model_dump(mode="json")
    content |= {
        key: value for key in ("metrics", "baselines", "split") if (value := getattr(arguments, key)) is not None
    }
    if arguments.corrupted and "corrupted" not in content["metrics"]:
        content["metrics"] = [*content["metrics"], "corrupted"]
    for option, key in (("severity", "severities"), ("corrupted_dir", "dir")):
        value = getattr(arguments, option)
        if value is not None:
            content["corrupted"][key] = value
            if "corrupted" not in content["metrics"]:
                raise ConfigError(
                    f"--{option.replace('_', '-')}: found {value}, but without --corrupted it is not used"
                )
    apply_overrides(content, arguments.set)
    return validate(Evaluation, content, "evaluation")


def data_of(experiment: Experiment, name: str | None, folder: str | None) -> Data:
    """Return the data block: the training's, optionally in another folder, or another data set as a whole."""
    from mbcl.config.base import validate
    from mbcl.config.data import Data
    from mbcl.data import DATASETS

    content = experiment.data.model_dump(mode="json")
    if name is not None and DATASETS.canonical(name) != DATASETS.canonical(experiment.data.name):
        content = {"name": name, **{key: content[key] for key in ("image_size", "validation")}}
    return validate(Data, content if folder is None else {**content, "dir": folder}, "--data")
