"""JSON Schemas of spaces and experiments, and the reference of all keys, from the classes of the configuration.

``python -m mbcl.orchestration.search_space.json_schema`` writes them again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mbcl.config.base import parameters_model
from mbcl.config.components import COMPONENTS, registry_of, shared_parameters
from mbcl.config.experiment import PLUGINS_SCHEMA, Experiment
from mbcl.config.reference import Key, in_words, keys_of, table
from mbcl.orchestration.search_space.domains import LISTS, RANGES, TIE
from mbcl.orchestration.search_space.schedulers import SCHEDULERS
from mbcl.orchestration.search_space.schema import Space
from mbcl.registry import Registry
from mbcl.synthetic.experiment import SyntheticExperiment

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT / "mbcl" / "schemas"
REFERENCE = ROOT / "docs" / "configuration-reference.md"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PROVIDED = {
    "sampler": {"batch_size"},
    "objective": {"num_samples"},
    "optimizer": {"params"},
    "encoder": {"in_channels", "architecture"},
}


def experiment_schema() -> dict[str, Any]:
    """Return the schema of an experiment: a pretraining, or with the block ``synthetic`` a synthetic study."""
    pretraining, synthetic = (_pointing(model, "experiment") for model in (Experiment, SyntheticExperiment))
    definitions = {**pretraining.pop("$defs"), **synthetic.pop("$defs")}
    definitions |= {"Experiment": pretraining, "SyntheticExperiment": synthetic}
    return {
        "$schema": _DIALECT,
        "title": "an experiment of mbcl",
        "if": {"required": ["synthetic"]},
        "then": {"$ref": "#/$defs/SyntheticExperiment"},
        "else": {"$ref": "#/$defs/Experiment"},
        "$defs": definitions,
    }


def space_schema() -> dict[str, Any]:
    """Return the schema of a space file."""
    space, experiment = _pointing(Space, "space"), experiment_schema()
    definitions = {**space.pop("$defs"), **experiment.pop("$defs"), **_domains()}
    block = {key: experiment[key] for key in ("if", "then", "else")}
    space["properties"] |= {
        "experiment": {"description": space["properties"]["experiment"]["description"], "type": "object", **block},
        "space": {
            "description": space["properties"]["space"]["description"],
            "type": "object",
            "minProperties": 1,
            "properties": {key.path: {"$ref": "#/$defs/swept"} for key in swept_keys()},
            "additionalProperties": {"$ref": "#/$defs/swept"},
        },
        "plugins": {"description": "Python files that register components.", **PLUGINS_SCHEMA},
    }
    return {"$schema": _DIALECT, **space, "title": "a space of mbcl", "$defs": definitions}


def swept_keys() -> list[Key]:
    """Return the keys of an experiment that a space may sweep."""
    keys = {key.path: key for model in (Experiment, SyntheticExperiment) for key in keys_of(model)}
    return [key for path, key in keys.items() if path not in ("seed", "plugins")]


def _pointing(model: Any, title: str) -> dict[str, Any]:
    return {**model.model_json_schema(), "title": title}


def _domains() -> dict[str, Any]:
    """Return the definitions of a domain, and of a swept key, whose path may be written as nested blocks."""

    def one(name: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}

    number = {"type": "number"}
    values = {name: {"type": "array", "minItems": 1} for name in LISTS}
    values |= {name: {"type": "array", "items": number, "minItems": 2, "maxItems": 2} for name in RANGES}
    values["randint"] = {**values["randint"], "items": {"type": "integer"}}
    values[TIE] = {"type": "string"}
    nested = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "propertyNames": {"not": {"enum": list(values)}},
        "additionalProperties": {"$ref": "#/$defs/swept"},
    }
    domain = {"anyOf": [one(name, value) for name, value in values.items()]}
    return {"domain": domain, "swept": {"anyOf": [{"$ref": "#/$defs/domain"}, nested]}}


def reference() -> str:
    """Return the reference of all keys as Markdown."""
    return "\n".join(_reference()) + "\n"


def _reference() -> Iterator[str]:
    yield "# Configuration reference"
    yield ""
    yield "Every key with what it takes, its default and its meaning, generated from the configuration's classes by"
    yield "`make reference`. [Configuration](configuration.md) explains how they work together, and `mbcl explain KEY`"
    yield "prints one."
    yield ""
    shown = {"space": keys_of(Space), "experiment": keys_of(Experiment)}
    shown["synthetic experiment"] = [key for key in keys_of(SyntheticExperiment) if key.path.startswith("synthetic.")]
    titles = ("The space file", "The experiment", "The block synthetic of a synthetic experiment")
    for title, keys in zip(titles, shown.values(), strict=True):
        yield from (f"## {title}", "", *table(keys), "")
    for part in COMPONENTS:
        yield from (f"## Parameters of each {part}", "")
        yield from _components(part, registry_of(part))
    yield from ("## Parameters of each scheduler", "")
    yield from _components("scheduler", SCHEDULERS)


def _components(part: str, registry: Registry[Any]) -> Iterator[str]:
    """Yield a table of the parameters of all components of a kind."""
    names = [*registry, "resnet18"] if part == "encoder" else list(registry)
    for name in names:
        model = parameters_model(registry[name], frozenset(_PROVIDED.get(part, ())), shared_parameters(part))
        aliases = "".join(f", also `{alias}`" for alias in registry.aliases(name))
        other = ", and every other architecture of torchvision" if name == "resnet18" else ""
        summary = in_words((inspect.getdoc(registry[name]) or "").split("\n\n")[0])
        yield f"### {name}"
        yield ""
        yield f"`{name}`{aliases}{other}: {summary}"
        yield ""
        if keys := keys_of(model, f"{part}."):
            yield from (*table(keys), "")


def files() -> dict[Path, str]:
    """Return the generated files and their content."""
    schemas = {"space": space_schema(), "experiment": experiment_schema()}
    texts = {SCHEMAS / f"{name}.schema.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas.items()}
    return {**texts, REFERENCE: reference()}


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
