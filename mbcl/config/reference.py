"""The keys of a configuration, with what is allowed, default and meaning, from its JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a configuration, described in text; ``default`` is empty if the key is required."""

    path: str
    allowed: str
    default: str
    meaning: str

    @property
    def text(self) -> str:
        """What ``mbcl explain`` prints of it."""
        default = f"default: {self.default}" if self.default else "required"
        return f"{self.path}\n\n{self.meaning}\n\nallowed: {self.allowed}\n{default}"


def keys_of(model: type[BaseModel], prefix: str = "") -> list[Key]:
    """Return all keys of a model and of its blocks, in order; ``prefix`` precedes the paths."""
    schema = model.model_json_schema()
    return list(_walk(schema, schema.get("$defs", {}), prefix))


def _walk(schema: Schema, blocks: Schema, prefix: str) -> Iterator[Key]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        path, block = f"{prefix}{name}", _block(field, blocks)
        if block is not None:
            yield from _walk(block, blocks, f"{path}.")
            continue
        default = "" if name in required else _default(field)
        yield Key(path, _allowed(field, blocks), default, in_words(field.get("description", "")))


def in_words(docstring: str) -> str:
    """Return a docstring's text as Markdown in one line: without the roles of reStructuredText."""
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", " ".join(docstring.split())).replace("``", "`")


def _block(field: Schema, blocks: Schema) -> Schema | None:
    """Return the schema of a nested block; None for a value."""
    options = [field, *field.get("anyOf", ()), *field.get("allOf", ())]
    references = [option["$ref"] for option in options if "$ref" in option]
    block = blocks[references[0].rpartition("/")[2]] if references else None
    return block if block is not None and "properties" in block else None


def _default(field: Schema) -> str:
    value = field.get("default", {} if field.get("type") == "object" else None)
    if isinstance(value, dict) and set(value) == {"name"}:
        value = value["name"]
    return value if isinstance(value, str) and value else json.dumps(value)


def _allowed(field: Schema, blocks: Schema) -> str:
    """Describe the values that a field takes."""
    if "$ref" in field:
        return _allowed(blocks[field["$ref"].rpartition("/")[2]], blocks)
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    if "anyOf" in field:
        options = [_allowed(option, blocks) for option in field["anyOf"]]
        return ", or ".join(option for option in dict.fromkeys(options) if option != "null") + (
            ", null" if "null" in options else ""
        )
    kind = field.get("type")
    if kind in ("integer", "number"):
        return _numbers(field, "whole number" if kind == "integer" else "number")
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        one = _allowed(items[0], blocks)
        return f"list of {len(items)}: {one}" if "prefixItems" in field else f"list: {one}"
    words = {
        "string": "name" if "examples" in field else "text",
        "boolean": "true, false",
        "object": "block",
        "null": "null",
    }
    return words.get(str(kind), "any value")


def _numbers(field: Schema, noun: str) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{noun} from {least:g} to {most:g}"
    bounds = (("of at least", least), ("of at most", most), ("above", above), ("below", below))
    return " ".join([noun, " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)]).strip()


def table(keys: list[Key]) -> Iterator[str]:
    """Yield the lines of a Markdown table of keys."""
    yield "| key | allowed | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        default = f"`{key.default}`" if key.default else "required"
        allowed, meaning = (text.replace("|", "\\|") for text in (key.allowed, key.meaning))
        yield f"| `{key.path}` | {allowed} | {default} | {meaning} |"
