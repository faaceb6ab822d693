"""Adapters for experiment trackers (TensorBoard, W&B). Each is an observer, on rank 0 only."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.engine.protocols import BaseObserver, Observer, Row
from mbcl.errors import ConfigError, TrainingError, nearest
from mbcl.io.store import Store

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"
"""The folder that W&B creates itself."""
RESERVED = re.compile(r"[:;,#?/']")
"""Characters that W&B refuses in the id of a run, which may have the name of a folder."""
WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What W&B takes as ``WANDB_MODE``."""


def _measured(row: Row) -> dict[str, float]:
    """Return the metrics of a row that have a value, without epoch and step."""
    return {key: float(value) for key, value in row.items() if value is not None and key not in ("epoch", "step")}


class TensorBoardTracker:
    """A writer of event files in the trial's ``tensorboard/``: loss and learning rate of steps, rows of epochs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        """Return the writer; create it lazily, at the first step of this attempt."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # After a resume, purge_step hides the events that a lost attempt wrote from this step on.
            self._writer = SummaryWriter(str(self._store.local_folder(TENSORBOARD_FOLDER)), purge_step=step)
        return self._writer

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Log loss and learning rate by the number of steps done, which is also the step of an epoch's row."""
        writer = self._open(step + 1)
        writer.add_scalar("step/loss", loss, step + 1)
        writer.add_scalar("step/lr", lr, step + 1)

    def on_checkpoint(self) -> None:
        """Flush the event file and publish it to the store."""
        if self._writer is not None:
            self._writer.flush()
            self._store.publish(TENSORBOARD_FOLDER)

    def on_epoch(self, row: Row) -> None:
        """Log the row by step, so that runs with different batch sizes share an axis."""
        step = int(row["step"] or 0)
        writer = self._open(step)
        for key, value in _measured(row).items():
            writer.add_scalar(key, value, step)
        self.on_checkpoint()

    def close(self) -> None:
        """Close the event file; if an exception is propagating, publish the steps since the last checkpoint."""
        if self._writer is not None:
            self._writer.close()
            if sys.exception() is not None:
                with suppress(OSError):  # the store may be why the training failed
                    self._store.publish(TENSORBOARD_FOLDER)


class WandbTracker(BaseObserver):
    """A W&B run with the given run id that logs the rows of metrics; offline if there is no key.

    Steps are not logged: they are too many for a service, and the rows contain their mean. Checkpoints need no flush,
    because W&B writes continuously.

    Raises:
        TrainingError: if W&B cannot be reached or rejects the key.
    """

    def __init__(self, store: Store, *, run_id: str, group: str, config: Mapping[str, Any]) -> None:
        self._store = store
        self._run = _open_run(store, run_id, group=group or None, config=dict(config))

    def on_epoch(self, row: Row) -> None:
        """Log the row by step."""
        self._run.log(_measured(row), step=int(row["step"] or 0))

    def close(self) -> None:
        """Finish the run; it is marked as failed if an error is propagating, but not an early stop."""
        self._run.finish(exit_code=int(isinstance(sys.exception(), Exception)))
        self._store.publish(WANDB_FOLDER)


def _open_run(store: Store, run_id: str, **options: Any) -> Any:
    """Begin a W&B run, or go on with it if the service has it."""
    import wandb

    mode = _wandb_mode()
    try:
        return wandb.init(
            id=RESERVED.sub("_", run_id) or None,
            name=run_id or None,
            project=os.environ.get("WANDB_PROJECT", "mbcl"),
            dir=str(store.local_folder(WANDB_FOLDER).parent),
            mode=mode,  # type: ignore[arg-type]  # an environment variable may hold any text; checked before
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
            **options,
        )
    except wandb.Error as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(f"track: wandb: {why}; WANDB_MODE=offline keeps the logs in the trial's folder") from error


def log_final(store: Store, *, run_id: str, metrics: Mapping[str, float]) -> None:
    """Add the metrics of the evaluation to the summary of a training's W&B run.

    Offline, they are a further run folder with the same id, which ``wandb sync`` brings together.
    """
    run = _open_run(store, run_id)
    run.summary.update(dict(metrics))
    run.finish()
    store.publish(WANDB_FOLDER)


def _wandb_mode() -> str:
    """Return the mode of W&B: that of ``WANDB_MODE``, or online if there is a key."""
    return os.environ.get("WANDB_MODE") or ("online" if _wandb_key() else "offline")


def _wandb_key() -> bool:
    """Tell whether W&B would find an API key. mbcl never reads the key itself."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


def check_trackers(experiment: Experiment) -> list[str]:
    """Raise if this machine cannot log to a tracker of the experiment.

    Returns:
        Notes for the user on where the logs go, a line each.

    Raises:
        ConfigError: if a tracker's package is missing, or ``WANDB_MODE`` is none of its modes.
    """
    if "wandb" not in experiment.track:
        return []
    if find_spec("wandb") is None:
        raise ConfigError("track: wandb is not installed; pip install 'mbcl[wandb]'")
    mode = _wandb_mode()
    if mode not in WANDB_MODES:
        raise ConfigError(f"track: wandb: found WANDB_MODE={mode}; {nearest(mode, WANDB_MODES)}")
    if mode == "offline" and not os.environ.get("WANDB_MODE"):
        return [
            "track: wandb: there is no API key, so runs are logged offline, into wandb/ of each training; `wandb sync` "
            "uploads them, `wandb login` or WANDB_API_KEY logs online"
        ]
    return []


def build_trackers(experiment: Experiment, store: Store, *, run_id: str, group: str) -> list[Observer]:
    """Create the trackers that ``experiment.track`` names.

    Raises:
        ConfigError: if a tracker's package is missing.
    """
    check_trackers(experiment)
    trackers: list[Observer] = []
    if "tensorboard" in experiment.track:
        trackers.append(TensorBoardTracker(store))
    if "wandb" in experiment.track:
        config = experiment.model_dump(mode="json")
        trackers.append(WandbTracker(store, run_id=run_id, group=group, config=config))
    return trackers
