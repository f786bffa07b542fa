"""`analyze`, which makes a plan from a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from ..analysis.options import (
    BatchNormChoice,
    BiasChoice,
    ModeChoice,
    Options,
    ScaleChoice,
    SolverChoice,
    UnknownChoice,
)
from ..collection import collection_paused
from ..distributed.dtensors import refuse_flat_parameters
from ..errors import ExampleInputsError, OptionError, TraceError, warn_user
from ..kernels import BackendName
from ..rescale.nothing import QUANTISED, is_quantised
from ..symmetry.find import find_symmetry
from ..symmetry.symmetry import Symmetry
from ..trace import trace_model
from ..trace.unwrap import unwrap
from .plan import Plan

__all__ = ["analyze", "analyze_with"]


_RIGHT_CALL = (
    "fxenorm takes the model, and the optimizer at each step: plan = fxenorm.analyze(model, c=1), and after optimizer.step() one "
    'plan.step(optimizer). See "Coming from ENorm" in the README'
)


def analyze(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    p: float = 2.0,
    c: float | Literal["adaptive"] | Mapping[str, float] = 1.0,
    batchnorm: BatchNormChoice = "affine",
    biases: BiasChoice = "scale",
    balance_last: bool = True,
    exclude: str | Sequence[str] = (),
    outputs: str | Sequence[str] | None = None,
    modes: ModeChoice = "both",
    approximate: str | Sequence[str] = (),
    on_unknown: UnknownChoice = "barrier",
    solver: SolverChoice = "jacobi",
    backend: BackendName = "auto",
    scales: ScaleChoice = "auto",
    max_log_scale: float | None = None,
    deadband: float = 0.0,
) -> Plan:
    """Finds every way to rescale a model's weights without changing its function, and returns the plan that uses it.

    The model is traced on fake tensors, on any device including "meta", and left as it was: no activation is computed.

    Args:
        model: the module; wrappers (DataParallel, DistributedDataParallel, torch.compile, AveragedModel) are looked through.
            Under ``fully_shard`` or tensor parallelism it is seen as a whole, without any communication; where its forward
            counts on a slice of it (a number of heads divided by hand), analyse it before, and `Plan.bind` the parallel one.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; None: guessed from the
            first layers, with a batch of 2.
        example_kwargs: further keyword arguments.
        p: exponent of the norm, from 0.1 to 1000, or ``math.inf`` for ranges. With all of them, weights from 1e-38 to 1e30 are
            neither lost nor infinite after `step` and `balance`: no channel goes farther than its entries have room.
        c: layer weights: a number c gives layer l the weight ``c ** (-p * depth(l))``, so that the norms of a chain grow
            by c from layer to layer; "adaptive": 1 / number of entries; a dict: the weights themselves, by layer (others 1).
            Without effect at p = inf. Deep networks without normalisation bear little: at c = 1.2 the last of 30 layers is to
            have 200 times the norm of the first, and no learning rate that was tried trains such a network.
        batchnorm: what a BatchNorm between two layers does. "affine": its gamma and beta carry the scale and gamma is counted
            (exact). "folded": as before, but the norm is taken of the weights that folding would give (exact). "frozen":
            running statistics move along (exact in eval mode only). "skip": looked through and left alone (not exact).
        biases: "scale": they follow; "count": they follow and count in the norm; "skip": left alone (not exact).
        balance_last: False holds the channels that feed a layer from which an output is reached without another layer.
        exclude: fnmatch patterns of parameter or module names; the parameters they match are not rescaled.
        outputs: which values that leave forward stay as they are; None: everything that can be reached from what it returns, the
            tensors computed from the inputs that it leaves in attributes of modules or in its arguments, and values that Python
            read, but no cache that Transformers marks as one (``past_key_values``). Else fnmatch patterns on the path of a value:
            keys, positions and attribute names joined by dots, as "logits", "0.1" or "past_key_values.*" ("output" or "0" for
            a tensor that is returned by itself), "self.aux" for an attribute, "inputs.batch.feature" for what forward writes
            into an argument; a pattern names all that lies below a path too, and only what is named is held.
        modes: in which modes the function is to be preserved; "both", "train" or "eval".
        approximate: names of activations that are treated as homogeneous though they are not, as ``("relu6",)``; not exact.
        on_unknown: "barrier": an operator without a rule holds what it touches; "error": all such operators are listed.
        solver: one cycle of `step` is "jacobi", all channels at once, or "gauss-seidel", group after group in the order of the
            pair graph, which needs fewer cycles and more time for each
            (and, unlike the other, waits for a GPU). "auto" and "newton" leave `step` at "jacobi". `balance`
            takes Newton's method (p = inf: the max-balanced answer by contraction) unless "gauss-seidel" is named.
        backend: what reads and writes the weights: "auto": "compiled" on CPUs as soon as a C++ compiler, which works in
            the background, has finished, "eager" until then; a balance at p = inf waits for it where a graph is large.
            "compiled" waits for the compiler.
            "triton", for GPUs, is opt-in: no GPU has run or timed it yet; see `fxenorm.kernels.gpu.executor.TritonBackend`.
        scales: "exact"; "pow2": powers of two only, by which no entry loses digits, so that outputs stay bit-identical; but
            float16 entries smaller than 2 ** -11 of the largest of their row may (`BalanceResult.rounded` counts them);
            "auto": powers of two for groups with 16-bit weights.
        max_log_scale: largest change of a channel in one call, a natural logarithm; None: any.
        deadband: from 0 to 1, a natural logarithm: in a cycle of `step`, channels that would move by less wait, and tensors in
            which nothing moves are read but not written. Each channel may stay that far from balance, and along n layers the
            norms of the first and the last may differ by exp(2 n deadband); every 64th step leaves it out, for that.

    Returns:
        The plan.

    Raises:
        OptionError: the model is no module, an option has no documented value, or a pattern in `outputs` names nothing.
        ExampleInputsError: the model does not run on the inputs, or none could be guessed.
        TraceError: the model cannot be turned into a graph; one that is quantised already is told so.
        UnsupportedOperatorError: with ``on_unknown="error"``.
        RescaleError: the model is wrapped by FullyShardedDataParallel (FSDP1).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = analyze(model)
        >>> plan.num_scales
        8
        >>> plan.step()

    The objective and its cycle are those of ENorm (Stock et al., ICLR 2019, sections 3 and 6), for any graph.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, got {type(model).__name__}. {_RIGHT_CALL}")
    if isinstance(example_inputs, Optimizer):
        raise OptionError(f"example_inputs is an optimizer ({type(example_inputs).__name__}). {_RIGHT_CALL}")
    options = Options(
        p=p,
        c=c,  # type: ignore[arg-type]
        batchnorm=batchnorm,
        biases=biases,
        balance_last=balance_last,
        exclude=exclude,  # type: ignore[arg-type]
        outputs=outputs,  # type: ignore[arg-type]
        modes=modes,
        approximate=approximate,  # type: ignore[arg-type]
        on_unknown=on_unknown,
        solver=solver,
        backend=backend,
        scales=scales,
        max_log_scale=max_log_scale,
        deadband=deadband,
    )
    return analyze_with(model, options, example_inputs, example_kwargs)


