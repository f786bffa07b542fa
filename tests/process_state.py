"""What belongs to the process rather than to a model, and what a user may have set there."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.backends.opt_einsum
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def process_state() -> dict[str, Any]:
    """By name, everything that a call may leave behind in a process without a trace in the model."""
    kind, keys, *rest = np.random.get_state()
    python = random.getstate()
    loggers = {name: (log.level, log.disabled, log.propagate) for name, log in _loggers().items()}
    hooks = {name: dict(held) for name, held in vars(modules).items() if name.startswith("_global_") and isinstance(held, dict)}
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "python's generator": python,
        "numpy's generator": (kind, keys.tolist(), *rest),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults": (torch.get_default_dtype(), torch.empty(0).device, torch.get_num_threads()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "backends": _backends(),
        "logging": (logging.root.manager.disable, logging.raiseExceptions, tuple(logging.root.handlers)),
        "loggers": loggers,
        "warnings": (_filters(), warnings.showwarning),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "global hooks": hooks,
        "modes": (len(_get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack())),
        "interpreter": (os.getcwd(), gc.isenabled(), sys.getrecursionlimit(), np.geterr()),
    }


def _filters() -> list[Any]:
    """Those of Python's and our warnings: a library that torch loads late (sympy, pkg_resources) brings some for its own."""
    return [item for item in warnings.filters if item[2].__module__.split(".")[0] in ("builtins", "fxenorm")]


def _loggers() -> dict[str, logging.Logger]:
    """The root's and all others that there are."""
    known = {name: log for name, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    return {"": logging.root, **known}


def _backends() -> dict[str, Any]:
    """The switches of torch.backends."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return {
        "mha": torch.backends.mha.get_fastpath_enabled(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "matmul": (cuda.matmul.allow_tf32, cuda.matmul.allow_fp16_reduced_precision_reduction),
        "attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "einsum": torch.backends.opt_einsum.enabled,
    }


def assert_same_process(before: dict[str, Any]) -> None:
    """Everything stands as it did; a library that was loaded in between may have brought loggers of its own."""
    after = process_state()
    after["loggers"] = {name: value for name, value in after["loggers"].items() if name in before["loggers"]}
    changed = [name for name in before if after[name] != before[name]]
    assert not changed, {name: (before[name], after[name]) for name in changed}


@contextmanager
def settings_of_a_user() -> Iterator[None]:
    """Every switch is other than torch's default, and every generator stands between the two numbers of a pair."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    dtype, fast_path, disabled = (
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
        logging.root.manager.disable,
    )
    switches = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    errors = np.geterr()
    random.gauss(0.0, 1.0)
    np.random.randn()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message="a warning of this user's")
            logging.disable(logging.INFO)
            torch.backends.mha.set_fastpath_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.set_float32_matmul_precision("high")
            cudnn.benchmark, cudnn.deterministic = True, True
            torch.use_deterministic_algorithms(True)
            np.seterr(under="warn")
            yield
    finally:
        np.seterr(**errors)
        cudnn.benchmark, cudnn.deterministic = switches[:2]
        torch.use_deterministic_algorithms(switches[2])
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logging.disable(disabled)
