"""From a model to a flat graph of ATen operators with parameter names, module paths and source lines.

In: a model and its example inputs. Out: one `TracedModel` a mode. Imports nothing of fxenorm but `errors`, `collection` and
`distributed`.

For users: an older PyTorch can do less.

| PyTorch | less |
|---|---|
| before 2.15 | Sparse tensors in compressed rows that forward makes cannot be traced: `analyze` raises. |
| before 2.9 | There is no ``torch.optim.Muon``. |
| 2.6 | ``flex_attention`` on CPUs, ``while_loop``, and a ``scan`` whose state needs no gradient at first cannot be traced. |
| 2.6 | ``fully_shard`` modules train on GPUs alone. |
"""

from __future__ import annotations

from .guess import known_inputs, resolve_inputs
from .inputs import Inputs
from .traced_model import Mode, Placeholder, TracedModel, module_path, source_line
from .tracer import trace_model
from .unwrap import unwrap

__all__ = [
    "Inputs",
    "Mode",
    "Placeholder",
    "TracedModel",
    "known_inputs",
    "module_path",
    "resolve_inputs",
    "source_line",
    "trace_model",
    "unwrap",
]
