"""The table of scale rules: which law each operator obeys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from .call import Call

__all__ = ["Rule", "family", "find_rule", "iterate_rules", "register_rule", "scale_rule", "supported_operators"]

RuleFunction = Callable[["Call"], Any]


@dataclass(frozen=True)
class Rule:
    """One operator's law.

    Attributes:
        operator: "aten::relu" (all overloads) or "aten::add.Tensor" (one overload).
        family: the law's family, as in the reference: tools/reference makes its tables of operators from it.
        function: from the call to the field of its result.
        own: whether a user registered it.
    """

    operator: str
    family: str
    function: RuleFunction
    own: bool = False


_RULES: dict[str, Rule] = {}


def scale_rule(*operators: str, family: str) -> Callable[[RuleFunction], RuleFunction]:
    """Registers the decorated function as the rule of `operators` ("namespace::name" or "namespace::name.overload").

    In-place (`relu_`) and out variants follow from the operator's schema; they need no rule of their own.

    Raises:
        OptionError: one of them has a rule already.
    """

    def register(function: RuleFunction) -> RuleFunction:
        for operator in operators:
            if operator in _RULES:
                raise OptionError(f"{operator} has a scale rule already ({_RULES[operator].function.__name__})")
            _RULES[operator] = Rule(operator, family, function)
        return function

    return register


def register_rule(*operators: str, family: str = "registered") -> Callable[[RuleFunction], RuleFunction]:
    """Decorator: makes a function the scale rule of operators of your own, made with ``torch.library``.

    The rule gets the call: ``call["x"]`` is the field of the argument x, which says by which scale each entry of x is multiplied;
    ``call.shape("x")`` and ``call.out_shape`` are shapes. It returns the field of the output. The laws of `fxenorm.rules.laws`
    cover nearly every case: ``passes(call, "x")`` takes the name of an argument; `same_field`, `reduce`, `contract` and `move`
    take fields; ``barrier(call, reason)`` says that no law holds. Below are a pointwise operator, a reduction, a product with a
    weight, and a permutation. A wrong rule damages weights: check yours with ``plan.verify()`` on a model that uses the
    operator. A rule that fails is replaced by a barrier, with a warning that names its line.

    Which parameters count in the norm follows from what the call uses them as: ``call.roles["w"] = "weight"`` (or "gamma")
    multiplies and counts, "bias" is added, "other" is left out of the norm. A parameter in `contract` is a weight, unless the
    rule says otherwise.

    Args:
        operators: "namespace::name", or "namespace::name.overload"; in-place and out variants follow from the schema. A rule
            that was registered for one of them before is replaced.
        family: a word for reports.

    Raises:
        OptionError: one of them is no operator, is not of the form "namespace::name", or has a rule of fxenorm's own.

    Example:
        >>> import torch, fxenorm
        >>> from fxenorm.field.structure import flip
        >>> from fxenorm.rules.laws import contract, move, passes, reduce
        >>> @torch.library.custom_op("my_library::leaky_abs", mutates_args=())
        ... def leaky_abs(x: torch.Tensor) -> torch.Tensor:
        ...     return torch.where(x > 0, x, -0.1 * x)
        >>> @fxenorm.register_rule("my_library::leaky_abs")
        ... def leaky_abs_rule(call):
        ...     "f(t x) = t f(x)"
        ...     return passes(call, "x")
        >>> "my_library::leaky_abs" in fxenorm.supported_operators()
        True
        >>> @torch.library.custom_op("my_library::row_sum", mutates_args=())
        ... def row_sum(x: torch.Tensor) -> torch.Tensor:
        ...     return x.sum(1)
        >>> @fxenorm.register_rule("my_library::row_sum")
        ... def row_sum_rule(call):
        ...     "the channels that are added up share one scale"
        ...     return reduce(call, call["x"], [1], call.out_shape)
        >>> @torch.library.custom_op("my_library::mirror", mutates_args=())
        ... def mirror(x: torch.Tensor) -> torch.Tensor:
        ...     return x.flip(1)
        >>> @fxenorm.register_rule("my_library::mirror")
        ... def mirror_rule(call):
        ...     "entries move, and their scales move with them; the last argument is the way back"
        ...     return move(call, call["x"], call.out_shape, lambda f: flip(f, [1]), lambda f: flip(f, [1]))
        >>> @torch.library.custom_op("my_library::project", mutates_args=())
        ... def project(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ...     return x @ w.T
        >>> @fxenorm.register_rule("my_library::project")
        ... def project_rule(call):
        ...     "y[b, o] = sum over i of x[b, i] w[o, i]; w is a weight"
        ...     return contract(call, call["x"], "bi", call["w"], "oi", "bo")
    """
    for operator in operators:
        if operator.count("::") != 1 or not all(operator.split("::")):
            raise OptionError(f'{operator!r} is not the name of an operator: expected "namespace::name"')
        if not _is_operator(operator):
            raise OptionError(f"no operator is named {operator!r}{_similar(operator)}: define it first, with torch.library")
        known = _RULES.get(operator)
        if known is not None and not known.own:
            raise OptionError(f"{operator} has a scale rule already ({known.function.__name__}), which is fxenorm's own")

    def register(function: RuleFunction) -> RuleFunction:
        _RULES.update((operator, Rule(operator, family, function, own=True)) for operator in operators)
        return function

    return register


def _is_operator(name: str) -> bool:
    """Whether torch knows an operator, or an overload of one."""
    base, _, overload = name.partition(".")
    return any(schema.overload_name == overload.replace("default", "") or not overload for schema in _schemas(base))


def _schemas(name: str) -> list[Any]:
    """Returns the schemas of an operator's overloads."""
    import torch

    return list(torch._C._jit_get_schemas_for_operator(name))


def _similar(name: str) -> str:
    """Returns a question for a message, where a name is nearly that of an operator."""
    import difflib

    import torch

    known = torch._C._dispatch_get_all_op_names()
    found = difflib.get_close_matches(name, {one.partition(".")[0] for one in known}, n=1, cutoff=0.8)
    return f" (did you mean {found[0]!r}?)" if found else ""


def supported_operators() -> list[str]:
    """Returns the names of all operators that have a scale rule, "namespace::name" or with an overload, in alphabetical order.

    Barriers by a stated reason are among them; what is not in the list is a barrier because no rule is known.

    Example:
        >>> import fxenorm
        >>> "aten::relu" in fxenorm.supported_operators()
        True
    """
    return sorted(_RULES)


def family(name: str, function: RuleFunction, operators: list[str]) -> None:
    """Registers one law for a list of operators."""
    scale_rule(*operators, family=name)(function)


def find_rule(name: str, overload: str) -> Rule | None:
    """Returns the rule of the operator `name` ("aten::relu_") and `overload`, or of that whose in-place form it is."""
    namespace, base = name.split("::")
    stems = [base]
    if base.endswith("_") and not base.endswith("__"):
        stems.append(base[:-1])
    if base.startswith("__i") and base.endswith("__"):
        stems.append(f"__{base[3:]}")
    # An out variant of an overload computes what the overload does.
    inner = overload.removesuffix("out").removesuffix("_") if overload.endswith("out") else overload
    for stem in stems:
        for key in (f"{namespace}::{stem}.{overload}", f"{namespace}::{stem}.{inner or 'default'}", f"{namespace}::{stem}"):
            if key in _RULES:
                return _RULES[key]
    return None


def iterate_rules() -> Iterator[Rule]:
    """Yields all rules, in alphabetical order of their operators."""
    return iter(_RULES[key] for key in sorted(_RULES))
