"""Leaves a model, the random numbers and torch's switches as they were found, also when the trace raises."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .modes import set_mode
from .names import storage_id
from .randomness import Generators
from .releases import compiled_parts_inlined, functorch_levels, registration_hooks
from .state import ReachableState

__all__ = ["Notes", "RunGuard", "prepared"]


TOO_MANY_OBJECTS = (
    "forward can reach more objects than are looked at: what it keeps in the farthest of them from one call to the next is not "
    "held, and what the trace wrote there stays"
)


class Notes(list[str]):
    """Sentences for the user.

    Attributes:
        state: the objects that forward can reach and write.
        generators: of random numbers that forward can draw from.
        drew: after the run, whether it drew from one of Python's or numpy's, whose numbers no trace sees.
    """

    state: ReachableState
    generators: Generators
    drew: bool = False


@contextlib.contextmanager
def prepared(model: nn.Module, mode: str) -> Iterator[Notes]:
    """Within it `model` is in `mode` ("train" or "eval"), ready to be run or traced; at exit it is as it was.

    Yields a list that holds, after the exit, what the user should know about the run.
    """
    notes = Notes()
    with (
        _preserved(model) as notes.state,
        registration_hooks(),
        functorch_levels(),
        compiled_parts_inlined(),
        _random_state(notes),
        _quiet(model),
    ):
        if not notes.state.whole:
            notes.append(TOO_MANY_OBJECTS)
        set_mode(model, mode)
        for module in model.modules():
            if getattr(module, "_compiled_call_impl", None) is not None:
                module._compiled_call_impl = None  # of model.compile(): a trace wants the plain forward
        yield notes


@contextlib.contextmanager
def _preserved(model: nn.Module) -> Iterator[ReachableState]:
    """Restores at exit all that forward can reach and write, and every requires_grad."""
    gradients = [(tensor, tensor.requires_grad) for tensor in (*model.parameters(), *model.buffers())]
    state = ReachableState(model)
    try:
        yield state
    finally:
        state.restore()
        for tensor, flag in gradients:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)


@contextlib.contextmanager
def _random_state(notes: Notes) -> Iterator[None]:
    """Restores torch's generators, on the CPU and, where CUDA is in use, on every GPU, and Python's and numpy's."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    notes.generators = Generators(notes.state.generators)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        notes.drew = notes.generators.drew()
        notes.generators.restore()


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Silences torch's logs, warnings and prints on the way: our own errors and notes tell the outcome.

    Also makes the run independent of where it was called from: attention's fused inference kernel, which only runs
    without gradients, is off, and gradient and inference mode are as usual in training.
    """
    fast_path, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            # Tensors made in inference mode cannot take part where gradients are recorded.
            gradients = not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
            with torch.inference_mode(False), torch.set_grad_enabled(gradients):
                yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast_path)


class RunGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Undoes the writes of operators into the given tensors, and knows which tensors the run made.

    Each tensor is copied at its first write only.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._guarded: dict[int, torch.Tensor] = {}
        for tensor in tensors:
            self._guarded.setdefault(storage_id(tensor), tensor)
        self._guarded.pop(0, None)
        self._saved: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Copies the tensors that `func` is about to write, then runs it."""
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # higher-order operators have none
        if schema is not None and schema.is_mutable:
            for position, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = kwargs.get(argument.name, args[position] if position < len(args) else None)
                    for tensor in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(tensor, torch.Tensor):
                            self._save(tensor)
        known = {storage_id(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        output = func(*args, **kwargs)
        made = (storage_id(tensor) for tensor in tree_leaves(output) if isinstance(tensor, torch.Tensor))
        self._made.update(storage for storage in made if storage not in known)
        return output

    def made(self, tensor: torch.Tensor) -> bool:
        """Whether an operator of this run computed `tensor`, which must have been alive since."""
        return storage_id(tensor) in self._made

    def _save(self, tensor: torch.Tensor) -> None:
        """Copies the storage of `tensor` if it is a guarded one that was not written before."""
        if self._guarded.pop(storage_id(tensor), None) is not None:
            storage = tensor.untyped_storage()
            self._saved.append((storage, storage.clone()))  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        """Writes the former content back into every guarded tensor."""
        for storage, before in self._saved:
            storage.copy_(before)
        self._saved.clear()
