"""Loading of YAML into validated models. Each mistake is one line: the key, the value found, the values allowed."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from mbcl.errors import ConfigError, nearest
from mbcl.registry import Registry


class ConfigModel(BaseModel):
    """Base class of configuration blocks: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses duplicate keys; PyYAML's own loader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *base`; its keys may be overridden
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    message = f"key {key!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4, which has no decimal point, as a string; users mean a float.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text.

    Raises:
        ConfigError: if the text is not YAML; the message names the source and the line.
    """
    try:
        content = yaml.load(text, _UniqueKeys)  # noqa: S506  # a SafeLoader
        json.dumps(content, default=str)  # raises for an alias inside its own anchor, an endless structure
        return content
    except (ValueError, OverflowError) as error:  # an impossible date, a number out of range, a recursive alias
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}{where}: not YAML: {problem}") from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read the mapping that a YAML file holds.

    Raises:
        ConfigError: if the file cannot be read, is not YAML, is empty or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    content = parse_yaml(text, str(path))
    if content is None:
        raise ConfigError(f"{path}: the file is empty; expected a mapping of keys")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {type(content).__name__}, expected a mapping of keys")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: found the key {key!r}, expected a mapping of keys that are words")
    return content


def set_path(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in a nested mapping in place; missing blocks are created.

    Raises:
        ConfigError: if the path is malformed, or runs through a value that is not a block.
    """
    *parents, last = path.split(".")
    block = content
    for depth, key in enumerate(parents):
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
def parameters_model(part: Callable[..., Any], provided: frozenset[str]) -> type[BaseModel]:
    """Create the pydantic model of a component's annotated keyword-only parameters from its class or factory.

    The experiment supplies the parameters ``provided``, such as ``batch_size``, itself.
    """
    target = part.func if isinstance(part, partial) else part
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(part).parameters.items():
        if name in provided or parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints[name], default)
    return create_model(f"{target.__name__}Parameters", __base__=ConfigModel, **fields)


class PathConfigError(ConfigError):
    """A mistake inside a component's block; ``path`` is the key within the block."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def validate_parameters(
    part: Callable[..., Any], parameters: Mapping[str, Any], provided: frozenset[str]
) -> dict[str, Any]:
    """Validate the parameters of a component and fill in defaults.

    Raises:
        PathConfigError: for the first wrong parameter.
    """
    model = parameters_model(part, provided)
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

    Args:
        registry: the components of this kind.
        provided: parameters that the experiment supplies itself.
        fill: whether omitted parameters get their defaults; if not, the component has only the given ones.
    """

    def __init__(self, registry: Registry[Any], *provided: str, fill: bool = True) -> None:
        self._registry, self._provided, self._fill = registry, frozenset(provided), fill

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(dict)
        return core_schema.no_info_plain_validator_function(self._resolve, serialization=serialization)

    def _resolve(self, block: Any) -> Component:
        if not isinstance(block, dict) or not isinstance(block.get("name"), str):
            raise ConfigError(f"expected a block with a name, such as {{name: ...}}, found {block!r}")
        name = self._registry.canonical(block["name"])
        parameters = {key: value for key, value in block.items() if key != "name"}
        checked = validate_parameters(self._registry[name], parameters, self._provided)
        return Component(name=name, **{key: value for key, value in checked.items() if self._fill or key in parameters})
