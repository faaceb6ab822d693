"""What the command line of the main job asks for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyOptions:
    """What the command line asks for; see ``run_ray.py --help``."""

    space: Path
    name: str | None = None
    results_dir: str = "results"
    overrides: tuple[str, ...] = ()
    resume: bool = False
    eval_only: bool = False
    dry_run: bool = False
    address: str | None = None
    quiet: bool = False
    verbose: bool = False

    @property
    def folder(self) -> str:
        """The results folder's name."""
        return self.space.stem if self.name is None else self.name

    def resume_command(self) -> str:
        """The command that goes on where this one stops."""
        words = ["python", "run_ray.py", "--space", str(self.space)]
        words += ["--name", self.name] if self.name else []
        words += ["--results-dir", self.results_dir] if self.results_dir != "results" else []
        words += [word for override in self.overrides for word in ("--set", override)]
        words += ["--address", self.address] if self.address else []
        return shlex.join([*words, "--eval-only" if self.eval_only else "--resume"])
