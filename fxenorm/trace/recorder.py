"""Records the operators of one run with fake values, in a third of the time that `make_fx` takes; for plain models alone.

`make_fx` follows branches, loops, vmap, derivatives, symbolic sizes and values that Python reads, too. The recorder refuses all
of these, and writes the same graph for the others.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer, snapshot_fake
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["NotPlain", "recorded_plainly"]

_SIMPLE = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator)
_LIFTED = {torch.ops.aten.lift_fresh.default: torch.ops.aten.lift_fresh_copy.default}
_OF_DERIVATIVES = ("_make_dual", "_unpack_dual")


@functools.cache
def _makes(operator: OpOverload) -> bool:
    """Whether an operator makes a tensor of a given dtype and device, as `empty`."""
    return any(argument.name == "pin_memory" for argument in operator._schema.arguments)


class NotPlain(Exception):
    """The model calls something that only `make_fx` can record."""


def recorded_plainly(
    run: Callable[..., tuple[Any, ...]], tensors: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> fx.Graph:
    """Returns the graph of ``run(tensors, inputs)``, with a placeholder for each, as `make_fx` with ``pre_dispatch`` makes it.

    Args:
        run: returns the tensors that are the graph's outputs.
        tensors: fake tensors, of a mode that is on.
        inputs: as `tensors`.

    Raises:
        NotPlain: `make_fx` has to record this run.
    """
    recorder = _Recorder()
    for position, tensor in enumerate((*tensors, *inputs)):
        recorder.begin_with(position, tensor)
    with enable_python_dispatcher(), recorder:
        outputs = run(list(tensors), list(inputs))
    return recorder.end_with(outputs)


class _Recorder(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes each operator that is called, above autograd, as a node.

    Tensors live as long as the recorder, so that an identity stands for one tensor. Only those that are made from numbers do not:
    torch hands a copy of them on where somebody else holds them.
    """

    def __init__(self) -> None:
        tracer = PythonKeyTracer()
        tracer.root, tracer.tensor_attrs = nn.Module(), {}
        tracer.graph = fx.Graph(tracer.root)  # type: ignore[arg-type]  # a GraphModule would be compiled
        super().__init__(tracer, "real", pre_dispatch=True)
        self._graph = tracer.graph
        self._nodes: dict[int, fx.Node] = {}
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._values: list[tuple[torch.Tensor, torch.Size, tuple[int, ...]]] = []

    def begin_with(self, position: int, tensor: torch.Tensor) -> None:
        """Writes a placeholder."""
        self._stands_for(tensor, self._graph.placeholder(f"tensor_{position}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Runs an operator and writes it."""
        if not isinstance(func, OpOverload) or torch.Tag.data_dependent_output in func.tags or func._opname in _OF_DERIVATIVES:
            raise NotPlain(f"{func} is called")
        kwargs = kwargs or {}
        node_args = tuple([self._argument(value) for value in args])
        node_kwargs = {name: self._argument(value) for name, value in kwargs.items()}
        output = func(*args, **kwargs)
        target = _LIFTED.get(func, func)
        name = self._graph._target_to_str(target.overloadpacket.__name__)
        node = self._graph.create_node("call_function", target, node_args, node_kwargs, name)
        if isinstance(output, torch.Tensor) and _makes(func) and id(output) not in self._nodes:
            self._made[output] = node
            node.meta["val"] = snapshot_fake(output)
        else:
            self._is_result(output, node)
        return output

    def _argument(self, value: Any) -> Any:
        """Returns what stands for the argument of an operator in the graph."""
        if isinstance(value, torch.Tensor):
            known = self._nodes.get(id(value)) or self._made.get(value)  # type: ignore[no-untyped-call]
            return known or self._constant(value)
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        if value is None or isinstance(value, _SIMPLE):
            return value
        raise NotPlain(f"an operator takes {type(value).__name__}")

    def _constant(self, value: torch.Tensor) -> Any:
        """Writes the read of a tensor that neither is given nor was made in this run."""
        if type(value) not in (torch.Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise NotPlain("a tensor was made where no operator is seen")
        return self.tracer.create_arg(value)

    def _is_result(self, value: Any, node: fx.Node) -> None:
        """Notes that `node` computes `value`; for several tensors it writes the choice of each."""
        if isinstance(value, torch.Tensor):
            self._stands_for(value, node)
        elif isinstance(value, (list, tuple)):
            node.meta["val"] = value
            for position, item in enumerate(value):
                self._is_result(item, self._graph.create_node("call_function", operator.getitem, (node, position)))
        elif value is not None and not isinstance(value, _SIMPLE):
            raise NotPlain(f"an operator returns {type(value).__name__}")

    def _stands_for(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Notes that `node` is this tensor from now on."""
        if not isinstance(tensor, FakeTensor) or tensor.layout is not torch.strided:
            raise NotPlain("a tensor has values, or is sparse")
        self._values.append((tensor, tensor.shape, tensor.stride()))
        self._nodes[id(tensor)] = node
        # What is made of numbers alone knows them; nobody else is to read them off the graph.
        node.meta["val"] = tensor if tensor.constant is None else snapshot_fake(tensor)

    def end_with(self, outputs: Sequence[Any]) -> fx.Graph:
        """Writes the outputs, and returns the whole.

        Raises:
            NotPlain: a tensor has another shape now, as after `resize_`, or no operator that was seen made an output.
        """
        if any(tensor.shape != shape or tensor.stride() != stride for tensor, shape, stride in self._values):
            raise NotPlain("an operator changes the shape of a tensor")
        self._graph.output([self._argument(value) for value in outputs])
        return self._graph
