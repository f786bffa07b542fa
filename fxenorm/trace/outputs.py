"""The values that leave a forward call, by return, through attributes or through arguments; and which of them are held."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from ..errors import OptionError
from .object_parts import PAST_NAMES
from .reachable import Leaf, Search

__all__ = ["Output", "OutputWatch", "check_patterns", "chosen", "described", "graph_values"]

WHOLE = "output"
"""The path of a tensor that forward returns by itself; "0" names it too."""

ATTRIBUTES, ARGUMENTS, READ = "self", "inputs", "(read by Python)"

_NUMBERS = frozenset({bool, int, float, complex})
_NOTHING = object()
_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""The attributes of every module that are looked into: hooks may keep what they see."""

_NOT_ENTERED = ("lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "logging", "fxenorm")
_NOT_ENTERED_OF_TORCH = ("utils", "optim", "distributed", "fx", "jit", "export", "_dynamo", "_subclasses")


@dataclass(frozen=True)
class Output:
    """One value that leaves forward.

    Attributes:
        path: keys, positions and attribute names that lead to it from the returned value ("logits", "0.1"; a single tensor is
            "output"), from the model ("self.aux") or from the arguments ("inputs.0").
        kind: "tensor", "number", "text", "unsearched" (an object that may hold tensors where they are not seen) or "read" (the
            value of a tensor that Python read on the way).
        position: of its node among the graph's outputs, None where no node stands for it.
        cache: whether Transformers marks it as a cache.
        reason: why an object cannot be searched.
        returned: whether it is part of the returned value; else it was left in an attribute or an argument.
    """

    path: str
    kind: Literal["tensor", "number", "text", "unsearched", "read"]
    position: int | None = None
    cache: bool = False
    reason: str = ""
    returned: bool = True


class OutputWatch:
    """Finds the values that leave one forward call of a model.

    Args:
        model: the module that is called.
        raises: whether the errors of a returned iterator are passed on.

    Attributes:
        leaves: after the call, the values that left; None where the call did not end.
    """

    def __init__(self, model: nn.Module, raises: bool = False) -> None:
        self._model, self._raises = model, raises
        self._depth = 0
        self._tensors: dict[int, torch.Tensor] = {}
        self._numbers: dict[str, Any] = {}
        self._settings: dict[str, Any] = {}
        self.leaves: list[Leaf] | None = None

    def before(self, args: Any, kwargs: Any) -> None:
        """Notes the tensors and numbers that are there before the call."""
        search = self._search()
        for path, value in self._places(args, kwargs):
            if _is_setting(value):
                self._settings[path] = value
            else:
                self._note(search.leaves(path, value))

    def _note(self, leaves: Iterable[Leaf]) -> None:
        """Notes the tensors and numbers among `leaves`."""
        for leaf in _wanted(leaves):
            if leaf.kind == "tensor":
                self._tensors[id(leaf.value)] = leaf.value
            else:
                self._numbers[leaf.path] = leaf.value

    def knew(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was there before the call, in an attribute, a buffer or an argument."""
        return id(tensor) in self._tensors

    def after(self, args: Any, kwargs: Any, output: Any) -> list[Leaf]:
        """Returns the values that left: all of `output`, and the new ones in attributes and arguments."""
        search = Search(
            runs_lazy_code=True, raises=self._raises, enters=lambda value: _home(value)[0] not in ("fxenorm", "logging")
        )
        found = [_named(leaf) for leaf in search.leaves("", output)]
        returned = {id(leaf.value) for leaf in found}
        for leaf in self._left(args, kwargs):
            if leaf.kind == "tensor":
                new = id(leaf.value) not in self._tensors and id(leaf.value) not in returned
            else:
                new = not _same(leaf.value, self._numbers.get(leaf.path))
            found += [leaf] if new else []
        self.leaves = found
        return found

    def hook(self, use: Callable[[list[Leaf]], Any], begin: Callable[[], None] = lambda: None) -> None:
        """Watches every call of the model: calls `begin` before it, and `use` with the values that left.

        `use` may return another output. The hooks stay: whoever prepared the model for a trace takes them off again.
        """

        def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._depth += 1
            if self._depth == 1:
                begin()
                self.before(args, kwargs)

        def leaving(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            self._depth -= 1  # a model may call itself
            return use(self.after(args, kwargs, output)) if self._depth == 0 else None

        self._model.register_forward_pre_hook(entering, prepend=True, with_kwargs=True)
        self._model.register_forward_hook(leaving, with_kwargs=True)

    def _left(self, args: Any, kwargs: Any) -> Iterator[Leaf]:
        """Yields the tensors and numbers that attributes of modules and arguments hold, without settings that nobody replaced."""
        search = self._search()
        for path, value in self._places(args, kwargs):
            before = self._settings.get(path, _NOTHING)
            if before is not value:
                if before is not _NOTHING:
                    self._note(self._search().leaves(path, before))
                yield from _wanted(search.leaves(path, value))

    def _places(self, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Yields each attribute of a module, and the arguments, with their paths."""
        for path, module in self._model.named_modules():
            prefix = f"{ATTRIBUTES}.{path}" if path else ATTRIBUTES
            for name, value in (*_attributes(module), *list(module._buffers.items())):
                if value is not None and type(value) is not str:  # no number, no tensor
                    yield f"{prefix}.{name}", value
        yield ARGUMENTS, [*args]
        yield ARGUMENTS, dict(kwargs)

    def _search(self) -> Search:
        """Returns a search through attributes and arguments, which stops at modules and parameters."""
        modules = list(self._model.modules())
        parameters = [tensor for module in modules for tensor in module._parameters.values() if tensor is not None]
        return Search(runs_lazy_code=False, skip=[*modules, *parameters], enters=_entered, returned=False)


def _is_setting(value: Any) -> bool:
    """Whether a value is a number, or a tuple of numbers and texts, as most attributes of modules: nothing can change in it."""
    if type(value) is tuple:
        return all(type(item) in _NUMBERS or type(item) is str for item in value)
    return type(value) in _NUMBERS


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the attributes of a module and of its classes, without those of every module."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name in _HOOKS:
        hooks = vars(module)[name]
        if any(_entered(hook) for hook in list(hooks.values())):
            yield name, hooks
    yield from ((name, value) for name, value in list(vars(module).items()) if name not in _OF_ALL_MODULES)
    for kind in type(module).__mro__:
        if kind.__module__.split(".")[0] not in ("torch", "builtins"):
            kept = ((name, value) for name, value in list(vars(kind).items()) if not name.startswith("__"))
            yield from ((name, value) for name, value in kept if isinstance(value, (torch.Tensor, list, dict, set)))


def _entered(value: Any) -> bool:
    """Whether the search through attributes goes into an object; trainers, optimizers and the like are left out."""
    home = _home(value)
    return home[0] not in _NOT_ENTERED and not (home[0] == "torch" and len(home) > 1 and home[1] in _NOT_ENTERED_OF_TORCH)


def _home(value: Any) -> list[str]:
    """Returns the parts of the name of the module in which a function, or an object's class, was defined."""
    return str(getattr(value, "__module__", None) or type(value).__module__).split(".")


def _wanted(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    """Tensors that can stand for a value, and numbers."""
    for leaf in leaves:
        if leaf.kind == "number" or (leaf.kind == "tensor" and not torch._C._functorch.is_functorch_wrapped_tensor(leaf.value)):
            yield dataclasses.replace(leaf, cache=False) if leaf.cache else leaf


def _same(new: Any, old: Any) -> bool:
    """Whether a number is the same as before; a symbolic one never is."""
    if new is old:
        return True
    if type(new) is not type(old) or isinstance(new, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return False
    try:
        return bool(new == old) or new != new
    except (TypeError, ValueError):  # an array of numbers
        return False


def _named(leaf: Leaf) -> Leaf:
    """Gives a single value, which has no path, the path "output"."""
    return leaf if leaf.path else dataclasses.replace(leaf, path=WHOLE)


def graph_values(leaves: Sequence[Leaf], read: Sequence[torch.Tensor] = ()) -> tuple[tuple[Any, ...], tuple[Output, ...]]:
    """Returns (the values that the traced function returns, the output that each of them is).

    A value among `read` is a tensor whose values Python read on the way.
    """
    values: list[Any] = []
    outputs = []
    for leaf in leaves:
        stands = leaf.kind == "tensor" or isinstance(leaf.value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        position = len(values) if stands else None
        outputs.append(Output(leaf.path, leaf.kind, position, leaf.cache, leaf.reason, leaf.returned))
        values += [leaf.value] if stands else []
    for tensor in read:
        outputs.append(Output(READ, "read", len(values)))
        values.append(tensor)
    return tuple(values), tuple(outputs)


def chosen(outputs: Sequence[Output | Leaf], patterns: Sequence[str] | None) -> list[bool]:
    """Tells of each output whether it is held: those that a pattern names; without patterns all but caches.

    Without patterns, caches are held where nothing else leaves. Values that Python read on the way are held unless the patterns
    name tensors only.
    """
    if patterns is None:
        all_of_it = all(item.cache for item in outputs if item.kind == "tensor")
        return [all_of_it or not item.cache for item in outputs]
    named = [item.kind != "read" and any(_matches(item, pattern) for pattern in patterns) for item in outputs]
    numbers = any(hit and item.kind in ("number", "text") for hit, item in zip(named, outputs, strict=True))
    return [hit or (item.kind == "read" and numbers) for hit, item in zip(named, outputs, strict=True)]


def _matches(item: Output | Leaf, pattern: str) -> bool:
    """Whether a pattern names an output or a container that it is in."""
    if item.path == WHOLE:
        return fnmatchcase(WHOLE, pattern) or fnmatchcase("0", pattern)
    first, *rest = item.path.split(".")
    heads = PAST_NAMES if item.cache and first in PAST_NAMES else (first,)
    names = (".".join((head, *rest[:count])) for head in heads for count in range(len(rest) + 1))
    return any(fnmatchcase(name, pattern) for name in names)


def check_patterns(by_mode: Mapping[str, Sequence[Output]], patterns: Sequence[str] | None) -> None:
    """Raises unless every pattern names an output in some mode, and some pattern one in every mode.

    Raises:
        OptionError: it lists the paths.
    """
    if patterns is None:
        return
    for pattern in patterns:
        if not any(_names(outputs, pattern) for outputs in by_mode.values()):
            everything = [item for outputs in by_mode.values() for item in outputs]
            raise OptionError(f"outputs: {pattern!r} names nothing that forward returns; it returns {described(everything)}")
    for mode, outputs in by_mode.items():
        if not any(_names(outputs, pattern) for pattern in patterns):
            raise OptionError(
                f"outputs: in {mode} mode none of {', '.join(map(repr, patterns))} names anything that forward returns; it "
                f"returns {described(outputs)}: name one of these too, or leave that mode out (modes=)"
            )


def _names(outputs: Sequence[Output], pattern: str) -> bool:
    """Whether a pattern names any of the outputs."""
    return any(item.kind != "read" and _matches(item, pattern) for item in outputs)


def described(outputs: Sequence[Output], most: int = 40) -> str:
    """Returns the paths of outputs as a list in words, the first `most` of them, tensors first."""
    kinds = ("tensor", "number", "unsearched", "text")
    ordered = sorted((item for item in outputs if item.kind in kinds), key=lambda item: kinds.index(item.kind))
    paths = list(dict.fromkeys(item.path for item in ordered))
    if not paths:
        return "nothing"
    return ", ".join(map(repr, paths[:most])) + (f" and {len(paths) - most} more" if len(paths) > most else "")
