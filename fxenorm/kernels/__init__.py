"""Executors, which read |w|^p into sums by channel and multiply weights and state in place.

In: a program of index tensors and the tensors of a model. Out: logarithms of N and P, and weights that have moved. Imports
nothing of fxenorm but `errors`; nobody else names an executor.
"""

from .backend import BACKEND_NAMES, BackendName, get_backend, register_backend
from .cpu import executor as compiled  # the executors register themselves
from .gpu import executor as triton
from .reference import executor as eager

__all__ = ["BACKEND_NAMES", "BackendName", "compiled", "eager", "get_backend", "register_backend", "triton"]
