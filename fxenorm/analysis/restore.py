"""Makes an analysis of a stored plan again, and checks it against the fingerprint that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BindError
from .analysis import Analysis
from .serialise import from_dict

__all__ = ["analysis_from_dict"]


def analysis_from_dict(stored: Mapping[str, Any]) -> Analysis:
    """Returns the plan without its module.

    Raises:
        BindError: `stored` is damaged or of another format, or has another fingerprint than it says.
    """
    symmetry, options, groups, pairs = from_dict(stored)
    analysis = Analysis(symmetry, options, groups, pairs)
    known = stored.get("fingerprint")  # plans that were stored by earlier versions have none
    if known is not None and known != analysis.fingerprint:
        raise BindError(
            "the stored plan is damaged (its names, shapes, exponents or options are not those of its fingerprint): run "
            "fxenorm.analyze again"
        )
    return analysis
