"""Executors: |W|^p to channel sums, and log-scales into weights and state."""

from . import compiled, eager, triton_backend  # the executors register themselves
from .backend import get_backend, register_backend

__all__ = ["compiled", "eager", "get_backend", "register_backend", "triton_backend"]
