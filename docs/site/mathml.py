"""Sphinx extension: formulas as MathML, which every browser shows by itself, so that a page fetches nothing."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def to_mathml(latex: str, *, as_block: bool) -> str:
    r"""Return LaTeX as MathML; ``\Big(`` and ``\Big)``, which docutils lacks, become ``\left(`` and ``\right)``.

    Raises:
        MathError: if a command is unknown; the build then ends with it.
    """
    latex = re.sub(r"\\[bB]ig([(\[])", r"\\left\1", latex)
    latex = re.sub(r"\\[bB]ig([)\]])", r"\\right\1", latex)
    latex = re.sub(r"\\hat ?(\w)", r"{\\hat{\1}}", latex)  # otherwise an index stands below the letter
    return str(latex2mathml.tex2mathml(" ".join(latex.split()), as_block=as_block))


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula of a line."""
    self.body.append(to_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math">{to_mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True}
