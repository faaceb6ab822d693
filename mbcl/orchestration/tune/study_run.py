"""The context of one run of a study. Imports no Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mbcl.io.ownership import Fence, FencedStore
from mbcl.orchestration.console import Console
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.scheduling.trial_queue import SettingSource
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.orchestration.study_options import StudyOptions


@dataclass(frozen=True)
class StudyRun:
    """The context of one run of a study.

    Args:
        options: the command line's options.
        file: the space.
        study: the opened study, whose record changes as trials end.
        store: the results folder, whose writes fail once another process has taken it over.
        fence: the claim on that folder, passed on to every process of the run.
        console: reports to the user.
        search: adds further trials as results come in; None if all trials are known.
        started_at: when the command began, by the monotonic clock.
    """

    options: StudyOptions
    file: SpaceFile
    study: OpenedStudy
    store: FencedStore
    fence: Fence
    console: Console
    search: SettingSource | None = None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def num_undrawn(self) -> int:
        """Number of trials that may still be added."""
        return self.search.left if self.search else 0
