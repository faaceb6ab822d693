"""A one-line summary of what planning costs an experiment, for the user who starts it."""

from __future__ import annotations

from mbcl.config.experiment import Experiment


def planning_cost(experiment: Experiment, num_train: int) -> str:
    """Describe how many plans an epoch needs, and how many embedding passes over the whole data set.

    Args:
        experiment: the configuration, already checked against the data.
        num_train: N. A pass embeds two views of each sample.

    Returns:
        One line; empty for samplers without embeddings.
    """
    samplers, embeddings, planner = experiment.samplers(), experiment.embeddings, experiment.planner
    name = experiment.sampler.name
    if not experiment.build_sampler().needs_embeddings:
        return ""
    steps = num_train // experiment.train.batch_size
    lengths = [sampler.plan_length(num_train) for sampler in samplers.values()]
    low, high = -(-steps // max(lengths)), -(-steps // min(lengths))
    period = "an epoch" if planner.every == 1 else f"every {planner.every} epochs"
    one_pass = embeddings.refresh == "epoch" and high > 1
    message = f"{name}: {_several(low, high, 'plan')} {period}, "
    if embeddings.source == "cached":
        message += "on the embeddings that training made: one embedding pass in all, before the first plan"
    else:
        each = "all on one set of" if one_pass else "each on" if high > 1 else "on"
        message += f"{each} fresh embeddings of all {num_train:,} samples: "
        message += f"{_several(1, 1, 'embedding pass') if one_pass else _several(low, high, 'embedding pass')} {period}"
        if high > 1 and not one_pass:
            message += "; embeddings.refresh: epoch makes it 1"
    if planner.warmup_epochs:
        first = "epoch is" if planner.warmup_epochs == 1 else f"{planner.warmup_epochs} epochs are"
        message += f"; the first {first} shuffle's"
    return message + ("; made beside training" if planner.overlap else "")


def _several(low: int, high: int, what: str) -> str:
    """Format a range of counts: ``1 plan``, ``10 plans``, ``5 to 10 plans``."""
    number = f"{high}" if low == high else f"{low} to {high}"
    plural = "" if high == 1 else "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural}"
