"""Settings that every test shares."""

from __future__ import annotations

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
