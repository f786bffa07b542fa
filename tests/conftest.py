"""Settings that every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples in every run; one example may build, trace and analyse a network.
settings.register_profile(
    "fxenorm", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fxenorm")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Layers are drawn alike whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda dtype: f"default {dtype}")
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Each dtype in turn as torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)
