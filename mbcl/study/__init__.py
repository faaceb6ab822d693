"""Statistics of a study: settings and their labels, means with intervals, paired comparisons.

All are pure functions of a :class:`~mbcl.study.record.StudyRecord`; the report and the console show the results.
"""
