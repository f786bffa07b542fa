"""Executors: |W|^p to channel sums, and log-scales into weights and state."""

from .backend import get_backend, register_backend
from .cpu import executor as cpu  # the executors register themselves
from .gpu import executor as gpu
from .reference import executor as reference

__all__ = ["cpu", "get_backend", "gpu", "reference", "register_backend"]
