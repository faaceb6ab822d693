"""Studies made by hand for the tests of the report."""

import json
from typing import Any

from mbcl.io.store import LocalStore
from mbcl.study.record import Stopped, StudyRecord, TrialRecord

SHUFFLE = {"name": "shuffle"}
OSGD = {"name": "osgd", "k": 20, "q": 5, "criterion": "max", "score": "ntxent", "temperature": 0.1}
SPECTRAL = {"name": "spectral", "k": 4, "temperature": 0.1}
MRR = "retrieval/mrr"
TOP1 = "retrieval/top1"


def trial(
    ordinal: int, setting: int, seed: int, block: dict[str, Any] = SHUFFLE, value: float | None = None, **other: Any
) -> TrialRecord:
    """A finished trial if it has a value, a pending one otherwise."""
    fields: dict[str, Any] = {
        "ordinal": ordinal,
        "setting": setting,
        "seed": seed,
        "sampler": block["name"],
        "objective": "simclr",
        "parameters": {"sampler": dict(block)},
    }
    if value is not None:
        lift = None if block["name"] == "shuffle" else 1.5 + value / 10
        fields |= {
            "status": "finished",
            "metrics": {MRR: value, TOP1: value / 2, "retrieval/u2v/median_rank": 1, "plan/lift": lift},
            "seconds": {"training": 3.5, "evaluation": 0.25, "total": 4.0},
        }
    return TrialRecord(**(fields | other))


def study(trials: list[TrialRecord], **other: Any) -> StudyRecord:
    fields: dict[str, Any] = {
        "name": "samplers",
        "question": "Does choosing high-loss batches help?",
        "space_digest": "00ff",
        "baseline": {"sampler": {"name": "shuffle"}},
        "metric": "val/retrieval/mrr",
        "mode": "max",
        "versions": {"mbcl": "0.1.0", "python": "3.11"},
        "created": "2026-11-23T10:15:00+00:00",
        "trials": {f"{t.ordinal:03d}-aa": t for t in trials},
    }
    return StudyRecord(**(fields | other))


def grid(values: dict[str, list[float | None]], **other: Any) -> StudyRecord:
    """A study of the three samplers; a value is a finished seed, None a pending one."""
    blocks = {"shuffle": SHUFFLE, "osgd": OSGD, "spectral": SPECTRAL}
    trials: list[TrialRecord] = []
    for setting, (name, seeds) in enumerate(values.items()):
        for seed, value in enumerate(seeds):
            trials.append(trial(len(trials), setting, seed, blocks[name], value))
    return study(trials, **other)


FULL = {"shuffle": [0.80, 0.82, 0.81], "osgd": [0.79, 0.83, 0.80], "spectral": [0.85, 0.88, 0.86]}

EIGHT = {
    "shuffle": [0.800, 0.802, 0.801, 0.799, 0.803, 0.798, 0.800, 0.801],
    "osgd": [0.801, 0.801, 0.802, 0.799, 0.802, 0.799, 0.801, 0.800],
    "spectral": [0.850, 0.851, 0.853, 0.848, 0.852, 0.849, 0.851, 0.850],
}
"""Eight seeds, with which ``spectral`` is better than ``shuffle``, and ``osgd`` equivalent within 0.01."""


def partial() -> StudyRecord:
    """A study with finished, stopped, failed, running and pending trials."""
    record = grid(FULL)
    keys = list(record.trials)
    for key, status in zip(keys[2:8:2], ("failed", "stopped", "running"), strict=True):
        record.trials[key] = record.trials[key].model_copy(update={"status": status, "metrics": {}, "seconds": {}})
    record.trials[keys[2]] = record.trials[keys[2]].model_copy(update={"error": "the loss is nan\nat step 3"})
    record.trials[keys[5]] = trial(5, 1, 2, OSGD)
    return record


def write_histories(store: LocalStore, record: StudyRecord, epochs: int = 3) -> None:
    """A ``metrics.jsonl`` for each trial that has begun."""
    for key, t in record.trials.items():
        if t.status == "pending":
            continue
        rows = [
            {
                "epoch": epoch,
                "train/loss": 2.0 / epoch + t.seed / 10,
                "plan/loss": None,
                "plan/lift": None if t.sampler == "shuffle" else 1.4,
                "val/retrieval/mrr": 0.5 + epoch / 10 if epoch % 2 else None,
                "work/images": 320 * epoch,
                "work/passes": (960 if t.sampler == "shuffle" else 1290) * epoch,
                "time/train": 1.0,
                "time/plan": 0.25,
            }
            for epoch in range(1, epochs + 1)
        ]
        store.write_bytes(f"trials/{key}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def raced() -> StudyRecord:
    """``osgd`` was stopped on its first seed after two of four epochs; shuffle and spectral have all seeds."""
    record = grid({"shuffle": FULL["shuffle"], "osgd": [None] * 3, "spectral": FULL["spectral"]})
    for seed, key in enumerate(list(record.trials)[3:6]):
        stopped = Stopped(
            by="asha",
            epoch=0 if seed else 2,
            of=4,
            metric="val/retrieval/mrr",
            value=None if seed else 0.25,
            first_seed=0,
        )
        record.trials[key] = trial(3 + seed, 1, seed, OSGD, status="stopped", stopped=stopped)
    return record
