"""Settings that every test shares."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples in every run; one example may build, trace and analyse a network.
settings.register_profile(
    "fxenorm", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fxenorm")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fails where a test module cannot be imported: the option that passes over modules of the package would pass over it."""
    report = yield
    if report.outcome == "skipped" and "unable to import module" in str(report.longrepr):
        report.outcome = "failed"
    return report


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
