"""How releases of torch differ for the tests: an expectation or a skip that depends on the release names it by one of these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

RELEASE = TorchVersion(torch.__version__)

needs_flex_attention = pytest.mark.skipif(RELEASE < (2, 7), reason="torch 2.6 cannot trace flex_attention on CPUs")

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether `torch.export` is at work: before 2.7 only the wider question could be asked."""

_SCAN = "the scan of torch 2.6 refuses a state that needs a gradient only after its first step"
_LOOP = "the while_loop of torch 2.6 cannot be traced"
_ROWS = "torch before 2.15 traces no sparse tensor in compressed rows that forward makes"
_LACKING = {"scan": _SCAN, "while_loop": _LOOP, "while_loop_from_zero": _LOOP} if RELEASE < (2, 7) else {}
if RELEASE < (2, 15):
    _LACKING["sparse_of_a_layer"] = _ROWS
"""Networks that this release cannot run, and why."""


_DERIVATIVES = {"aten::aminmax": "torch before 2.12 has no derivative of aminmax, by which its law is measured"}


HIGH_OF_RANDINT_LIKE_AS_TENSOR = RELEASE >= (2, 9)
"""`randint_like` takes its upper bound as a tensor too: 2.6 does not."""

_NEWER_OPERATORS = frozenset({"aten::_fused_rms_norm", "aten::_fused_rms_norm_backward", "aten::_grouped_mm"})


def need_operator(operator: str) -> None:
    """Skips a test of an operator that torch 2.6 does not have."""
    if RELEASE < (2, 9) and operator in _NEWER_OPERATORS and not hasattr(torch.ops.aten, operator.partition("::")[2]):
        pytest.skip(f"torch {RELEASE} has no {operator}")


def need_derivative(operator: str) -> None:
    """Skips a test that takes the derivative of an operator for which this release has none."""
    if RELEASE < (2, 12) and operator in _DERIVATIVES:
        pytest.skip(_DERIVATIVES[operator])


def need(network: str) -> None:
    """Skips a test on a network that this release cannot run."""
    if network in _LACKING:
        pytest.skip(_LACKING[network])


TRAINS_ON_CPUS: dict[str, Any] = {"reshard_after_forward": False} if RELEASE < (2, 7) else {}
"""Options of `fully_shard` with which modules within modules train on CPUs: 2.6 counts a second gathering there as a change."""

EXPORTS_WRITES_TO_PARAMETERS = RELEASE >= (2, 7)
"""A write into a parameter under `no_grad` is followed without values: 2.6 refuses it, so a real run is followed."""

MULTIPLIES_PARTIAL_SUMS = RELEASE >= (2, 9)
"""`mul_` by a number changes a distributed tensor that is still to be summed: 2.6 leaves it as it is, so no momentum decays."""


def complete_cpu_streams() -> None:
    """Lets `fully_shard` run on CPUs in torch 2.6, which forgot two methods there; later ones have them, and they do nothing."""
    for name in ("record_event", "wait_event"):
        if not hasattr(torch.cpu.Stream, name):
            setattr(torch.cpu.Stream, name, lambda stream, event=None: object())  # an event that is over
