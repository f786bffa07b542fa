"""Small models, inputs and terms for the tests of objectives, and what each term is by definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fxenorm
from fxenorm import masses
from fxenorm.objectives import Masses, Normalised, Term, Weights

from .helpers import generator, log_factors, mlp, randomise, tensors
from .zoo import Residual

X = torch.randn(12, 6, dtype=torch.float64, generator=generator(1))
LABELS = torch.randint(0, 3, (12,), generator=generator(2))
TOKENS = torch.randint(3, 30, (3, 7), generator=generator(3))


def chain() -> nn.Module:
    """Three layers with biases."""
    return randomise(mlp(6, 8, 7, 3).double(), seed=1).eval()


def residual() -> nn.Module:
    """Two residual blocks with BatchNorm between two layers, statistics and gains of their own."""

    def block(width: int) -> nn.Module:
        return Residual(
            nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 6), nn.BatchNorm1d(6))
        )

    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), block(5), nn.ReLU(), block(7), nn.ReLU(), nn.Linear(6, 3)).double()
    return randomise(model, (X,), seed=2).eval()


class Llama(nn.Module):
    """A Llama of two blocks with grouped queries; its own norms are spelled out as products."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, use_cache=False, **sizes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=tokens).logits  # type: ignore[no-any-return]


def llama() -> nn.Module:
    return randomise(Llama().double(), seed=3).eval()


@dataclass(frozen=True)
class Case:
    """A model with its inputs, the loss of a batch by sample, and whether it has paths."""

    make: Callable[[], nn.Module]
    inputs: tuple[torch.Tensor, ...]
    losses: Callable[[nn.Module], torch.Tensor]
    has_paths: bool = True

    def plan(self, model: nn.Module, **options: Any) -> fxenorm.Plan:
        return fxenorm.analyze(model, self.inputs, modes="eval", **options)


def _losses(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(X), LABELS, reduction="none")


def _token_losses(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(TOKENS).transpose(1, 2), TOKENS, reduction="none").mean(1)


CASES = {
    "mlp": Case(chain, (X,), _losses),
    "residual": Case(residual, (X,), _losses),
    "llama": Case(llama, (TOKENS,), _token_losses, has_paths=False),
}

TERMS: dict[str, Callable[[nn.Module, Case], Term]] = {
    "weights": lambda model, case: Weights(),
    "steep weights": lambda model, case: Weights(p=3.5, biases="count"),
    "layer weights": lambda model, case: Weights(p=1, c=1.3) + 2 * Weights(p=4, c="adaptive"),
    "without gains": lambda model, case: Weights(gains=False),
    "all parameters": lambda model, case: masses.weights(model, 2.0),
    "gradients": lambda model, case: masses.gradients(model, lambda model: case.losses(model).mean()),
    "fisher": lambda model, case: masses.fisher(model, case.losses),
    "normalised weights": lambda model, case: Normalised(Weights(p=2)),
    "normalised fisher": lambda model, case: Normalised(masses.fisher(model, case.losses)),
    "normalised sum": lambda model, case: Normalised(Weights(p=1) + 3 * masses.fisher(model, case.losses)),
    "normalised path": lambda model, case: Normalised(masses.path(model, case.inputs)),
    "mixture": lambda model, case: Weights(p=2) + 0.3 * masses.fisher(model, case.losses) + 1e-2 * Normalised(Weights(p=1)),
}


def entries(plan: fxenorm.Plan, named: dict[str, torch.Tensor], power: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The terms m_e exp(power a_e . s) of some masses as a differentiable function of s, by definition, those above zero."""

    def at(log_scales: torch.Tensor) -> torch.Tensor:
        parts = []
        for name, found in named.items():
            own = plan.exponents.get(name, [])
            moved = found.double() * (power * log_factors(own, log_scales, found.shape)).exp()
            parts.append(moved[found > 0])
        return torch.cat([part.reshape(-1) for part in parts])

    return at


def counted(plan: fxenorm.Plan, p: float, gains: bool = True) -> dict[str, torch.Tensor]:
    """|w|^p of the parameters that multiply and carry a variable, by name."""
    roles = plan.symmetry.roles
    named = {name: tensor for name, tensor in tensors(plan.model).items() if roles.get(name) in ("weight", "gamma")}
    kept = {name: tensor for name, tensor in named.items() if gains or not (roles[name] == "gamma" or tensor.ndim == 1)}
    return {name: tensor.detach().abs() ** p for name, tensor in kept.items() if name in plan.exponents}


def normalised(entries_of: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """n log of the entries' sum less the sum of their logarithms, by definition."""

    def value(log_scales: torch.Tensor) -> torch.Tensor:
        found = entries_of(log_scales)
        return found.numel() * found.sum().log() - found.log().sum()

    return value


def by_definition(plan: fxenorm.Plan, term: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A term of c = 1 as a differentiable function of the log-scales, from exponents and masses alone."""
    if isinstance(term, Masses):
        found = entries(plan, dict(term.tensors), term.power)
        return lambda log_scales: found(log_scales).sum()
    if isinstance(term, Weights):
        p = 2.0 if term.p is None else term.p
        powers = entries(plan, counted(plan, p, term.gains), p)
        return lambda log_scales: powers(log_scales).sum()
    if isinstance(term, Normalised):
        inner = term.term
        if isinstance(inner, Weights):
            p = 2.0 if inner.p is None else inner.p
            return normalised(entries(plan, counted(plan, p, inner.gains), p))
        assert isinstance(inner, Masses)
        return normalised(entries(plan, dict(inner.tensors), inner.power))
    raise NotImplementedError(repr(term))
