"""The report of a study: tables, comparison with the baseline, figures and one self-contained page.

The only inputs are ``study.json`` and the trials' ``metrics.jsonl`` and ``evaluation.json``, so the report can be
written again at any time, also while the study runs. Matplotlib is imported only when figures are drawn.

    results.csv     one row for each trial
    draws.csv       one row for each trial and draw of the views
    summary.csv     one row for each setting, with 95 % t intervals over finished seeds
    comparison.csv  one row for each setting and metric: the difference from the baseline, paired by seed
    plots/*.png
    report.html
"""

from mbcl.report.document import write_document
from mbcl.report.several import several_page
from mbcl.report.writer import write

__all__ = ["several_page", "write", "write_document"]
