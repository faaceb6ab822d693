"""What planning costs an experiment, in words for a person who is about to start it."""

from __future__ import annotations

from mbcl.config.experiment import Experiment


def planning_cost(experiment: Experiment, num_train: int) -> str:
    """How many plans an epoch needs, and how many forward passes of the whole data set for their embeddings.

    Args:
        experiment: the configuration, which fits the data.
        num_train: N. A pass embeds two views of each of them.

    Returns:
        One line; empty for samplers without embeddings.
    """
    samplers, embeddings, planner = experiment.samplers(), experiment.embeddings, experiment.planner
    name = experiment.sampler.name
    if not experiment.build_sampler().needs_embeddings:
        return ""
    steps = num_train // experiment.train.batch_size
    lengths = [sampler.plan_length(num_train) for sampler in samplers.values()]
    fewest, most = -(-steps // max(lengths)), -(-steps // min(lengths))
    period = "an epoch" if planner.every == 1 else f"every {planner.every} epochs"
    together = embeddings.refresh == "epoch" and most > 1
    words = f"{name}: {_several(fewest, most, 'plan')} {period}, "
    if embeddings.source == "cached":
        words += "on the embeddings that training made: one embedding pass in all, before the first plan"
    else:
        each = "all on one set of" if together else "each on" if most > 1 else "on"
        words += f"{each} fresh embeddings of all {num_train:,} samples: "
        words += (
            f"{_several(1, 1, 'embedding pass') if together else _several(fewest, most, 'embedding pass')} {period}"
        )
        if most > 1 and not together:
            words += "; embeddings.refresh: epoch makes it 1"
    if planner.warmup_epochs:
        first = "epoch is" if planner.warmup_epochs == 1 else f"{planner.warmup_epochs} epochs are"
        words += f"; the first {first} shuffle's"
    return words + ("; made beside training" if planner.overlap else "")


def _several(fewest: int, most: int, what: str) -> str:
    """``1 plan``, ``10 plans``, ``5 to 10 plans``."""
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    plural = "" if most == 1 else "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural}"
