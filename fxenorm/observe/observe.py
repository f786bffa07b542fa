"""Runs a model on the batches of a loader and observes its activations; the model is left as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..errors import ExampleInputsError, OptionError, warn_user
from ..symmetry.symmetry import Symmetry
from ..trace.inputs import Inputs, is_meta
from ..trace.preserve import RunGuard, prepared
from ..trace.randomness import Generators
from .landmarks import landmarks_of
from .observation import Observation
from .observations import Observations
from .observed_weight import Layout, ObservedWeight
from .places import weighted_layers
from .slopes import Slopes
from .watch import Watch

__all__ = ["Request", "observe"]

_NO_LAYOUT = "its output channels or its input channels lie along several of its axes, and it has no ranges by channel"


@dataclass(frozen=True)
class Request:
    """The arguments of one `Plan.observe`.

    Attributes:
        loader, batches, quantile, derivatives: see there.
    """

    loader: Any
    batches: int | None
    quantile: float
    derivatives: bool | int


def observe(analysis: Analysis, model: nn.Module, request: Request, position: Tensor) -> Observations:
    """Returns the ranges of a model's activations on data, by channel; see `Plan.observe`.

    Args:
        analysis: of the plan.
        model: its model.
        request: what was asked for.
        position: (num_scales,) the sum of the plan's rescalings up to now.
    """
    _check(model, request)
    symmetry, tensors = analysis.symmetry, dict(model.named_parameters(remove_duplicate=False))
    layers: dict[str, tuple[str, Layout | None]] = {**weighted_layers(model, symmetry)}
    wanted = [name for name, _ in layers.values()] + [site.module for site in symmetry.sites if site.direction == "operand"]
    passes = int(request.derivatives)
    slopes = Slopes(model, wanted, analysis.options.outputs, passes) if passes else None
    watch, count = Watch(analysis, model, float(request.quantile), slopes is not None), 0
    with _random_state():
        for count, batch in enumerate(itertools.islice(request.loader, request.batches), start=1):
            _run(model, watch, _inputs_of(batch, count), count, slopes)
    if not count:
        raise OptionError("the loader gave no batch: an iterator that was used up gives none, so pass what makes a new one")
    activations, skipped = watch.results(0 if slopes is None else slopes.entries)
    _warn_if_broken(activations)
    layers.update(watch.read_layers())
    if slopes is not None:
        skipped.update({f"{name} weight": _NO_LAYOUT for name, layout in layers.values() if layout is None})
    return Observations(
        activations,
        symmetry.num_scales,
        count,
        float(request.quantile),
        skipped,
        tuple(layers),
        () if slopes is None else tuple(_weights(layers, tensors, symmetry, slopes)),
        None if slopes is None else slopes.squares / max(slopes.entries, 1),
        position,
        landmarks_of(tensors, symmetry, position),
    )


def _weights(
    layers: Mapping[str, tuple[str, Layout | None]], tensors: Mapping[str, Tensor], symmetry: Symmetry, slopes: Slopes
) -> Iterator[ObservedWeight]:
    """Yields the weights of layers of which it is known which axes are those of the channels."""
    for path, (name, layout) in layers.items():
        if layout is not None:
            yield _weight(path, name, layout, tensors, symmetry, slopes)


def _weight(
    path: str, name: str, layout: Layout, tensors: Mapping[str, Tensor], symmetry: Symmetry, slopes: Slopes
) -> ObservedWeight:
    """Returns a layer's weight with its derivatives; none has reached a weight that is not used."""
    values = tensors[name].detach().to("cpu", torch.float64, copy=True) + symmetry.offsets.get(name, 0.0)
    found = slopes.of(name)
    terms = tuple((int(coefficient), ids.reshape(_full(ids, values))) for coefficient, ids in symmetry.exponents.get(name, ()))
    return ObservedWeight(path, name, layout, values, torch.zeros_like(values) if found is None else found, terms)


def _full(ids: Any, values: Tensor) -> list[int]:
    """Returns the shape of ids with all the axes of a tensor."""
    return [1] * (values.ndim - ids.ndim) + list(ids.shape)


def _warn_if_broken(activations: Sequence[Observation]) -> None:
    """Warns of activations that are not finite."""
    broken = [repr(one) for one in activations if not _is_finite(one)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        warn_user(f"activations are not finite on these batches: {', '.join(broken[:3])}{more}")


def _check(model: nn.Module, request: Request) -> None:
    """Raises an OptionError where an argument is not valid."""
    loader, batches, level, passes = request.loader, request.batches, request.quantile, request.derivatives
    if not isinstance(passes, int) or passes < 0:
        raise OptionError(f"derivatives={passes!r} is not valid: expected True, False, or the number of backward passes a batch")
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


def _run(model: nn.Module, watch: Watch, inputs: Inputs, number: int, slopes: Slopes | None) -> None:
    """Runs the model once in eval mode, with the hooks of `watch` on; what forward writes is undone."""
    guard = RunGuard([*model.parameters(), *model.buffers(), *inputs.tensors()])
    with prepared(model, "eval"), torch.no_grad():
        try:
            with guard:
                if slopes is not None:
                    slopes.run(model, inputs, watch.hooks())
                else:
                    with watch.hooks():
                        model(*inputs.args, **inputs.kwargs)
        except OptionError:
            raise
        except Exception as error:
            several = len(inputs.args) > 1
            hint = ". A tuple is taken as positional arguments: leave labels out of the batch." if several else ""
            way = "the model does not run" if slopes is None else "the model does not run forwards and backwards"
            raise ExampleInputsError(
                f"batch {number} of the loader: {way} on inputs {inputs} ({type(error).__name__}: {error}){hint}"
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
    values = (one.minimum, one.maximum, one.mean_square, one.squared_derivative)
    return all(bool(value.isfinite().all()) for value in values if value is not None)