def analyze_with(
    model: nn.Module,
    options: Options,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    report: Callable[[str], None] | None = None,
) -> Plan:
    """Analyses a model by checked options, and tells a waiting user how far it is.

    Args:
        model, example_inputs, example_kwargs: as `analyze` takes them.
        options: the others of its arguments.
        report: called with the name of each stage that begins.

    Raises:
        FxenormError: as `analyze`.
    """
    with collection_paused():
        return _analyzed(model, options, example_inputs, example_kwargs, report)


def _analyzed(
    model: nn.Module,
    options: Options,
    example_inputs: Any,
    example_kwargs: dict[str, Any] | None,
    report: Callable[[str], None] | None,
) -> Plan:
    """`analyze_with`, in which nothing but a run with real values takes room that a collection would free."""
    say = report or (lambda stage: None)
    refuse_flat_parameters(model)
    inner = unwrap(model)
    try:
        traced = trace_model(inner, example_inputs, example_kwargs=example_kwargs, modes=options.modes, report=report)
    except (TraceError, ExampleInputsError) as error:
        if is_quantised(inner):
            raise TraceError(f"{QUANTISED} ({error})") from error
        raise
    say("finding the scales")
    symmetry = find_symmetry(
        traced,
        inner,
        batchnorm=options.batchnorm,
        biases=options.biases,
        exclude=options.exclude,
        approximate=options.approximate,
        on_unknown=options.on_unknown,
        outputs=options.outputs,
    )
    _warn(symmetry, options)
    say("building the plan")
    plan = Plan(symmetry, options, model, example=traced[0].inputs)
    plan.rescaler.analysis.prepare()
    return plan


def _warn(symmetry: Symmetry, options: Options) -> None:
    """Says once which part of an option's promise the model leaves undone."""
    if not math.isinf(options.p):
        return
    if options.batchnorm == "affine" and symmetry.folds:
        warn_user(
            "p=inf with batchnorm='affine' equalises gamma with the next layer, not the weights that quantisation will see. "
            f"{len(symmetry.folds)} BatchNorm layers can be folded: pass batchnorm='folded' for cross-layer equalisation"
        )
    if options.c != 1.0:
        warn_user("layer weights play no part at p=inf: c is ignored")
