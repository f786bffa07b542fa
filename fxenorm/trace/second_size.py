"""One more look at a model, on inputs of another size: a law that holds at one size only is a coincidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from .free_axes import Axis, AxisFacts, axis_facts, free_classes
from .inputs import Inputs
from .traced_model import TracedModel

__all__ = ["SEED", "with_second_size"]

SEED = 20190507
"""Of Python's, numpy's and torch's random numbers in the second look: any number does, as long as it is always the same."""

_MOST_ALONE = 5
"""Axes that are changed one by one where the model runs with no other size of all of them: each costs a trace that may fail."""

_MOST_REAL_ENTRIES = 4_000_000
"""Inputs that are computed with for real are made smaller, not larger, where three times both sides would have more entries
than this: 16 MB in float32, a batch of 26 ImageNet images, whose activations fit into the memory of an ordinary machine."""


def with_second_size(traced: TracedModel, trace: Callable[[Inputs, int], TracedModel]) -> TracedModel:
    """`traced` with a second trace at other sizes, or with a note that the model runs at no other size.

    All free axes change at once, each by a factor of its own; only where the model does not run like that, one alone.

    Args:
        traced: the graph of a model on its example inputs.
        trace: traces it on other inputs with a seed; raises where it does not run on them.
    """
    inputs = traced.inputs or Inputs()
    for other in _others(traced, inputs):
        try:
            second = dataclasses.replace(trace(other, SEED), inputs=other)
        except Exception:  # the model does not run at this size, for any reason
            continue
        note = f"seen at two sizes: {inputs} and, in {traced.mode} mode, {other}"
        return dataclasses.replace(traced, second=second, notes=(*traced.notes, note))
    note = f"seen at one size only, {inputs}: the model runs at no other that was tried, so the scales may not hold there"
    return dataclasses.replace(traced, notes=(*traced.notes, note))


def _others(traced: TracedModel, inputs: Inputs) -> Iterator[Inputs]:
    """Inputs of other sizes, those that say most first."""
    tensors = inputs.tensors()
    if any(tensor.layout is not torch.strided for tensor in tensors):
        return
    shapes = [tuple(tensor.shape) for tensor in tensors]
    facts = axis_facts(traced, tensors)
    for chosen in _trials(free_classes(facts, tensors), facts, tensors):
        sizes = _other_sizes(chosen, facts, tensors, traced.tracer == "export")
        if sizes != shapes:
            yield inputs.resized(sizes)


def _trials(classes: list[list[Axis]], facts: AxisFacts, tensors: Sequence[torch.Tensor]) -> Iterator[list[list[Axis]]]:
    """Sets of axes to change: all, all but those that may hold features, then one after the other, the batch last."""
    trials = [classes, [group for group in classes if not _may_hold_features(group, facts, tensors)]]
    trials += [[group] for group in (*classes[1:_MOST_ALONE], *classes[:1])]
    seen: list[list[list[Axis]]] = []
    for trial in trials:
        if trial and trial not in seen:
            seen.append(trial)
            yield trial


def _may_hold_features(group: list[Axis], facts: AxisFacts, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether one of the axes is the last of a floating-point tensor and nothing shows that it is a length."""
    return not facts.spatial.intersection(group) and any(
        axis > 0 and axis == tensors[position].dim() - 1 and tensors[position].is_floating_point() for position, axis in group
    )


def _other_sizes(
    chosen: list[list[Axis]], facts: AxisFacts, tensors: Sequence[torch.Tensor], fake: bool
) -> list[tuple[int, ...]]:
    """Returns the shapes of all tensors with the chosen axes changed, each by another factor.

    What a convolution moves along grows (a net may halve it many times), and so does the batch. Other lengths are halved: a
    table of positions ends somewhere.
    """
    grow = fake or sum(tensor.numel() for tensor in tensors) * 9 <= _MOST_REAL_ENTRIES
    sizes = [list(tensor.shape) for tensor in tensors]
    taken: set[int] = set()
    factors: set[float] = set()
    for group in sorted(chosen, key=lambda group: all(axis == 0 for _, axis in group)):
        position, axis = group[0]
        old = int(tensors[position].shape[axis])
        whole = bool(facts.spatial.intersection(group))
        batch = any(axis == 0 for _, axis in group) and not whole
        if batch:
            candidates = [old + 1, old + 2, old + 3, 2 * old]
        elif (whole and grow) or old < 4:
            candidates = [2 * old, 3 * old, 5 * old, 7 * old]
        else:
            candidates = [old // 2, old * 3 // 4, old * 2 // 3, old // 4, old - 1, 2 * old, 3 * old]
        new = next((size for size in candidates if size not in taken and size / old not in factors and size != old), old)
        taken.add(new)
        factors.add(new / old)
        for position, axis in group:
            sizes[position][axis] = new
    return [tuple(size) for size in sizes]
