"""What a hard batch looks like: samples of three batches of each setting's last plan, read from ``batches.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.io.store import Store
from mbcl.report.wording import listed
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines, measured_settings

BATCHES_FILE = "batches.json"
MAX_SETTINGS = 6
"""Maximum number of settings whose batches are shown."""
MAX_CLASSES = 6
"""Maximum number of classes that are listed with their numbers."""
_BASE64 = re.compile(r"[A-Za-z0-9+/=]{1,20000}")


@dataclass(frozen=True)
class ShownSample:
    """A sample: its class, and its ``picture`` as PNG in base64 or its ``text``."""

    class_name: str
    picture: str = ""
    text: str = ""


@dataclass(frozen=True)
class ShownBatch:
    """A batch: which one it is, its loss, its size, its classes in words, and some of its samples."""

    which: str
    loss: float
    size: int
    classes: str
    samples: list[ShownSample]


@dataclass(frozen=True)
class SettingBatches:
    """The batches of a setting, of the trial with this seed."""

    label: str
    seed: int
    batches: list[ShownBatch]


def read_batches(store: Store, study: StudyRecord) -> list[SettingBatches]:
    """Read batches of the baseline and of the first settings that have any, each of its first finished seed."""
    settings = measured_settings(study)
    first = {setting.id for setting in baselines(study, settings)}
    keys = {trial.ordinal: key for key, trial in study.trials.items()}
    found: list[SettingBatches] = []
    for setting in sorted(settings, key=lambda setting: setting.id not in first):
        if len(found) == MAX_SETTINGS:
            break
        found += _first_of(store, setting, keys)
    return found


def _first_of(store: Store, setting: Setting, keys: dict[int, str]) -> list[SettingBatches]:
    for trial in setting.finished:
        try:
            content = json.loads(store.read_bytes(f"trials/{keys[trial.ordinal]}/{BATCHES_FILE}"))
            return [SettingBatches(setting.label, trial.seed, [_batch(batch) for batch in content["batches"]])]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a trial of an earlier version, or a damaged file
    return []


def _batch(content: Any) -> ShownBatch:
    samples = [
        ShownSample(
            str(sample["class"]),
            picture=picture if _BASE64.fullmatch(picture := str(sample.get("picture", ""))) else "",
            text=str(sample.get("text", "")),
        )
        for sample in content["samples"]
    ]
    samples.sort(key=lambda sample: sample.class_name)
    counts = {str(name): int(number) for name, number in content["classes"].items()}
    return ShownBatch(str(content["which"]), float(content["loss"]), int(content["size"]), _classes(counts), samples)


def _classes(counts: dict[str, int]) -> str:
    """Describe the classes of a batch, the most frequent first.

    Example:
        >>> _classes({"7": 20, "3": 11, "8": 1})
        '20 of 7, 11 of 3 and 1 of 8'
    """
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    named: Sequence[tuple[str, int]] = ranked[:MAX_CLASSES]
    rest = ranked[MAX_CLASSES:]
    others = [f"{sum(number for _, number in rest)} of {len(rest)} other classes"] if rest else []
    return listed([*(f"{number} of {name}" for name, number in named), *others])
