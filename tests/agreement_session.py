"""A model on two processes, and what one can ask of it; used by the cases of `agreement_worker`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxenorm
from tests.distributed_models import digest, full

INPUTS = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
KINDS = ("ddp", "fsdp")


def net() -> nn.Sequential:
    """Without biases, so that there are as many scales beside the tensors' channels as can be."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *[part for width in ((8, 16), (16, 17), (17, 4)) for part in (nn.Linear(*width, bias=False), nn.ReLU())][:-1]
    ).double()
    with torch.no_grad():
        model[0].weight *= 5
    return model


class Session:
    """A model on both processes, after one step of training."""

    def __init__(self, kind: str, backend: str = "eager", **options: Any) -> None:
        self.kind, self.net = kind, net()
        self.model: nn.Module = self.net
        if kind == "ddp":
            self.model = DistributedDataParallel(self.net)
        else:
            fully_shard(self.net)
        self.plan = fxenorm.analyze(net(), INPUTS, backend=backend, **options).bind(self.model)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.train()

    def train(self, seed: int = 0) -> None:
        """One step of training, on other data on each process."""
        self.optimizer.zero_grad()
        self.model(INPUTS + seed + dist.get_rank()).square().sum().backward()
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """Weights and state, as they lie on this process."""
        state = [value for parameter in self.net.parameters() for value in self.optimizer.state.get(parameter, {}).values()]
        return [getattr(tensor, "to_local", lambda t=tensor: t)().detach() for tensor in (*self.net.parameters(), *state)]

    def bits(self) -> str:
        """A hash of them."""
        return digest(self.tensors())

    def outputs(self) -> Tensor:
        """What the whole model computes; all processes have to ask."""
        weights = {name: full(parameter) for name, parameter in self.net.named_parameters()}
        with torch.no_grad():
            return torch.func.functional_call(net(), weights, INPUTS)

    def products(self) -> list[Tensor]:
        """What no rescaling changes: first moments times weights."""
        found = [(parameter, self.optimizer.state[parameter]["exp_avg"]) for parameter in self.net.parameters()]
        return [full(parameter) * full(moment) for parameter, moment in found]


def alike(session: Session) -> bool:
    """Whether both processes have the same bits; of a sharded model, whether it goes on."""
    if session.kind == "fsdp":
        return True
    bits: list[Any] = [None, None]
    dist.all_gather_object(bits, session.bits())
    return bits[0] == bits[1]


def outcome(call: Callable[[], Any]) -> str:
    """The type and the text of what a call raises; empty for nothing."""
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


def close(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors agree to rounding."""
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(some, others, strict=True))
