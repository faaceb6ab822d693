"""Runs the blocks of a document in order, as a reader would: one folder, one Python session."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbcl.cli import main
from mbcl.cli.app import parser

from .blocks import ROOT, Block

SPACE: dict[str, Any] = {
    "name": "blocks",
    "seeds": [0],
    "baseline": {"sampler": "shuffle"},
    "experiment": {"data": {"name": "digits"}, "optimizer": {"name": "lars", "lr": 0.075}},
    "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]}},
}
"""What a fragment of a space is put into before it is checked."""


def words(command: str) -> list[str]:
    """The words of a command without its comment."""
    return shlex.split(command, comments=True)


def check(block: Block) -> None:
    """Check a block that is not run: its commands have to parse, and what they name has to exist."""
    if block.language:
        return
    for command, _ in block.commands():
        argv = words(command)
        while argv and re.match(r"\w+=", argv[0]):  # a variable for the command
            del argv[0]
        if argv[:1] == ["mbcl"]:
            parser().parse_args(argv[1:])
        elif argv[:2] == ["python", "run_ray.py"]:
            import run_ray

            run_ray.parser().parse_args(argv[2:])
        else:
            for word in argv:
                if word.endswith(".py") and not Path(word).is_absolute():
                    assert (ROOT / word).exists(), f"{block.place}: {word} does not exist"


class Session:
    """The folder and the names that the blocks of one document share."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "document"}
        for name in ("run_ray.py", "tune_spaces", "examples", "benchmarks", "docs", "mbcl"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, blocks: Iterable[Block], *, slow: bool) -> None:
        """Run blocks; those that are slow only if asked to."""
        for block in blocks:
            if block.mark in ("not run", "run by") or (block.mark == "slow" and not slow):
                continue
            if block.mark == "file":
                (self.folder / block.reason).write_text(block.text)
            try:
                self.run_one(block)
            except BaseException as error:
                error.add_note(f"in the block at {block.place}")
                raise

    def run_one(self, block: Block) -> None:
        """Run a block, or check it if it is no program."""
        text = block.text.replace("/tmp/", f"{self.folder}/tmp/")
        if block.language == "python":
            exec(compile(text, block.place, "exec"), self.names)
        elif block.language == "yaml":
            self.check_space(text)
        elif block.language == "json":
            json.loads(text)
        elif block.language == "toml":
            tomllib.loads(text)
        elif block.language == "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        elif not block.language:
            for command, output in block.commands():
                self.run_command(command, output, in_process=block.mark != "slow")

    def check_space(self, text: str) -> None:
        """Expand a space, or the small one with the keys of a fragment of a space or experiment."""
        from mbcl.orchestration.search_space.expansion import expand
        from mbcl.orchestration.search_space.schema import read_space

        path = self.folder / "block.yaml"
        path.write_text(yaml.safe_dump(SPACE | yaml.safe_load(text)))
        assert expand(read_space(path, [], ())), "no trial"

    def run_command(self, command: str, output: str, *, in_process: bool) -> None:
        """Run a command, which has to succeed, and compare its output with the one that is shown."""
        argv = [word.replace("/tmp/", f"{self.folder}/tmp/") for word in words(command)]
        self.capsys.readouterr()
        if argv[0] == "mbcl":
            assert main(argv[1:]) == 0, command
            shown = self.capsys.readouterr().out
        elif argv[:2] == ["python", "run_ray.py"] and "--dry-run" in argv:
            import run_ray

            assert run_ray.main(argv[2:]) == 0, command
            shown = self.capsys.readouterr().out
        else:
            assert not in_process, f"{command}: starts a process; mark the block as slow"
            assert argv[0] in ("python", "torchrun"), f"{command}: no program that a test may start"
            start = [sys.executable] if argv[0] == "python" else [shutil.which("torchrun") or "torchrun"]
            result = subprocess.run([*start, *argv[1:]], cwd=self.folder, capture_output=True, text=True)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            shown = result.stdout
        if output:
            assert shape(shown) == shape(output), command


def shape(text: str) -> list[str]:
    """The lines of an output without what differs between machines: numbers, digests, folders, widths of columns.

    Example:
        >>> shape("lift     3.894 times random batches\\nplan  /home/you/refined.npz")
        ['lift # times random batches', 'plan refined.npz']
    """
    text = re.sub(r"\S*/(?=[\w.]+\.(npz|html))", "", text)
    text = re.sub(r"\b[0-9a-f]{16,}\b", "#", text)
    text = re.sub(r"-?\b\d[\d,.]*(e[+-]?\d+)?%?", "#", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]
