"""A study as pandas frames, for notebooks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from mbcl.errors import ConfigError, pluralize
from mbcl.io.store import open_store
from mbcl.study.histories import read_histories
from mbcl.study.record import read_study
from mbcl.study.settings import settings_of
from mbcl.study.trial_table import trial_table

if TYPE_CHECKING:
    import pandas


class Frames(NamedTuple):
    """The trials of a study, the rows of their epochs, and the plans of these epochs.

    ``trials`` has the columns of ``results.csv`` and ``label``, the name of the setting; ``rows`` has those of
    ``metrics.jsonl``; ``plans`` has the columns ``plan/...`` without their prefix, and only epochs whose batches were
    planned from embeddings. Every row has ``trial_id``, ``label``, ``sampler``, ``objective`` and ``seed``. Trials
    without a ``metrics.jsonl`` have no rows and no plans.
    """

    trials: pandas.DataFrame
    rows: pandas.DataFrame
    plans: pandas.DataFrame


def load(location: str) -> Frames:
    """Load a study from its results folder, which may be unfinished.

    Warns (``UserWarning``) if finished trials have no rows of epochs, as in a published study that left them out.

    Args:
        location: the folder, a path or a URI.

    Raises:
        ConfigError: if it holds no study, or pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("mbcl.study.load: pandas is not installed; pip install pandas") from error
    store = open_store(location)
    study = read_study(store)
    columns, trials = trial_table(study)
    labels = {setting.id: setting.label for setting in settings_of(study)}
    about: dict[int, dict[str, Any]] = {}
    for key, trial in study.ordered().items():
        about[trial.ordinal] = {
            "trial_id": key,
            "label": labels[trial.setting],
            "sampler": trial.sampler,
            "objective": trial.objective,
            "seed": trial.seed,
        }
    names = [known["label"] for known in about.values()]
    rows: list[dict[str, Any]] = []
    plans: list[dict[str, Any]] = []
    histories = read_histories(store, study)
    finished = {trial.ordinal for trial in study.trials.values() if trial.status == "finished"}
    if without := len(finished - histories.keys()):
        warnings.warn(
            f"{location}: {without} of {pluralize(len(finished), 'finished trial')} have no rows of epochs "
            "(metrics.jsonl)",
            stacklevel=2,
        )
    for ordinal, history in histories.items():
        for row in history:
            rows.append(about[ordinal] | row)
            plan = {key.removeprefix("plan/"): value for key, value in row.items() if key.startswith("plan/")}
            if plan:
                plans.append(about[ordinal] | {"epoch": row["epoch"]} | plan)
    frame = pandas.DataFrame(trials, columns=columns)
    frame.insert(1, "label", names)
    first = ["trial_id", "label", "sampler", "objective", "seed", "epoch"]
    return Frames(frame, _frame(rows, first), _frame(plans, first))


def _frame(rows: list[dict[str, Any]], first: list[str]) -> pandas.DataFrame:
    import pandas

    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    return pandas.DataFrame(rows, columns=list(columns))
