"""Functions of a Python file and the first paragraphs of their docstrings, as words.

The file is parsed, never imported. An identifier or a word of text is split where its case or an underscore divides it:
``batch_size``, ``batchSize`` and "batch size" are the same two words.

The name of a function summarises its docstring, and many docstrings repeat it. It is on neither side: the code side has
the parameters and the identifiers of the body, and the name is cut from the docstring where it stands as an identifier.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from mbcl.data.messages import shortened

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LEAST_DOC, _LEAST_CODE = 5, 10
"""The fewest words of a docstring, and distinct words of a function: fewer say too little, such as overloads."""
_FAULTS = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What files that are no Python of this version raise, such as templates."""
_SAYS_NOTHING = frozenset({"self", "cls", "args", "kwargs"})
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""The fields of statements that hold statements."""
_HOLDERS = (ast.stmt, ast.excepthandler, ast.match_case)
_NAMED: dict[type[ast.AST], str] = {
    ast.Name: "id",
    ast.Attribute: "attr",
    ast.arg: "arg",
    ast.keyword: "arg",
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
    ast.ClassDef: "name",
}
"""The nodes that are identifiers, and the field with the name."""


@dataclass(frozen=True)
class Function:
    """A function's words, of its code and of its docstring, and for people its name with the docstring's beginning."""

    code: tuple[str, ...]
    doc: tuple[str, ...]
    title: str = field(default="", repr=False)


def functions_of(source: bytes) -> Iterator[Function]:
    """Yield the functions and methods of a file that have a docstring; none if it cannot be parsed."""
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            tree = ast.parse(source)
    except _FAULTS:
        return
    for node in _definitions(tree):
        doc = ast.get_docstring(node)
        if doc:
            title = shortened(f"{node.name}: {_first_paragraph(doc)}")
            function = Function(code_words(node), doc_words(doc, node.name), title)
            if len(function.doc) >= _LEAST_DOC and len(set(function.code)) >= _LEAST_CODE:
                yield function


def _definitions(tree: ast.Module) -> Iterator[FunctionNode]:
    """Yield all functions in the order of the source, those within others, too. Only statements hold any."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, FunctionNode):
            yield node
        blocks = [child for name in _BLOCKS for child in getattr(node, name, ()) if isinstance(child, _HOLDERS)]
        stack += reversed(blocks)


def words(text: str) -> list[str]:
    """Return the words of a text or an identifier in lower case, without single letters.

    Example:
        >>> words("Return the batchSize of HTTPServer_2")
        ['return', 'the', 'batch', 'size', 'of', 'http', 'server']
    """
    return [sys.intern(word.lower()) for word in _WORD.findall(text) if len(word) > 1]


def doc_words(doc: str, name: str) -> tuple[str, ...]:
    r"""Return the words of the first paragraph of a docstring without the function's name.

    Example:
        >>> doc_words("Call fit_all for each row.\n\nMore.", "fit_all")
        ('call', 'for', 'each', 'row')
    """
    return tuple(words(re.sub(rf"\b{re.escape(name)}\b", " ", _first_paragraph(doc))))


def _first_paragraph(doc: str) -> str:
    return re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0]


def code_words(node: FunctionNode) -> tuple[str, ...]:
    """Return the words of a function's parameters and of the identifiers in its body."""
    return tuple(word for identifier in _identifiers((node.args, *node.body[1:])) for word in _words_of(identifier))


@lru_cache(maxsize=100_000)
def _words_of(identifier: str) -> tuple[str, ...]:
    return () if identifier in _SAYS_NOTHING else tuple(words(identifier))


def _identifiers(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the identifiers in some nodes, in an order that depends on the source alone."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        name = _NAMED.get(type(node))
        identifier = getattr(node, name) if name else None
        if identifier:
            yield identifier
        for key in node._fields:
            value = getattr(node, key, None)
            if isinstance(value, list):
                stack += [each for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and key != "ctx":
                stack.append(value)
