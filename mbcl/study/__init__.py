"""Statistics of a study: settings and their labels, means with intervals, paired comparisons.

All are pure functions of a :class:`~mbcl.study.record.StudyRecord`; the report and the console show the results.
:func:`load` gives a study as pandas frames.
"""

from mbcl.study.frames import Frames, load

__all__ = ["Frames", "load"]
