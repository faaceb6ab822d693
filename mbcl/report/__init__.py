"""The report of a study: tables, comparison with the baseline, figures and one self-contained page.

Everything is made from ``study.json`` and the trials' ``metrics.jsonl``, so that it can be made again at any time,
also while the study runs. Matplotlib is loaded when figures are drawn, not before.

    results.csv     one row a trial
    summary.csv     one row a setting, with 95 % t intervals over finished seeds
    comparison.csv  one row a setting and metric: the difference from the baseline, paired by seed
    plots/*.png
    report.html
"""

from mbcl.report.writer import write

__all__ = ["write"]
