"""Models, modes and measures that the worker of `test_distributed` uses; sizes are uneven, so that shards are, or are empty."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fxenorm
from tests.releases import complete_cpu_streams

complete_cpu_streams()


class ConvNet(nn.Module):
    """Convolutions, BatchNorms, a residual branch; 5, 7 and 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 1))
        self.neck = nn.Conv2d(5, 7, 3, bias=False)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.branch(x))
        return self.head(torch.relu(self.neck(x)).mean((2, 3)))


class Transformer(nn.Module):
    """One block with attention and a ReLU layer of 11 units; the head is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.first, self.second, self.last = nn.LayerNorm(6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.first(x)
        heads = [layer(y).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.up(self.second(x))))
        return self.head(self.last(x))


class Perceptron(nn.Module):
    """Three layers, named as tensor parallelism names them."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(6, width), nn.Linear(width, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.middle(torch.relu(self.up(x)))))


class Sequence(nn.Module):
    """A block on sequences, between norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.second, self.last = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(x + self.down(torch.relu(self.up(self.first(x))))))


class Upsampling(nn.Module):
    """Transposed convolutions, whose weights are cut along their inputs while what follows is cut along its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5)
        self.second, self.other = nn.ConvTranspose2d(5, 6, 3, groups=1, bias=False), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.other(self.second(x))))


class Residual(nn.Module):
    """A stream of 9 channels that 10 hidden units read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.read, self.write, self.down = nn.Linear(6, 9), nn.Linear(9, 10), nn.Linear(10, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x + self.write(torch.relu(self.read(x))))


def build(kind: type[nn.Module], *args: Any) -> nn.Module:
    """The same float64 model on every process, with weights that are far from balanced and no two scales alike."""
    torch.manual_seed(3)
    model = kind(*args).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape[:1], dtype=torch.float64).reshape(-1, *[1] * (parameter.ndim - 1)) + 0.5)
    return model


def batch(model_kind: type[nn.Module], seed: int = 0) -> Tensor:
    """One batch."""
    generator = torch.Generator().manual_seed(seed)
    if model_kind is Transformer:
        return torch.randint(13, (3, 5), generator=generator)
    shape = {ConvNet: (4, 3, 6, 6), Upsampling: (4, 3, 6, 6), Sequence: (3, 4, 6)}.get(model_kind, (4, 6))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def train(
    model: nn.Module,
    plan: fxenorm.Plan,
    optimizer: Optimizer,
    batches: SequenceOf[Tensor],
    *,
    attach: bool = False,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    """A training loop with a rescaling after every step."""
    handle = plan.attach(optimizer) if attach else None
    for inputs in batches:
        optimizer.zero_grad()
        backward(model(inputs).square().mean())
        optimizer.step()
        if handle is None:
            plan.step(optimizer)
    if handle is not None:
        handle.remove()


def full(tensor: Tensor) -> Tensor:
    """A copy of the whole of a tensor; for distributed ones all processes must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state_of(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """All values of a model and its optimizer's state by name, whole."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    found: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
    for name, parameter in model.named_parameters():
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        found.update({f"{key} of {name}": value for key, value in state.items() if isinstance(value, Tensor)})
    # All rows at once: a collective a tensor would be most of the tests' time.
    rows = [name for name, value in found.items() if _is_cut_by_rows(value)]
    parts: list[Any] = [None] * dist.get_world_size()
    if rows:
        dist.all_gather_object(parts, [found[name].to_local().detach() for name in rows])
    joined = {name: torch.cat([part[number] for part in parts]) for number, name in enumerate(rows)}
    return {name: joined[name] if name in joined else full(value) for name, value in found.items()}


def _is_cut_by_rows(tensor: Tensor) -> bool:
    """Whether all processes hold some rows of it each, in their order."""
    if not isinstance(tensor, DTensor) or tensor.placements != (Shard(0),):
        return False
    return bool(tensor.device_mesh.size() == dist.get_world_size())


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of two states, relative to the largest entry of each tensor; infinite where names differ.

    Gradients that are zero but for rounding (of biases in front of a BatchNorm) have no size of their own: 1e-8 at least.
    """
    if some.keys() != others.keys():
        return float("inf")
    worst = 0.0
    for name, tensor in some.items():
        size = max(float(others[name].abs().max()), 1e-8)
        worst = max(worst, float((tensor.double() - others[name].double()).abs().max()) / size)
    return worst


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Collectives(TorchDispatchMode):
    """Counts the calls into torch.distributed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Allocations(TorchDispatchMode):
    """The largest tensor that is made within it, and the most bytes of such tensors that are there at a time."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.largest = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given | self._known:
                storage = leaf.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result
