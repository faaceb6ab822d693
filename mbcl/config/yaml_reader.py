"""Reading and writing of YAML: the scalars of YAML 1.2, and nothing that YAML 1.1 and 1.2 read differently.

PyYAML reads YAML 1.1, in which ``010`` is 8, ``1:30`` is 90, ``no`` is false, and ``1.0e1`` is text.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml

from mbcl.errors import ConfigError

_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}
"""The plain scalars that are no text, by tag: those of YAML 1.2's core schema, but an integer without leading zeros."""
_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "tag:mbcl,ambiguous"
_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_DIFFERENT = re.compile(
    r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
    r"|[-+]?0[0-9][0-9_]*"  # octal in YAML 1.1, decimal in 1.2
    r"|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"  # base 60 in YAML 1.1
    r"|[-+]?0b[01_]+|[-+]?0x(?=[0-9a-fA-F]*_)[0-9a-fA-F_]+|[-+]0x[0-9a-fA-F]+"
    r"|[-+]?(?=[^_]*_)[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
)
"""The plain scalars that are not text in YAML 1.1, and something else in 1.2."""


class _AmbiguousError(yaml.constructor.ConstructorError):
    """A plain scalar that the versions of YAML read differently."""


class _Reader(yaml.SafeLoader):
    """A safe YAML loader that refuses duplicate keys, of which PyYAML's own loader takes the last one."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(_TAG)  # a written tag, such as !!int, may stand before any text
        allowed = {"timestamp": "(?!)", "float": f"{_CORE['float']}|{_CORE['int']}"}.get(kind, _CORE.get(kind))
        if isinstance(node, yaml.ScalarNode) and allowed and not re.fullmatch(allowed, node.value):
            message = f"{node.value!r} has the tag !!{kind}, which it does not fit in YAML 1.2"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue  # `<<: *base`; its keys may be overridden
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                continue
            if key in seen:
                message = f"key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def refuse(self, node: yaml.ScalarNode) -> None:
        """Refuse a scalar that the versions of YAML read differently, with what may be meant."""
        raise _AmbiguousError(None, None, _spellings(node.value), node.start_mark)


class _Writer(yaml.SafeDumper):
    """A safe YAML dumper that quotes every text that a reader of YAML 1.1 or 1.2 takes for something else."""


for _kind in (_Reader, _Writer):
    _kind.add_implicit_resolver(_AMBIGUOUS, re.compile(f"(?:{_DIFFERENT.pattern})$"), None)
    for _tag, _pattern in _CORE.items():
        _kind.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(f"(?:{_pattern})$"), None)
_Reader.add_constructor(_AMBIGUOUS, _Reader.refuse)


def _spellings(text: str) -> str:
    """Describe the readings of an ambiguous scalar and how each is written."""
    sign, digits = ("-" if text.startswith("-") else ""), text.lstrip("+-").replace("_", "")
    if re.fullmatch("0[0-9]+", digits):
        plain = digits.lstrip("0") or "0"
        octal = "" if set(digits) & set("89") else f"0o{plain}"
        first = f"{sign}{int(digits, 8)}" if octal else "text"
        also = f", {octal} for the octal number" if octal and not sign else ""
        return (
            f"{text} is {first} in YAML 1.1 and {sign}{plain} in 1.2; write {sign}{plain}{also}, or '{text}' for text"
        )
    meant = _WORDS.get(text.lower()) or f"{sign}{_value(digits)}"
    return f"{text} is {meant} in YAML 1.1 and text in 1.2; write {meant}, or '{text}' for the text"


def _value(digits: str) -> str:
    """Return the decimal form of a number in base 60, 2, 16 or 10."""
    if ":" in digits:
        value: float = 0
        for part in digits.split(":"):
            value = value * 60 + (float(part) if "." in part else int(part))
        return f"{value}"
    return f"{int(digits, 0)}" if digits[:2] in ("0b", "0x") else digits


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text.

    Raises:
        ConfigError: if the text is not YAML, or holds what the versions of YAML read differently; the message names the
            source and the line.
    """
    try:
        content = yaml.load(text, _Reader)  # noqa: S506  # a SafeLoader
        json.dumps(content, default=str)  # raises for an alias inside its own anchor, an endless structure
        return content
    except (ValueError, OverflowError, TypeError) as error:  # a number out of range, a recursive alias, a list as a key
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        kind = "" if isinstance(error, _AmbiguousError) else "not YAML: "
        raise ConfigError(f"{source}{where}: {kind}{problem}") from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read the mapping that a YAML file holds.

    Raises:
        ConfigError: if the file cannot be read, is not in UTF-8, is not YAML, is empty or is not a mapping.
    """
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    content = parse_yaml(_decode(raw, path), str(path))
    if content is None:
        raise ConfigError(f"{path}: the file is empty; expected a mapping of keys")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {type(content).__name__}, expected a mapping of keys")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: found the key {key!r}, expected a mapping of keys that are words")
    return content


def _decode(raw: bytes, path: Path | str) -> str:
    """Decode UTF-8, with or without a mark at its beginning.

    Raises:
        ConfigError: for another encoding, which it names.
    """
    advice = "expected UTF-8; save the file in it"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        kind = "UTF-16 or UTF-32" if b":\0" in raw or b"\0:" in raw else "a binary file, no text"
        raise ConfigError(f"{path}: cannot be read: it is {kind}; {advice}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise ConfigError(
            f"{path}, line {line}: cannot be read: byte 0x{byte:02x} is not UTF-8; in Latin-1 or Windows-1252 it is "
            f"{bytes([byte]).decode('cp1252', 'replace')!r}; {advice}"
        ) from error


def dump_yaml(content: Any) -> str:
    """Return plain data as YAML in the order of its keys, which :func:`parse_yaml` reads as the same data."""
    return yaml.dump(content, Dumper=_Writer, sort_keys=False, allow_unicode=True)
