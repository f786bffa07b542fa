"""The layers that each argument of forward reaches first, read off the source of forward."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .layer_shapes import is_first_layer

__all__ = ["Reached", "reached"]

_DEEPEST = 8
"""Calls within calls that are followed: the first layer of a model stands behind fewer, and a recursion ends."""

_INDEXING = frozenset(
    {"index_add", "index_add_", "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce",
     "scatter_reduce_", "index_copy", "index_copy_", "bincount", "one_hot", "take"}
)  # fmt: skip


@dataclass
class Reached:
    """The use that forward makes of one argument, as far as its source shows.

    Attributes:
        layers: those that take it first, in source order.
        indexes: whether it picks entries of another tensor.
        pairs: whether its first axis is taken apart into two.
    """

    layers: list[nn.Module] = field(default_factory=list)
    indexes: bool = False
    pairs: bool = False


def reached(model: nn.Module, argument: str) -> Reached:
    """Follows one argument of a model's forward through its source, and through the methods and modules that it is handed to.

    Args:
        model: the module.
        argument: the name of the argument.
    """
    found = Reached()
    _Follow(found).into(model, argument, 0)
    return found


class _Follow:
    """One search; a call is entered once."""

    def __init__(self, found: Reached) -> None:
        self._found = found
        self._seen: set[tuple[int, str, str]] = set()

    def into(self, module: nn.Module, argument: str, depth: int) -> None:
        """Follows the argument into a module that is called with it."""
        if is_first_layer(module):
            if module not in self._found.layers:
                self._found.layers.append(module)
        elif type(module).__module__.startswith("torch.nn."):
            first = next((layer for layer in module.modules() if is_first_layer(layer)), None)
            if first is not None:
                self.into(first, "", depth)
        else:
            self.function(module, module.forward, argument, depth)

    def function(self, module: nn.Module, function: Callable[..., Any], argument: str, depth: int) -> None:
        """Follows the argument into a method of a module, or its forward."""
        key = (id(module), str(getattr(function, "__name__", "")), argument)
        if depth > _DEEPEST or key in self._seen:
            return
        self._seen.add(key)
        written = _written(function)
        if written is not None:
            own = next((argument.arg for argument in (*written.args.posonlyargs, *written.args.args)), "self")
            _Walk(self, module, function, own, argument, depth).statements(written.body)

    def index(self, pairs: bool = False) -> None:
        """Notes that the argument picks entries of another tensor."""
        self._found.indexes = True
        self._found.pairs = self._found.pairs or pairs

    def pair(self) -> None:
        """Notes that the argument is taken apart into two."""
        self._found.pairs = True


class _Walk(ast.NodeVisitor):
    """A walk through one function in the order in which it is written."""

    def __init__(
        self, search: _Follow, module: nn.Module, function: Callable[..., Any], own: str, argument: str, depth: int
    ) -> None:
        self._search, self._module, self._own, self._depth = search, module, own, depth
        self._written: Any = getattr(function, "__func__", function)
        self._names = {argument}
        self._items: dict[str, nn.Module] = {}

    def statements(self, body: list[ast.stmt]) -> None:
        """Visits the statements of a body in order."""
        for statement in body:
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Notes a new name for the argument, or for a value that was made of it without a layer."""
        self.visit(node.value)
        mine = self._holds(node.value)
        for target in node.targets:
            parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            if mine and len(parts) == 2 and isinstance(node.value, ast.Name):
                self._search.pair()
            for part in parts:
                if isinstance(part, ast.Name):
                    (self._names.add if mine else self._names.discard)(part.id)

    def visit_For(self, node: ast.For) -> None:
        """Takes a loop over modules for its first turn."""
        self._first_turn(node.target, node.iter)
        self.generic_visit(node)

    def _first_turn(self, target: ast.AST, over: ast.AST) -> None:
        """Names the module that a loop's variable is at first, also through enumerate and zip."""
        if isinstance(over, ast.Call) and isinstance(target, (ast.Tuple, ast.List)):
            if _name(over) == "enumerate" and len(target.elts) == 2 and over.args:
                self._first_turn(target.elts[1], over.args[0])
            elif _name(over) == "zip":
                for part, parts in zip(target.elts, over.args, strict=False):
                    self._first_turn(part, parts)
        inner = self._submodule(over)
        first = None if inner is None else next(iter(inner.children()), None)
        if first is not None and isinstance(target, ast.Name):
            self._items[target.id] = first

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Notes an index, h[argument], or a part of a pair, argument[0]."""
        if self._holds(node.slice) and not self._holds(node.value):
            self._search.index()
        if isinstance(node.slice, ast.Constant) and node.slice.value in (0, 1) and self._holds(node.value):
            self._search.pair()
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Follows a call of a module, of a method of this module, or of an operator that takes indices."""
        self.generic_visit(node)
        given = [*enumerate(node.args), *((keyword.arg, keyword.value) for keyword in node.keywords)]
        mine = [place for place, value in given if place is not None and self._holds(value)]
        if not mine:
            return
        inner = self._submodule(node.func)
        if inner is not None:
            self._enter(inner, inner.forward, mine, self._search.into)
            return
        if _name(node) in _INDEXING and any(self._holds(value) for value in node.args[:2]):
            self._search.index()
        method = self._method(node.func)
        if method is not None:
            self._enter(self._module, method, mine, lambda m, a, d: self._search.function(m, method, a, d))

    def _method(self, node: ast.AST) -> Callable[..., Any] | None:
        """Returns the method of this module that self.name or super().name is."""
        if not isinstance(node, ast.Attribute):
            return None
        found = None
        if isinstance(node.value, ast.Name) and node.value.id == self._own:
            found = getattr(self._module, node.attr, None)
        elif isinstance(node.value, ast.Call) and _name(node.value) == "super":
            bases = type(self._module).__mro__
            at = next(
                (k for k, base in enumerate(bases) if vars(base).get(self._written.__name__) is self._written), len(bases) - 1
            )
            found = getattr(super(bases[at], self._module), node.attr, None)
        return found if inspect.ismethod(found) else None

    def _enter(
        self, module: nn.Module, function: Callable[..., Any], places: list[Any], follow: Callable[[nn.Module, str, int], None]
    ) -> None:
        """Follows the argument under the names that the called function has for it."""
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            names = []
        for place in places:
            name = place if isinstance(place, str) else names[place] if place < len(names) else ""
            if name in names or not names:
                follow(module, name, self._depth + 1)

    def _holds(self, node: ast.AST) -> bool:
        """Whether an expression is made of the argument, and of no layer's output."""
        if isinstance(node, ast.Call) and self._submodule(node.func) is not None:
            return False
        if isinstance(node, ast.Name):
            return node.id in self._names
        if isinstance(node, ast.Attribute) and node.attr in ("shape", "device", "dtype", "ndim"):
            return False
        if isinstance(node, ast.Subscript):  # an entry is made of its tensor
            return self._holds(node.value)
        if isinstance(node, ast.Call) and _name(node) in _INDEXING:
            return self._holds(node.func) or any(self._holds(value) for value in node.args[2:])
        return any(self._holds(child) for child in ast.iter_child_nodes(node))

    def _submodule(self, node: ast.AST) -> nn.Module | None:
        """Returns the module that self.a.b[0] is; None for other expressions."""
        if isinstance(node, ast.Name):
            return self._module if node.id == self._own else self._items.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._submodule(node.value)
            return None if owner is None else owner._modules.get(node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = self._submodule(node.value)
            try:
                found = None if owner is None else owner[node.slice.value]  # type: ignore[index]
            except (TypeError, KeyError, IndexError):
                return None
            return found if isinstance(found, nn.Module) else None
        return None


def _name(node: ast.Call) -> str:
    """Returns the name of the called function, without its owner."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else str(getattr(node.func, "id", ""))


def _written(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """Returns the definition of a function in its source; None where it has none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
