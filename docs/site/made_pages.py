"""Sphinx extension: the pages that no file of ``docs/`` holds, written to ``docs/generated`` before each build.

- one page for each registered sampler and objective, from its docstring;
- the API reference, from what the public packages export;
- the notebooks of ``examples/``, as pages;
- CONTRIBUTING and CHANGELOG, which lie outside ``docs/``.

The contents are those of ``index.md``: every section with a list of pages becomes a part of the navigation. The pages
themselves stay plain Markdown, which GitHub shows, too.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mbcl.objectives import OBJECTIVES
from mbcl.registry import Registry
from mbcl.samplers import SAMPLERS, PoolSampler

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
METHODS = {"samplers": SAMPLERS, "objectives": OBJECTIVES}
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
API = (
    "mbcl",
    "mbcl.samplers",
    "mbcl.objectives",
    "mbcl.functional",
    "mbcl.metrics",
    "mbcl.optim",
    "mbcl.torch",
    "mbcl.integrations.transformers",
    "mbcl.integrations.sentence_transformers",
    "mbcl.integrations.lightning",
    "mbcl.data",
    "mbcl.study",
    "mbcl.testing",
)
PROVIDED = ("batch_size", "num_samples")
"""Parameters that an experiment fills in itself."""


def title(text: str, line: str = "=") -> str:
    """Return an reStructuredText title."""
    return f"{text}\n{line * len(text)}\n\n"


def yaml_value(value: object) -> str:
    """Return a default as YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def own_parameters(part: type) -> dict[str, object]:
    """Return the parameters that the class itself declares, with their defaults, in the order of the signature."""
    shared = set(inspect.signature(PoolSampler).parameters) if issubclass(part, PoolSampler) else set()
    return {
        name: parameter.default
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in shared and name not in PROVIDED
    }


def method_page(kind: str, name: str, registry: Registry[Any]) -> str:
    """Return the page of one sampler or objective."""
    part = registry[name]
    package = f"mbcl.{kind}"
    block = ", ".join(
        [f"name: {name}", *(f"{key}: {yaml_value(value)}" for key, value in own_parameters(part).items())]
    )
    aliases = ", ".join(f"``{alias}``" for alias in registry.aliases(name))
    page = title(f"``{name}``")
    page += f"Published name: {aliases}.\n\n" if aliases else ""
    page += f"In an experiment, with the defaults:\n\n.. code-block:: yaml\n\n   {kind[:-1]}: {{{block}}}\n\n"
    page += f".. autoclass:: {package}.{part.__name__}\n\n"
    if issubclass(part, PoolSampler):
        page += (
            "It also takes ``mix``, ``skip``, ``relative_margin`` and ``absolute_margin``, and the arguments ``apart`` "
            "and ``together`` of ``plan``: :doc:`what must not meet </samplers>`.\n\n"
        )
    for function in re.findall(r":func:`~?mbcl\.functional\.(\w+)`", inspect.getdoc(part) or ""):
        page += title("Definition", "-") + f".. autofunction:: mbcl.functional.{function}\n   :no-index:\n\n"
    return page + f"All of them: :doc:`/{kind}`. ``mbcl explain {name}`` prints this page in a terminal.\n"


def exports(name: str) -> list[str]:
    """Return the public names of a package, or of a module those that it defines."""
    package = importlib.import_module(name)
    own = [key for key, thing in vars(package).items() if getattr(thing, "__module__", "") == name and key[0] != "_"]
    return list(getattr(package, "__all__", own))


def api_page(name: str) -> str:
    """Return the page of what a public package exports; registered methods have pages of their own."""
    package = importlib.import_module(name)
    registered = {registry[key] for registry in METHODS.values() for key in registry}
    page = title(name) + f".. automodule:: {name}\n   :no-members:\n\n"
    for export in exports(name):
        thing = getattr(package, export)
        if inspect.isclass(thing) and thing in registered:
            continue
        if inspect.isclass(thing):
            page += f".. autoclass:: {name}.{export}\n   :members:\n\n"
        elif inspect.isroutine(thing):
            page += f".. autofunction:: {name}.{export}\n\n"
    return page


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook as Markdown."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(cells) + "\n"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path below ``docs/generated`` and the text of every page."""
    for kind, registry in METHODS.items():
        for name in registry:
            yield f"{kind}/{name}.rst", method_page(kind, name, registry)
    for name in API:
        if exports(name):
            yield f"api/{name}.rst", api_page(name)
    yield "api.rst", title("API reference") + toctree("api/*", "glob")
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        yield f"notebooks/{path.stem}.md", notebook_page(json.loads(path.read_text()))
    for name in OUTSIDE:
        text = re.sub(r"\]\(docs/", "](../", (ROOT / name).read_text())
        yield name.lower(), re.sub(r"\]\((LICENSE|tests/[^)]*)\)", "]", text)


def toctree(entry: str, *options: str) -> str:
    """Return a table of contents in reStructuredText."""
    return "".join([".. toctree::\n", *(f"   :{option}:\n" for option in options), f"\n   {entry}\n"])


def write_pages(app: Any) -> None:
    """Write the pages; files that no longer belong there go, files that are as they should be stay untouched."""
    folder = DOCS / "generated"
    made = {folder / path: text for path, text in pages()}
    for path in folder.rglob("*"):
        if path.is_file() and path not in made:
            path.unlink()
    for path, text in made.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def contents(text: str) -> str:
    """Return the hidden tables of contents of ``index.md``: a part of the navigation for each section."""
    blocks, known = [], {"index"}
    for section in text.split("\n## ")[1:]:
        names = re.findall(r"^- \[.*?\]\((.*?)\.(?:md|rst)\)", section, flags=re.MULTILINE)
        if names:
            caption = section.splitlines()[0]
            known |= set(names)
            if caption == "Project":  # and the pages that no list names
                names += [*sorted({path.stem for path in DOCS.glob("*.md")} - known), "generated/api"]
            blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]))
    return "\n\n".join(blocks)


def adapt(app: Any, name: str, source: list[str]) -> None:
    """Add navigation and links to generated pages to a page of ``docs/``."""
    text = re.sub(
        r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md", lambda match: f"](generated/{match[1].lower()}.md", source[0]
    )
    text = text.replace("](../README.md", "](index.md").replace(
        "](../examples)", "](generated/notebooks/own_embeddings.md)"
    )
    text = re.sub(r"\]\(\.\./examples/(\w+)\.ipynb\)", r"](generated/notebooks/\1.md)", text)
    if name == "index":
        text += "\n" + contents(text)
    if name in METHODS:
        text += f"\n## One page each\n\n```{{toctree}}\n:glob:\n\ngenerated/{name}/*\n```\n"
    for kind, registry in METHODS.items():
        if name in (kind, "choosing"):
            # the first cell of a row, on the page of the decision everywhere
            cell = r"(?<=\n\| )`(\w+)`" if name == kind else r"(?<=\s)`(\w+)`"
            text = re.sub(cell, lambda match, kind=kind, registry=registry: linked(match, kind, registry), text)
    source[0] = text


def linked(match: re.Match[str], kind: str, registry: Registry[Any]) -> str:
    """Return a name in backticks as a link to its page, if it is registered."""
    name = match[1]
    return f"[{match[0]}](generated/{kind}/{name}.rst)" if name in registry else match[0]


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", adapt)
    return {"parallel_read_safe": True}
