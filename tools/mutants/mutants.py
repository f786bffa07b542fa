"""Every mutant of a source file, and the text of one."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from operators import OPERATORS

# Marks that speak to a reader, a type checker or the memory: no input to a program can tell whether they are there.
_MARKS = {"strict", "slots", "frozen"}
_DECORATORS = {"cache", "lru_cache", "cached_property", "override", "overload", "final", "wraps"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: an operator of `OPERATORS` and which of its occurrences in the file."""

    operator: str
    occurrence: int
    start: tuple[int, int]
    end: tuple[int, int]

    def text(self, source: str) -> str | None:
        """The mutated source; None where the change is none, or no Python."""
        mutated = mutate_code(source, OPERATORS[self.operator], self.occurrence)
        try:
            same = mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source))
        except SyntaxError:
            return None
        return None if same else mutated


def difference(before: str, after: str, path: str) -> str:
    """The unified diff of a mutant, without context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="", n=0)
    return "\n".join(lines)


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a file, apart from those that only touch annotations, messages and marks."""
    left_out = _silent_ranges(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in OPERATORS.items():
        places = ((start, end) for node in nodes for start, end in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            if not any(first <= start < last for first, last in left_out):
                yield Mutant(name, occurrence, start, end)


def _range(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _silent_ranges(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [node.returns, *(one.annotation for one in ast.walk(node.args) if isinstance(one, ast.arg))]
        if isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found += node.exc.args
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found.append(node)
        if isinstance(node, ast.keyword) and node.arg in _MARKS:
            found.append(node)
        for decorator in getattr(node, "decorator_list", []):
            if ast.unparse(decorator).split("(")[0].split(".")[-1] in _DECORATORS:
                found.append(decorator)
    ranges = [_range(node) for node in found if node is not None]
    # The sign @ stands before what the decorator's node covers.
    return [((line, column - 1), end) for (line, column), end in ranges]


@cache
def statement_lines(source: str, line: int) -> tuple[range | None, bool]:
    """The lines of the innermost statement's own text that holds `line`, and whether a function's body holds it.

    A function's head counts as its body, which runs whenever the function is called. None: outside of functions.
    """
    innermost: Any = None
    inside = False
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt):
            continue
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        if first <= line <= (node.end_lineno or first):
            innermost = node  # ast.walk goes from the outside to the inside
            inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    if innermost is None or not inside:
        return None, False
    if isinstance(innermost, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return range(innermost.body[0].lineno, (innermost.end_lineno or 0) + 1), True
    body = getattr(innermost, "body", None)
    last = body[0].lineno - 1 if body else innermost.end_lineno
    return range(innermost.lineno, max(innermost.lineno, last) + 1), True
