"""The operators that make mutants: those of cosmic-ray that stand for a person's slip, and four that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import parso
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator

# A replacement that always raises TypeError (`a @ b` for `a - b`) says nothing about tests: every run notices it.
_FROM_COSMIC_RAY = [
    *("AddNot", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *(f"ReplaceUnaryOperator_{change}" for change in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv")
    ),
    *(f"ReplaceBinaryOperator_{change}" for change in ("Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{change}" for change in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "GtE_Lt", "Gt_LtE", "LtE_Gt")
    ),
]


def _parsed(code: str) -> Any:
    return parso.parse(code).children[0]


class RemoveStatement(Operator):
    """Leave out a call, an error that is raised, or what is written into an attribute or an item: a forgotten step."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the statement's place."""
        if self._is_a_step(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Put `pass` there."""
        code = _parsed("pass")
        code.prefix = node.get_first_leaf().prefix
        return code

    @staticmethod
    def _is_a_step(node: Any) -> bool:
        if node.parent is None or node.parent.type != "simple_stmt":
            return False
        if node.type in ("raise_stmt", "atom_expr"):
            return True
        if node.type != "expr_stmt":
            return False
        target, sign = node.children[0], node.children[1]
        return (sign.type == "operator" and sign.value != "=") or (sign.type == "operator" and target.type == "atom_expr")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example("if a:\n    f(a)\n", "if a:\n    pass\n"),)


class DropOperand(Operator):
    """Leave out one side of `and` or `or`: a forgotten condition."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the place of each condition."""
        if node.type in ("and_test", "or_test"):
            for condition in node.children[::2]:
                yield condition.start_pos, condition.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Keep the others."""
        kept = [child.get_code() for place, child in enumerate(node.children[::2]) if place != index]
        joint = node.children[1].get_code()
        first = node.get_first_leaf().prefix
        return _Code(first + joint.join(kept).lstrip() if index == 0 else joint.join(kept))

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example("x = a and b", "x = b"), Example("x = a and b", "x = a", occurrence=1))


class SwapName(Operator):
    """Take the opposite of two functions that are easily mixed up."""

    _OPPOSITES: ClassVar[dict[str, str]] = {
        "min": "max",
        "max": "min",
        "any": "all",
        "all": "any",
        "amin": "amax",
        "amax": "amin",
    }

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the name's place where it is called."""
        follower = node.get_next_leaf() if node.type == "name" and node.value in self._OPPOSITES else None
        if follower is not None and follower.value == "(":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Write the other name."""
        return _Code(node.prefix + self._OPPOSITES[node.value])

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example("x = min(a)", "x = max(a)"),)


class SwapIn(Operator):
    """Turn `in` and `not in` around."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the place of each."""
        if node.type == "comparison":
            for sign in node.children[1::2]:
                if sign.get_code().split() in (["in"], ["not", "in"]):
                    yield sign.start_pos, sign.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Write the other one."""
        places = [place for place, sign in enumerate(node.children) if sign.get_code().split() in (["in"], ["not", "in"])]
        place = places[index]
        node.children[place] = _Code(" not in" if node.children[place].get_code().split() == ["in"] else " in")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example("x = a in b", "x = a not in b"),)


class _Code(parso.python.tree.Name):
    """Source text that stands for a node."""

    def __init__(self, code: str) -> None:
        super().__init__(code, (0, 0))


OPERATORS: dict[str, Operator] = {
    **{f"core/{name}": get_operator(f"core/{name}")() for name in _FROM_COSMIC_RAY},
    **{operator.__name__: operator() for operator in (RemoveStatement, DropOperand, SwapName, SwapIn)},
}
