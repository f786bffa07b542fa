"""The exponents of the norm that are accepted."""

from __future__ import annotations

import math

import pytest

from fxenorm.errors import OptionError
from fxenorm.plan.options import Options


@pytest.mark.parametrize("p", [1e-3, 0.03, 0.0999, 1001.0, 1e300, 10**400, -1.0, math.nan])
def test_exponents_outside_of_the_range_are_refused(p: float) -> None:
    with pytest.raises(OptionError, match=r"from 0\.1 to 1000"):
        Options(p=p)


@pytest.mark.parametrize("p", [0.1, 1, 2.0, 1000, math.inf])
def test_exponents_in_the_range_are_taken(p: float) -> None:
    assert Options(p=p).p == p
