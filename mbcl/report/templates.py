"""The Jinja environment of the pages, and what every page embeds: style sheet, script, and a policy that allows it."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mbcl.errors import pluralize
from mbcl.report import pictures, wording


def resource(name: str) -> str:
    """Read a template, style sheet or script of this package."""
    return resources.files("mbcl.report").joinpath(name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Create the Jinja environment: autoescape for text from users, and filters that format numbers."""
    environment = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: wording.printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "number": wording.number,
        "centre": wording.centre,
        "interval": wording.interval,
        "p_value": wording.p_value,
        "seconds": wording.seconds,
        "json": embedded_json,
        "unbroken": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
    }
    environment.globals |= {"pluralize": pluralize, "NOTHING": wording.NOTHING}
    return environment


def render_page(template: str, context: dict[str, Any]) -> str:
    """Render a page with the style sheet and the script in it, which fetches nothing and runs no other script."""
    script = resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assets = {
        "css": Markup(resource("report.css")),
        "js": Markup(script),
        "policy": policy,
        "colours": pictures.COLOURS,
    }
    return environment().get_template(template).render(context, **assets)


def embedded_json(value: Any) -> Markup:
    """Format a value as JSON that can stand in a ``script`` element, whatever text is in it."""
    text = wording.printable(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
