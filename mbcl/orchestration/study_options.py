"""The options of ``run_ray.py``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mbcl.study.record import SPACE_FILE, STUDY_FILE


@dataclass(frozen=True)
class StudyOptions:
    """The options of the command line; see ``run_ray.py --help``."""

    space: Path
    name: str | None = None
    results_dir: str = "results"
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    resume: bool = False
    extend: bool = False
    eval_only: bool = False
    dry_run: bool = False
    address: str | None = None
    watch: bool = False
    quiet: bool = False
    verbose: bool = False
    temporary: bool = False  # whether the results folder is about to be deleted
    command: tuple[str, ...] = ("python", "run_ray.py")

    @property
    def folder(self) -> str:
        """Name of the results folder."""
        if self.name is not None:
            return self.name
        if self.space.name == SPACE_FILE and self.space.with_name(STUDY_FILE).exists():  # to reproduce that study
            return f"{self.space.resolve().parent.name}-again"
        return self.space.stem

    @property
    def resumes(self) -> bool:
        """Whether the folder has a study that goes on."""
        return self.resume or self.extend

    def resume_command(self) -> str:
        """Return the command that continues this run."""
        arguments = [*self.command, "--space", str(self.space)]
        arguments += ["--name", self.name] if self.name else []
        arguments += ["--results-dir", self.results_dir] if self.results_dir != "results" else []
        arguments += [argument for override in self.overrides for argument in ("--set", override)]
        arguments += [argument for file in self.plugins for argument in ("--plugin", file)]
        arguments += ["--address", self.address] if self.address else []
        return shlex.join([*arguments, "--eval-only" if self.eval_only else "--resume"])
