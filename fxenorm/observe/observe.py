"""Runs a model on the batches of a loader and observes its activations; the model is left as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..errors import ExampleInputsError, OptionError, warn_user
from ..trace.inputs import Inputs, is_meta
from ..trace.preserve import RunGuard, prepared
from ..trace.randomness import Generators
from .observations import Observation, Observations
from .watch import Watch

__all__ = ["observe"]


def observe(analysis: Analysis, model: nn.Module, loader: Any, batches: int | None, level: float) -> Observations:
    """Returns the ranges of a model's activations on data, by channel; see `Plan.observe`."""
    _check(model, loader, batches, level)
    watch, count = Watch(analysis, model, float(level)), 0
    with _random_state():
        for count, batch in enumerate(itertools.islice(loader, batches), start=1):
            _run(model, watch, _inputs_of(batch, count), count)
    if not count:
        raise OptionError("the loader gave no batch: an iterator that was used up gives none, so pass what makes a new one")
    activations, skipped = watch.results()
    broken = [repr(one) for one in activations if not _is_finite(one)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        warn_user(f"activations are not finite on these batches: {', '.join(broken[:3])}{more}")
    return Observations(activations, analysis.symmetry.num_scales, count, float(level), skipped)


def _check(model: nn.Module, loader: Any, batches: Any, level: Any) -> None:
    """Raises an OptionError where an argument is not valid."""
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise OptionError(f"batches={batches!r} is not valid: expected an integer >= 1, or None for all of them")
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level <= 1:
        raise OptionError(f"quantile={level!r} is not valid: expected a number above 0 and at most 1")
    if isinstance(loader, (Tensor, Mapping, str, bytes)):
        raise OptionError(
            f"the loader is one {type(loader).__name__}: expected an iterable of batches; pass [batch] for a single one"
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise OptionError(f"the loader is a {type(loader).__name__}: expected an iterable of batches")
    if is_meta(model):
        raise OptionError("a model on the meta device has no activations: bind the plan to one that has values (plan.bind)")


def _inputs_of(batch: Any, number: int) -> Inputs:
    """Returns the arguments of forward that a batch stands for."""
    if isinstance(batch, Tensor):
        return Inputs((batch,))
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        return Inputs((), dict(batch))
    if isinstance(batch, (tuple, list)):
        return Inputs(tuple(batch))
    raise ExampleInputsError(
        f"batch {number} of the loader is a {type(batch).__name__}: expected a tensor, a tuple of positional arguments, or a "
        "dict of keyword arguments"
    )


def _run(model: nn.Module, watch: Watch, inputs: Inputs, number: int) -> None:
    """Runs the model once in eval mode, with the hooks of `watch` on; what forward writes is undone."""
    guard = RunGuard([*model.parameters(), *model.buffers(), *inputs.tensors()])
    with prepared(model, "eval"), torch.no_grad():
        try:
            with guard, watch.hooks():
                model(*inputs.args, **inputs.kwargs)
        except Exception as error:
            several = len(inputs.args) > 1
            hint = ". A tuple is taken as positional arguments: leave labels out of the batch." if several else ""
            raise ExampleInputsError(
                f"batch {number} of the loader: the model does not run on inputs {inputs} ({type(error).__name__}: {error}){hint}"
            ) from error
        finally:
            guard.restore()


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Sets torch's, Python's and numpy's random numbers back, from which a loader draws too."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    generators = Generators(())
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        generators.restore()


def _is_finite(one: Observation) -> bool:
    """Whether all values of an observation are finite."""
    return all(bool(value.isfinite().all()) for value in (one.minimum, one.maximum, one.mean_square))
