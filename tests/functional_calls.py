"""What functions multiply by a model's parameters, seen by exchanging the functions themselves: no analysis, no dispatch mode."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Seen = dict[tuple[str, str, int], list[Tensor]]

PLACES: dict[tuple[Any, str], tuple[int, int]] = {
    **{(F, name): (0, 1) for name in ("linear", "conv1d", "conv2d", "conv_transpose1d")},
    **{(torch, name): (0, 1) for name in ("matmul", "mm", "bmm", "mv")},
    (torch, "addmm"): (1, 2),
    (torch, "einsum"): (1, 2),
    (torch.Tensor, "__matmul__"): (0, 1),
}
"""By function, where its two factors stand."""


@contextlib.contextmanager
def operands(model: nn.Module) -> Iterator[Seen]:
    """Within it, all activations that functions multiply by parameters are noted, by (parameter, "operand", call), copied."""
    seen: Seen = {}
    calls: Counter[str] = Counter()
    running: list[nn.Module] = []
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in reversed(list(model.named_parameters()))}

    def name_of(tensor: Any) -> str:
        if not isinstance(tensor, Tensor):
            return ""
        copied = (name for name, one in model.named_parameters() if one.shape == tensor.shape and torch.allclose(one, tensor))
        return names.get(tensor.untyped_storage().data_ptr(), "") or next(copied, "")

    def watched(function: Callable[..., Any], places: tuple[int, int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            first, second = (args[place] if place < len(args) else kwargs.get("weight") for place in places)
            for activation, weight in ((first, second), (second, first)):
                name = name_of(weight)
                layer = running[-1] if running else model
                own = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and weight is layer.weight
                if name and weight.ndim > 1 and not name_of(activation) and not own:
                    seen[name, "operand", calls[name]] = [activation.detach().clone()]
                    calls[name] += 1
                    break
            return function(*args, **kwargs)

        return call

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda m, args: running.append(m)))
        handles.append(module.register_forward_hook(lambda m, args, out: (running.pop(), None)[1]))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    before = {place: getattr(*place) for place in PLACES}
    try:
        for (owner, name), places in PLACES.items():
            setattr(owner, name, watched(before[owner, name], places))
        yield seen
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for (owner, name), function in before.items():
            setattr(owner, name, function)
        for handle in handles:
            handle.remove()
