"""Differences between releases of torch that matter to the tracers, each found by a look at torch itself, not at its number."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from .contents import put_back

__all__ = [
    "GROUPED_PRODUCTS",
    "compiled_parts_inlined",
    "default_device",
    "functorch_levels",
    "refuse_computed_constants",
    "registration_hooks",
    "run_grouped_product",
    "run_recorded",
]

# Up to 2.12 no graph can hold a generator of random numbers; from 2.13 or 2.14 on it is an object like others.
_GRAPHS_HOLD_GENERATORS = type(torch.Generator) is not type


# The functions by which each token is multiplied by the weight of its expert, as far as this release has them.
GROUPED_PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    getattr(owner, name) for owner, name in ((torch, "_grouped_mm"), (torch.nn.functional, "grouped_mm")) if hasattr(owner, name)
)


def run_recorded(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs one function of a forward pass that is being traced.

    Where no graph can hold the generator that it is given, it draws the same numbers without naming it.
    """
    generator = kwargs.get("generator")
    if _GRAPHS_HOLD_GENERATORS or not isinstance(generator, torch.Generator):
        return func(*args, **kwargs)
    default = _default_generator(generator.device)
    if default is None:
        return func(*args, **kwargs)
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        return func(*args, **{**kwargs, "generator": None})
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


def run_grouped_product(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs a grouped product without values, in bfloat16 where this release refuses other types: the law is the same.

    A release that does so still multiplies float32 and float16 on real tensors.
    """
    operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor) and value.is_floating_point()]
    dtype = operands[0].dtype
    if dtype not in (torch.float32, torch.float16) or _takes_float32_without_values(func):
        return func(*args, **kwargs)

    def narrow(value: Any) -> Any:
        return value.to(torch.bfloat16) if any(value is operand for operand in operands) else value

    options = {**tree_map(narrow, dict(kwargs)), "out_dtype": None}
    return func(*tree_map(narrow, tuple(args)), **options).to(kwargs.get("out_dtype") or dtype)


@functools.cache
def _takes_float32_without_values(product: Callable[..., Any]) -> bool:
    """Whether a grouped product runs in float32 on tensors without values; before 2.15 it does not."""
    with _disable_current_modes():  # the question is no part of a graph that is being recorded
        tokens, experts = (torch.empty(shape, dtype=torch.float32, device="meta") for shape in ((8, 8), (1, 8, 8)))
        try:
            product(tokens, experts, offs=torch.empty(1, dtype=torch.int32, device="meta"))
        except RuntimeError:
            return False
    return True


def _default_generator(device: torch.device) -> torch.Generator | None:
    """Returns the generator from which a call draws that names none; None on devices for which there is no way to it."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator if device.type == "cpu" else None


def default_device() -> torch.device:
    """Returns the device of a new tensor that names none: torch 2.6 does not say it within ``with torch.device(...)``."""
    return torch.empty(0, dtype=torch.float32, device=None).device


@contextlib.contextmanager
def registration_hooks() -> Iterator[None]:
    """Restores torch's global registration hooks: before 2.15 an export that fails leaves one behind.

    It would break ``self.n = self.n + 1`` on a buffer in every module of the process.
    """
    hooks = [getattr(torch.nn.modules.module, f"_global_{kind}_registration_hooks") for kind in ("buffer", "parameter", "module")]
    before = [dict(known) for known in hooks]
    try:
        yield
    finally:
        for known, content in zip(hooks, before, strict=True):
            put_back(known, content)


@contextlib.contextmanager
def functorch_levels() -> Iterator[None]:
    """Closes at exit the levels of vmap and of derivatives that a failed trace left open.

    An open one breaks every later call in the thread, the user's training included: each tensor would be taken for a wrapped one.
    """
    before = _open_levels()
    try:
        yield
    finally:
        if _open_levels() > before:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(before)


def _open_levels() -> int:
    """Returns how many levels of vmap and of derivatives are open in this thread."""
    return len(torch._C._functorch.get_interpreter_stack() or ())


def compiled_parts_inlined() -> contextlib.AbstractContextManager[Any]:
    """Within it a part that torch.compile wraps is traced through: torch 2.6 raises there unless it is told.

    Later releases ask a narrower question first, which no tracer of ours answers with yes.
    """
    if hasattr(torch.fx._symbolic_trace, "is_fx_symbolic_tracing"):
        return contextlib.nullcontext()
    from torch._dynamo import config

    patch: Callable[..., contextlib.AbstractContextManager[Any]] = config.patch
    return patch(error_on_nested_fx_trace=False)


def refuse_computed_constants(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Raises where a tensor that forward computed came back as a constant of the graph, which does not show where it comes from.

    Later releases of `torch.export` refuse this themselves; 2.6 takes derivatives and vmap inside forward for constants.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    if any(isinstance(tensor, FakeTensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    for name, value in program.constants.items():
        if isinstance(value, torch.Tensor) and (
            isinstance(value, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(value)
        ):
            raise RuntimeError(f"a computed tensor of shape {tuple(value.shape)} became the constant {name}")
