"""Trial runs, and one-line reasons for the errors of torch and of models."""

from __future__ import annotations

import itertools
import re
import traceback

import torch
from torch import nn
from torch.func import functional_call

from ..collection import collection_resumed
from .escapes import ExportWatch
from .inputs import Inputs, is_meta
from .preserve import prepared
from .real_run import run_for_real
from .source import SourceLines
from .traced_model import Mode

__all__ = ["needs_values", "reason", "runs_on"]

_DATA_DEPENDENT = ("DataDependent", "DynamicOutputShape", "UnsupportedOperator", "UnsupportedFakeTensor")
_NO_VALUES = ("meta tensor", "not supported for tensor subclasses", "out of the graph")
_LONGEST = 300
"""Characters of an error's first line: torch puts whole graphs into some, and a reason has to stay one line or two on a
screen."""


def reason(error: BaseException) -> str:
    """Returns one line: the error's type, the first line of its message, and the user's line that raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r" \(unhinted: .*", "", lines[0] if lines else "no message").rstrip(".")
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " ..."
    where = SourceLines()("".join(traceback.format_list(_model_frames(error))), else_last=False)
    return f"{type(error).__name__}: {text}" + (f" ({where})" if where else "")


def _model_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Returns the frames of `error` inside the model's code: those after the first call of a module."""
    frames = list(traceback.extract_tb(error.__traceback__))
    starts = [position for position, frame in enumerate(frames) if frame.name in ("_call_impl", "_wrapped_call_impl")]
    return frames[starts[0] + 1 :] if starts else []


def needs_values(error: BaseException) -> bool:
    """Whether `error` says that a run without real values cannot go on, rather than that the inputs do not fit."""
    return type(error).__name__.startswith(_DATA_DEPENDENT) or any(phrase in str(error) for phrase in _NO_VALUES)


def runs_on(model: nn.Module, inputs: Inputs, mode: Mode, confirm: bool = True) -> Exception | None:
    """Returns None if the model runs on `inputs`, else the error that it raises.

    Runs with fake values first, then with real ones where values are needed or, with `confirm`, after any failure.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    meta = is_meta(model) or any(tensor.is_meta for tensor in inputs.tensors())
    try:
        with prepared(model, mode), ExportWatch(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            # Left to itself the mode would compute with small real tensors, and write into buffers.
            named = itertools.chain(model.named_parameters(), model.named_buffers())
            tensors: dict[str, torch.Tensor] = {name: fake.from_tensor(tensor) for name, tensor in named}
            arguments = inputs.map(fake.from_tensor)
            functional_call(model, tensors, arguments.args, dict(arguments.kwargs))
        return None
    except Exception as error:  # a model may raise anything
        if meta or not (confirm or needs_values(error)):
            return error
    try:
        run_for_real(model, inputs, mode)
    except Exception as error:
        return None if _runs_as_it_is(model, inputs, mode) else error
    return None


def _runs_as_it_is(model: nn.Module, inputs: Inputs, mode: Mode) -> bool:
    """Whether the model runs when nobody watches: then the watching failed, which is no fault of the inputs."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *inputs.tensors())}
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    with collection_resumed(), prepared(model, mode), torch.no_grad():
        try:
            model(*inputs.args, **inputs.kwargs)
        except Exception:  # the model's own error was found already
            return False
        finally:
            for key, tensor in tensors.items():
                if not torch.equal(tensor, before[key]):
                    tensor.copy_(before[key])
    return True
