"""A one-line summary of what planning costs an experiment, for the user who starts it."""

from __future__ import annotations

from mbcl.config.experiment import Experiment
from mbcl.engine.setup import Samples
from mbcl.errors import pluralize


def planning_cost(experiment: Experiment, samples: Samples) -> str:
    """Describe in one line how many plans an epoch needs, and how many passes that embed two views of all N samples.

    It is empty for samplers without embeddings. The experiment was checked against the data before.
    """
    samplers, embeddings, planner = experiment.samplers(), experiment.embeddings, experiment.planner
    name = experiment.sampler.name
    if not experiment.build_sampler().needs_embeddings:
        return ""
    steps, num_train = samples.steps_per_epoch(experiment.train.batch_size), samples.number
    lengths = [samples.bind(sampler).plan_length(num_train) for sampler in samplers.values()]
    low, high = -(-steps // max(lengths)), -(-steps // min(lengths))
    low_to = "" if low == high else f"{low} to "
    period = "an epoch" if planner.every == 1 else f"every {planner.every} epochs"
    one_pass = embeddings.refresh == "epoch" and high > 1
    message = f"{name}: {low_to}{pluralize(high, 'plan')} {period}, "
    if embeddings.source == "cached":
        message += "on the embeddings that training made: one embedding pass in all, before the first plan"
    else:
        each = "all on one set of" if one_pass else "each on" if high > 1 else "on"
        message += f"{each} fresh embeddings of all {num_train:,} samples: "
        message += f"{'1 embedding pass' if one_pass else low_to + pluralize(high, 'embedding pass')} {period}"
        if high > 1 and not one_pass:
            message += "; embeddings.refresh: epoch makes it 1"
    if planner.warmup_epochs:
        first = "epoch is" if planner.warmup_epochs == 1 else f"{planner.warmup_epochs} epochs are"
        message += f"; the first {first} shuffle's"
    return message + ("; made beside training" if planner.overlap else "")
