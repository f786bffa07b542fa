"""From a model to a flat graph of ATen operators with parameter names, module paths and source lines.

In: a model and its example inputs. Out: one `TracedModel` a mode. Imports nothing of fxenorm but `errors`, `collection` and
`distributed`.
"""

from __future__ import annotations

from .guess import resolve_inputs
from .inputs import Inputs
from .traced_model import Mode, Placeholder, TracedModel, module_path, source_line
from .tracer import trace_model
from .unwrap import unwrap

__all__ = [
    "Inputs",
    "Mode",
    "Placeholder",
    "TracedModel",
    "module_path",
    "resolve_inputs",
    "source_line",
    "trace_model",
    "unwrap",
]
