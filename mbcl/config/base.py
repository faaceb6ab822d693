"""Validation of plain data as models. Each mistake is one line: the key, the value found, the values allowed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from mbcl.config.descriptions import parameter_descriptions
from mbcl.config.yaml_reader import parse_yaml
from mbcl.errors import ConfigError, nearest
from mbcl.registry import Registry


class ConfigModel(BaseModel):
    """Base class of configuration blocks: immutable, strictly typed, without unknown keys.

    The text under a field is its description, in the reference and in the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


M = TypeVar("M", bound=BaseModel)

NAMED = ("sampler", "objective", "optimizer", "encoder", "scheduler")
"""The keys of components, whose name alone stands for a block."""


def set_path(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in a nested mapping in place; missing blocks are created.

    Raises:
        ConfigError: if the path is malformed, or runs through a value that is not a block.
    """
    *parents, last = path.split(".")
    block = content
    for depth, key in enumerate(parents):
        if key in NAMED and isinstance(block.get(key), str):
            block[key] = {"name": block[key]}
        block = block.setdefault(key, {})
        if not isinstance(block, dict):
            parent = ".".join(parents[: depth + 1])
            raise ConfigError(f"{path}: {parent} is {block!r}, not a block that could hold {last!r}")
    if not last or not all(parents):
        raise ConfigError(f"{path!r} is not a dotted path of keys")
    block[last] = value


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> None:
    """Apply ``KEY=VALUE`` strings (dotted path, YAML value) in place.

    Raises:
        ConfigError: if a string is not of this form, or its path cannot be set.
    """
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {override}: expected KEY=VALUE")
        value = parse_yaml(text, f"--set {override}")
        try:
            set_path(content, path.strip(), value)
        except ConfigError as error:
            raise ConfigError(f"--set {override}: {error}") from error


def _describe(model: type[BaseModel] | None, error: ErrorDetails) -> str:
    """Format one pydantic error as ``key: problem``."""
    path = ".".join(str(part) for part in error["loc"])
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, ConfigError):
        path = ".".join(filter(None, (path, getattr(cause, "path", ""))))
        return f"{path}: {cause}" if path else str(cause)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, error["loc"])
        hint = nearest(str(error["loc"][-1]), known) if known else "there is none that could be given here"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: this key is missing"
    value = error.get("input")
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, found {value!r}" if path else message


def _known_keys(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> list[str]:
    """Return the allowed keys of the block in which an unknown key was found."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part)) if model else None
        annotation = field.annotation if field else None
        blocks = (each for each in (annotation, *get_args(annotation)) if inspect.isclass(each))
        model = next((each for each in blocks if issubclass(each, BaseModel)), None)
    return list(model.model_fields) if model else []


def validate(model: type[M], content: Any, source: str) -> M:
    """Validate ``content`` as a model.

    Raises:
        ConfigError: one line with the source, the first wrong key, the value found and the values allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # An unknown key is usually a misspelled one, so it explains a missing key better than "missing" does.
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        remainder = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{source}: {_describe(model, first)}{remainder}") from error


@cache
def parameters_model(
    part: Callable[..., Any], provided: frozenset[str], shared: Callable[..., Any] | None = None
) -> type[BaseModel]:
    """Create the pydantic model of a component's annotated keyword-only parameters from its class or factory.

    The experiment supplies the parameters ``provided``, such as ``batch_size``, itself. Those of ``shared`` are added.
    """
    fields: dict[str, Any] = {}
    for source in (part, shared) if shared else (part,):
        target = source.func if isinstance(source, partial) else source
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        texts = parameter_descriptions(source)
        for name, parameter in inspect.signature(source).parameters.items():
            if name in provided or parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints[name], Field(default, description=texts.get(name)))
    name = (part.func if isinstance(part, partial) else part).__name__
    return create_model(f"{name}Parameters", __base__=ConfigModel, **fields)


class PathConfigError(ConfigError):
    """A mistake inside a component's block; ``path`` is the key within the block."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def validate_parameters(
    part: Callable[..., Any],
    parameters: Mapping[str, Any],
    provided: frozenset[str],
    shared: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Validate the parameters of a component and fill in defaults; arguments as of :func:`parameters_model`.

    Raises:
        PathConfigError: for the first wrong parameter.
    """
    model = parameters_model(part, provided, shared)
    try:
        # In JSON mode, strict validation accepts a list for a tuple; all other types stay strict.
        return model.model_validate_json(json.dumps(dict(parameters), default=str)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(key) for key in first["loc"])
        text = _describe(model, first).removeprefix(f"{path}: ")
        raise PathConfigError(path, text) from error


class Component(dict[str, Any]):
    """A component with its parameters: ``{name: spectral, k: 4}``, resolved to canonical name and defaults."""

    @property
    def name(self) -> str:
        """The canonical name of the component."""
        return str(self["name"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the component, without its name."""
        return {key: value for key, value in self.items() if key != "name"}


class ComponentOf:
    """The marker of a field with a component of one kind: ``Annotated[Component, ComponentOf(SAMPLERS)]``.

    A component without parameters may be given as its name alone.

    Args:
        registry: the components of this kind.
        provided: parameters that the experiment supplies itself.
        fill: whether omitted parameters get their defaults; if not, the component has only the given ones.
        shared: function with the parameters that every component of this kind has besides its own.
    """

    def __init__(
        self, registry: Registry[Any], *provided: str, fill: bool = True, shared: Callable[..., Any] | None = None
    ) -> None:
        self.registry, self.provided, self.shared = registry, frozenset(provided), shared
        self._fill = fill

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(dict)
        return core_schema.no_info_plain_validator_function(self._resolve, serialization=serialization)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """Describe the block of every known component; other names may be those of plugins."""
        names = [word for name in self.registry for word in (name, *self.registry.aliases(name))]
        known = [self._block_schema(name) for name in self.registry]
        text = {"type": "string", "description": "a name", "examples": names}
        block = {"type": "object", "properties": {"name": text}, "required": ["name"], "allOf": known}
        return {"anyOf": [text, block]}

    def _block_schema(self, name: str) -> dict[str, Any]:
        """Return the rule of a component's block: if it has this name, it has these parameters and no others."""
        parameters = parameters_model(self.registry[name], self.provided, self.shared).model_json_schema()
        names = {"enum": [name, *self.registry.aliases(name)]}
        then = {"properties": {"name": names, **parameters.get("properties", {})}, "additionalProperties": False}
        required = {"required": parameters["required"]} if "required" in parameters else {}
        return {"if": {"properties": {"name": names}, "required": ["name"]}, "then": {**then, **required}}

    def _resolve(self, block: Any) -> Component:
        if isinstance(block, str):
            block = {"name": block}
        if not isinstance(block, dict) or not isinstance(block.get("name"), str):
            raise ConfigError(f"expected a block with a name, such as {{name: ...}}, found {block!r}")
        name = self.registry.canonical(block["name"])
        parameters = {key: value for key, value in block.items() if key != "name"}
        checked = validate_parameters(self.registry[name], parameters, self.provided, self.shared)
        return Component(name=name, **{key: value for key, value in checked.items() if self._fill or key in parameters})
