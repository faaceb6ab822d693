"""``mbcl spaces``: the space files that come with mbcl. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError, nearest


def add_spaces(commands: Any) -> None:
    """Add ``spaces`` to the commands."""
    spaces = commands.add_parser(
        "spaces",
        help="list the space files that come with mbcl, or copy one",
        description="List the space files that come with mbcl, with their questions. With NAME, copy one to DIR, for "
        "`mbcl sweep --space NAME.yaml` or as the start of your own.",
    )
    spaces.add_argument("name", nargs="?", metavar="NAME", help="the space to copy, e.g. samplers")
    spaces.option("--out", "DIR", "the folder that gets the copy", ".")
    spaces.flag("--overwrite", "replace a file that is there")
    spaces.set_defaults(run=_spaces)


def shipped() -> dict[str, str]:
    """Return the texts of the space files by name; those of the study are called ``study/NAME``."""
    root = resources.files("mbcl").joinpath("spaces")
    texts = {}
    for prefix, folder in (("", root), ("study/", root.joinpath("study"))):
        for file in sorted(folder.iterdir(), key=str):
            if file.name.endswith(".yaml"):
                texts[prefix + file.name.removesuffix(".yaml")] = file.read_text(encoding="utf-8")
    return texts


def _spaces(arguments: argparse.Namespace) -> int:
    texts = shipped()
    if arguments.name is None:
        from mbcl.config.yaml_reader import parse_yaml

        width = max(map(len, texts))
        lines = (f"{name:{width}}  {parse_yaml(text, name).get('question', '')}\n" for name, text in texts.items())
        sys.stdout.write("".join(lines))
        return 0
    name = arguments.name.removesuffix(".yaml")
    if name not in texts:
        raise ConfigError(f"mbcl spaces: no space is called {name!r}; {nearest(name, texts)}")
    path = Path(arguments.out) / f"{Path(name).name}.yaml"
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(f"--out: {path.parent} is no folder")
    if path.exists() and not arguments.overwrite:
        raise ConfigError(f"{path}: is there already; add --overwrite, or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = resources.files("mbcl").joinpath("schemas", "space.schema.json")
    text = re.sub(r"(?<=\$schema=)\S+", lambda _: str(schema), texts[name])
    command = f"mbcl sweep --space {shlex.quote(str(path))}"
    text = text.replace(f"python run_ray.py --space tune_spaces/{name}.yaml", command)
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path}; {command} runs it\n")
    return 0
