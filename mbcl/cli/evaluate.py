"""``mbcl evaluate``: any checkpoint, an export, several checkpoints of a training. Heavy imports come when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError

if TYPE_CHECKING:
    from mbcl.config.experiment import Data, Evaluation, Experiment
    from mbcl.io.store import Store

EVALUATIONS = "evaluations"
"""The folder that has one ``evaluation.json`` a checkpoint, where several are evaluated."""

_DESCRIPTION = """\
Evaluate the last good checkpoint of a trained experiment, or exported weights, and write evaluation.json beside them.
Settings are those of the experiment's evaluation block, changed by these options. What an evaluation.json there holds
already of the same weights, data and settings is not measured again, each metric by itself; one that was asked for with
other settings is replaced, and a note says so. The folder of a sweep's trial needs --out: the sweep's tables are made
from the evaluation.json that is there."""

_KEYS = """\
keys for --set:
  similarity=cosine             of retrieval; dot as published
  batch_size=512                images of a forward pass
  corrupted.meanings=[within, clean]
                                within one image, as published; against the clean originals
  corrupted.corruptions=[fog, snow]
                                all fifteen by default, or all that an official set holds
  knn.k=20, knn.weighting=similarity, knn.temperature=0.07
  probe.penalties=[1.0, 0.1, 0.01, 0.001, 0.0001], probe.held_out=0.2

examples:
  mbcl evaluate --checkpoint /tmp/run --metrics retrieval knn probe repr --baselines random pixels
  mbcl evaluate --checkpoint /tmp/run --corrupted --severity 1 3 5
  mbcl evaluate --checkpoint /tmp/run --epochs -1 9 10 --metrics knn
  mbcl evaluate --checkpoint /tmp/run --split train --set similarity=dot"""


def add_evaluate(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a checkpoint",
        description=_DESCRIPTION,
        epilog=_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        help="the folder that training wrote (with checkpoints/ in it), one checkpoint folder, or an export",
    )
    evaluate.add_argument(
        "--epochs",
        metavar="N",
        type=int,
        nargs="+",
        help="the checkpoints after so many epochs each, into evaluations/NAME/; 0 or -1 for the initial weights",
    )
    evaluate.add_argument(
        "--metrics", metavar="NAME", nargs="+", help="of retrieval, corrupted, knn, probe, repr (default: as trained)"
    )
    evaluate.add_argument("--corrupted", action="store_true", help="corrupted retrieval besides the other metrics")
    evaluate.add_argument("--severity", metavar="N", type=int, nargs="+", help="of corruptions, 1 to 5 (default: all)")
    evaluate.add_argument(
        "--corrupted-dir", metavar="DIR", help="the data set's official corrupted version (default: made as needed)"
    )
    evaluate.add_argument("--baselines", metavar="NAME", nargs="+", help="beside them: random weights, raw pixels")
    evaluate.add_argument(
        "--split",
        metavar="NAME",
        help="test, validation, or train: the images trained on, as published but without the validation split's",
    )
    evaluate.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a key of the evaluation block"
    )
    evaluate.add_argument("--data", metavar="NAME", help="another data set than the one trained on")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where the data lie on this machine")
    evaluate.add_argument(
        "--out",
        metavar="DIR",
        help="where evaluation.json goes (default: beside the checkpoints; to be given for the trial of a sweep)",
    )
    evaluate.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    evaluate.add_argument("--force", action="store_true", help="evaluate even if that was done already")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from mbcl.engine.checkpoint import folder_and_checkpoint
    from mbcl.engine.setup import load_data
    from mbcl.evaluation import evaluate, find_weights, of_epochs
    from mbcl.evaluation.baselines import BASELINES
    from mbcl.evaluation.weights import INITIAL
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
    for name in names:  # all are read before the first is evaluated: a damaged one is refused at once
        weights = find_weights(store, None if name == INITIAL else name)
        experiments[name or weights.name] = weights.experiment
    name_of_data, data_dir = _official(arguments)
    settings = _settings(next(iter(experiments.values())), arguments)
    load = lru_cache(maxsize=1)(load_data)  # once for all checkpoints
    results = {
        name: evaluate(
            store,
            checkpoint=name if arguments.epochs else checkpoint,
            settings=settings,
            device=arguments.device,
            data=_data(experiment, name_of_data, data_dir),
            out=out.child(f"{EVALUATIONS}/{name}") if arguments.epochs else out,
            baselines=out.child(BASELINES),
            force=arguments.force,
            load=load,
            log=lambda line: sys.stderr.write(f"{line}\n"),
            before=_before,
        )
        for name, experiment in experiments.items()
    }
    shown = results if arguments.epochs else next(iter(results.values()))
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 0


def _before(out: Store, earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a folder that is not to be written into, and say what of an earlier evaluation will be gone.

    Raises:
        ConfigError: if the folder cannot be written, or is that of a sweep's trial.
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
    gone = _gone(earlier, asked)
    if gone:
        sys.stderr.write(
            f"note: {out.uri}/{EVALUATION_FILE} will be replaced, which was asked for with {', '.join(gone)}; another "
            f"--out keeps both\n"
        )


def _study_of(out: Store) -> str | None:
    """The study of which a folder is a trial's, ``STUDY/trials/ID``; None if it is none."""
    from mbcl.io.store import open_store
    from mbcl.study.record import STUDY_FILE

    folder, mark, query = out.uri.partition("?")
    parts = folder.rstrip("/").split("/")
    if len(parts) < 3 or parts[-2] != "trials":
        return None
    study = "/".join(parts[:-2]) + mark + query
    return study if study and open_store(study).exists(STUDY_FILE) else None


def _gone(earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What an earlier evaluation was asked for and is not now, in words; more metrics take nothing away."""
    then, now = ({**each, **each.get("settings", {})} for each in (earlier, asked))
    words = []
    for key, value in then.items():
        if key == "settings" or value == now.get(key):
            continue
        if key in ("metrics", "baselines") and set(value) <= set(now[key]):
            continue
        words.append(f"{key} {value if isinstance(value, str) else json.dumps(value)}")
    return words


def _official(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """Data set and folder; an official corrupted set stands for its clean one, and for ``--corrupted``."""
    from mbcl.data import CORRUPTED

    name, folder = arguments.data, arguments.data_dir
    if name not in CORRUPTED:
        return name, folder
    if folder is None or arguments.corrupted_dir is not None:
        raise ConfigError(f"--data {name}: its folder is given by --data-dir")
    arguments.corrupted, arguments.corrupted_dir = True, folder
    return CORRUPTED[name].clean, None


def _settings(experiment: Experiment, arguments: argparse.Namespace) -> Evaluation:
    """The experiment's evaluation block, changed by the options; ``--set`` counts last."""
    from mbcl.config.base import apply_overrides, validate
    from mbcl.config.experiment import Evaluation

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


def _data(experiment: Experiment, name: str | None, folder: str | None) -> Data:
    """The images: those that were trained on, in another folder if one is given, or another data set, whole."""
    from mbcl.config.base import validate
    from mbcl.config.experiment import Data
    from mbcl.data import DATASETS

    content = experiment.data.model_dump(mode="json")
    if name is not None and DATASETS.canonical(name) != DATASETS.canonical(experiment.data.name):
        content = {"name": name, **{key: content[key] for key in ("image_size", "validation")}}
    return validate(Data, content if folder is None else {**content, "dir": folder}, "--data")
