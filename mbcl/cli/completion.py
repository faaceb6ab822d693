"""The names that a shell completes: of components, data sets, metrics and keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator


def add_names(top: argparse.ArgumentParser) -> None:
    """Give the options of a parser that take names these names as choices. It is then for completion only.

    Published names and parameters are accepted, too, so that the parser of a command has no choices.
    """
    names = _names()
    for command, action in _actions(top):
        words = names.get(f"{command} {action.dest}", names.get(action.dest))
        if words is not None and action.choices is None:
            action.choices = list(dict.fromkeys(words))


def _actions(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """Yield the actions of a parser and of its subcommands, each with the name of its command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _actions(inner, name)
        else:
            yield command, action


def _names() -> dict[str, Iterable[str]]:
    """Return names by the destination of an option, or by command and destination."""
    from mbcl.config.components import COMPONENTS, registry_of
    from mbcl.config.evaluation import Baseline, Metric
    from mbcl.config.experiment import Experiment
    from mbcl.config.reference import keys_of
    from mbcl.data import CORRUPTED, DATASETS

    components = {part: [*registry_of(part)] for part in COMPONENTS}
    everything = [*(name for names in components.values() for name in names), *DATASETS, *CORRUPTED]
    return {
        "sampler": components["sampler"],
        "samplers": components["sampler"],
        "objectives": components["objective"],
        "encoder": components["encoder"],
        "data": [*DATASETS, *CORRUPTED],
        "metrics": Metric.__args__,  # type: ignore[attr-defined]
        "baselines": Baseline.__args__,  # type: ignore[attr-defined]
        "split": ("test", "validation", "train"),
        "list name": everything,
        "explain name": [*everything, *(key.path for key in keys_of(Experiment))],
    }
