"""`Plan`: the symmetry of a model, its objective, and the calls that rescale it in place."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..analysis.groups import Group
from ..analysis.held import FrozenChoice, Held, frozen_names, held_by_group
from ..analysis.mappings.result import Mappings
from ..analysis.mappings.write import class_names, mappings
from ..analysis.options import Options
from ..analysis.pair_graph import pair_graph
from ..analysis.pairs import Pair
from ..analysis.restore import analysis_from_dict
from ..analysis.serialise import to_dict
from ..bits import Bits
from ..errors import OptionError, RescaleError
from ..objectives.function import Function
from ..objectives.observed_terms import following
from ..objectives.problem import function_of
from ..objectives.terms import as_term
from ..observe.follow import followed
from ..observe.observations import Observations
from ..observe.observe import Request as Observing
from ..observe.observe import observe
from ..optim.state import OptimizerLike, StateChoice
from ..picture.build import picture_of
from ..picture.figure import figure_of, save
from ..quantisation.check import RoundingCheck, checked_bits
from ..quantisation.predict import predict
from ..quantisation.prediction import Prediction
from ..rescale.agreeing import Looked
from ..rescale.attach import Attachment, AttachOptions
from ..rescale.balance import BalanceResult, balance
from ..rescale.composed.minimise import Request, minimise_terms
from ..rescale.measures.history import History
from ..rescale.request import StepRequest
from ..rescale.rescaler import Rescaler
from ..rescale.step import step
from ..solve.jacobi import imbalance
from ..symmetry.account import ChannelAccount
from ..symmetry.symmetry import Barrier, Symmetry
from ..text.describe import describe, plural
from ..text.html import plan_html
from ..text.numbers import LayerNorms
from ..text.why import Why, why
from ..trace import Inputs, known_inputs, resolve_inputs, unwrap
from ..trace.inputs import is_meta
from ..trace.unwrap import replica_group
from ..verify.subject import Subject
from ..verify.verification import Verification, verify
from ..weights.targets import checked_log_scales
from ..weights.tensors import check_fits
from ..weights.tracked import Tracked

if TYPE_CHECKING:
    import networkx

__all__ = ["BalanceResult", "Plan", "plan_from_dict"]


class Plan:
    """Every way to rescale a model without changing its function, and the calls that use it; made by `fxenorm.analyze`.

    The model is held by reference and its tensors are looked up by name at each call, so a plan survives ``.to()`` and
    ``load_state_dict``. Printing a plan shows its groups.

    Of a model that is spread over processes (``fully_shard``, tensor parallelism), each process scales what it holds, and what
    reads or writes weights (norms, imbalances, ``history.record``, `held`, `step`, `balance`, `rescale`) has to be called by all
    of them. Numbers are those of the whole model, the same bits everywhere.

    Args:
        symmetry: the free scale variables and each parameter's exponents.
        options: the options of `fxenorm.analyze`.
        model: the module; wrappers are looked through.
        analysis: that of a plan on another module with the same symmetry and options; None: it is derived.
        example: inputs on which the model runs; None: guessed where they are needed.

    Recipes, all of them tested; "exact" means that the outputs stay as they are, in train and in eval mode, up to rounding:

    - train (exact): `plan = fxenorm.analyze(model)` once, and after every `optimizer.step()` one `plan.step(optimizer)`
    - train as the original ENorm does (not exact):
      `plan = fxenorm.analyze(model, x, p=2, batchnorm="skip", biases="skip", balance_last=False, solver="jacobi")`, and after
      every `optimizer.step()` one `plan.step(optimizer, state="keep")`
    - quantise per tensor (exact): `plan = fxenorm.analyze(model, p=math.inf, batchnorm="folded")`, `plan.balance()`, then fold
      the BatchNorms and quantise with your tool. "folded" balances the weights that the quantiser will see; biases follow and do
      not count, for tools keep them in 32 bits
    - quantise, and keep what helps (exact): `plan.balance(check=x, bits=fxenorm.Bits(weights=4, activations=8))`
    - get the canonical form (exact): `plan = fxenorm.analyze(model)`, `print(plan.balance())`
    - undo (exact): `result = plan.balance()`, `plan.rescale(-result.log_scales)`
    - draw other weights of the same function (exact): `plan.rescale(torch.randn(plan.num_scales))`
    - balance another checkpoint with the same plan (exact): `plan.bind(other).balance()`
    - keep the plan (exact): `text = json.dumps(plan.to_dict())`, `plan = fxenorm.Plan.from_dict(json.loads(text), model)`
    - leave some layers alone (exact): `plan = fxenorm.analyze(model, exclude=["head.*"])`
    - see why a layer is not balanced (exact): `print(plan.why("middle"))`
    - see the balance (exact): `plan.norm()`, `plan.layer_norms()`, `plan.imbalance()`
    - check it on your model (exact): `print(plan.verify(x))`

    The original ENorm does not rescale BatchNorm and biases. This changes the function, so the second line says "not exact";
    `inexact_reasons` says the same of your model. ``state="keep"`` leaves momentum as it is. The original does so in fully
    connected networks; in convolutional ones it moves momentum, as fxenorm does by default.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> plan
        <fxenorm.Plan of Sequential: 8 scales in 1 group>
    """

    _stored: Analysis

    def __init__(
        self,
        symmetry: Symmetry,
        options: Options,
        model: nn.Module,
        *,
        analysis: Analysis | None = None,
        example: Inputs | None = None,
    ) -> None:
        found = Analysis(symmetry, options) if analysis is None else analysis
        self._rescaler = Rescaler(found, unwrap(model), replica_group(model))
        self._example = example

    # ---------------------------------------------------------------- findings

    @property
    def rescaler(self) -> Rescaler:
        """This plan at work on its model; for tests and tools of this package."""
        return self._rescaler

    @property
    def symmetry(self) -> Symmetry:
        """The graph half's answer, as plain data.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.symmetry.shapes["0.weight"]
            (8, 4)
        """
        return self.rescaler.analysis.symmetry

    @property
    def options(self) -> Options:
        """The options of `fxenorm.analyze` that this plan follows.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.options.p, plan.options.batchnorm
            (2.0, 'affine')
        """
        return self.rescaler.analysis.options

    @property
    def model(self) -> nn.Module:
        """The module that this plan rescales, without wrappers.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> plan.model is model
            True
        """
        return self.rescaler.model

    @property
    def num_scales(self) -> int:
        """Dimension of the group of rescalings under the options: the length of ``log_scales``.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.num_scales
            8
        """
        return self.symmetry.num_scales

    @property
    def exponents(self) -> dict[str, list[tuple[int, Tensor]]]:
        """By parameter and moved buffer: (coefficient, ids), ids broadcastable to the tensor, -1 = fixed.

        Entry e of a tensor is multiplied by exp(sum of coefficient * log_scales[id]); where `offsets` names it, see there.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> [(sign, tuple(ids.shape)) for sign, ids in plan.exponents["0.weight"]]
            [(1, (8, 1))]
            >>> [(sign, tuple(ids.shape)) for sign, ids in plan.exponents["2.weight"]]
            [(-1, (1, 8))]
        """
        return self.rescaler.analysis.exponents

    @property
    def offsets(self) -> dict[str, float]:
        """By name, of the tensors in `exponents` to which the model adds a number o before it multiplies, that number.

        1 for the norms of Gemma, which multiply by 1 + w; c / k for c + k w. Entry w moves as (o + w) * factor - o, and its norm
        is that of o + w. Factors far below 1 leave few digits of o + w in the type of w.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.offsets
            {}
        """
        return dict(self.symmetry.offsets)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Variables with the same producers and consumers, in graph order; every variable is in exactly one.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.groups
            (<Group g0: chain, 8 channels, 0 -> 2>,)
        """
        return self.rescaler.analysis.groups

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Producer and consumer layers joined by a path that meets no other layer of the group.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.pairs
            (<Pair 0 -> 2: g0, 8 channels, 1 operator between>,)
        """
        return self.rescaler.analysis.pairs

    @property
    def barriers(self) -> tuple[Barrier, ...]:
        """The operators that force variables to zero, and those without a rule.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
            >>> [(barrier.operator, barrier.variables) for barrier in plan.barriers]
            [('gelu.default', 8)]
        """
        return self.symmetry.barriers

    @property
    def account(self) -> ChannelAccount | None:
        """Every channel end of the counted weights: free, fixed or tied away, each with the node that made it so; print it.

        None in a plan that was stored before there was an account. `held` is a part of the free ends.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.account.free, plan.account.total
            (8, 22)
        """
        return self.symmetry.account

    @property
    def held(self) -> tuple[Held, ...]:
        """Variables, and sums of them, that `balance` leaves at 0 at the current weights, with reasons; waits for the device.

        Where no weight is zero, `step` leaves the same.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> _ = model[0].requires_grad_(False)
            >>> plan.held
            (<Held g0: 8 held, requires_grad=False: a parameter that it moves is frozen>,)
        """
        if not self.num_scales:
            return ()
        with self.rescaler.lock:
            weights = self.rescaler.open_together()
            _, _, left = weights.within_now()
            return held_by_group(self.groups, left.reasons, self.num_scales, left.equations, weights.frozen)

    def why(self, layer: str | None = None) -> Why:
        """Tells of each layer which channels are free, to what the others are tied, what fixes them, and what is held now.

        Args:
            layer: the name of a layer, a parameter, or a module, which means all layers in it; None: all layers of the model.

        Returns:
            The answer; print it. It reads the weights as `held` does, and waits for the device.

        Raises:
            OptionError: the model has no such name; the message lists the nearest.
            BindError: the plan was stored by a version that kept no account by layer.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> [(row.side, row.kind, row.channels) for row in fxenorm.analyze(model).why("0").rows]
            [('out', 'free', 8), ('in', 'input', 4)]
        """
        modules = [name for name, _ in self.model.named_modules()]
        return why(self.rescaler.analysis, layer, modules, None if is_meta(self.model) else self.held)

    def mappings(self, target: str) -> Mappings:
        """Writes the smooth and balance layers of every group, with all consumers, for a quantiser that smooths activations.

        Each map is checked against the exponents: whatever factors the quantiser chooses, the function stays as it is. Groups
        that it cannot express are listed with the reason. The forms, and the groups that count as expressible, follow:

        - "llm-compressor": ``AWQMapping`` in the API reference of llm-compressor and its ``AWQModifier``. Fused layers: the last
          rows are divided. Grouped-query attention is skipped (its issue 2808). Experts that are stacked in one tensor get the
          names that they have once the tool has taken them apart (``experts.0.up_proj``). It divides the stored weight of a
          norm; newer releases of ``oneshot`` exchange some norms by 1 + w first, which is not relied on.
        - "autoawq": ``get_layers_for_scaling`` and ``apply_scale`` of AutoAWQ, within one decoder block; Gemma's norms by class.
        - "modelopt": ``fuse_prequant_layernorm`` and ``fuse_prequant_to_linear`` of NVIDIA's Model Optimizer (its pull requests
          421, 793 and 1520): grouped heads by ``fuse_grouped_heads``, norms by 1 + w of classes that it knows. Two layers in a
          module of a class that ``PQS_FUSE_MODULE_MAPPING`` does not list need a row there.
        - "smoothquant": ``smooth_ln_fcs`` of mit-han-lab/smoothquant: normalisations and ``nn.Linear`` alone. The function
          asserts some classes of norms; another norm needs its class added there.

        Args:
            target: "llm-compressor", "autoawq", "modelopt" or "smoothquant".

        Returns:
            The maps; print them, or take ``to_dict()["mappings"]``. No weight is read.

        Raises:
            OptionError: there is no such target; the message lists the four.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.mappings("llm-compressor").entries
            (g0: 0 -> 2,)
        """
        return mappings(self.rescaler.analysis, target, class_names(self.model))

    @property
    def exact(self) -> bool:
        """Whether a rescaling leaves the function as it is in every mode in `modes`.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.exact
            True
        """
        return not self.symmetry.inexact_reasons

    @property
    def inexact_reasons(self) -> tuple[str, ...]:
        """The reasons for which `exact` is False, in sentences.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 2))
            >>> print(*fxenorm.analyze(model, approximate="relu6").inexact_reasons)
            relu6 is treated as homogeneous (approximate)
        """
        return self.symmetry.inexact_reasons

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes, of "eval" and "train", in which the function is preserved.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.modes
            ('eval', 'train')
        """
        return self.symmetry.modes

    @property
    def tracer(self) -> str:
        """The way in which the graph was made: "export", without values, or "make_fx", along the path of the example inputs.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.tracer
            'export'
        """
        return self.symmetry.tracer

    @property
    def fingerprint(self) -> str:
        """A hash of names, shapes, exponents and options: equal fingerprints mean equal ``log_scales``.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.fingerprint == fxenorm.analyze(plan.model).fingerprint
            True
            >>> plan.fingerprint == fxenorm.analyze(plan.model, p=1).fingerprint
            False
        """
        return self.rescaler.analysis.fingerprint

    # ---------------------------------------------------------------- measures of the weights

    def norm(self) -> Tensor:
        """Returns the norm that balancing lowers: F ** (1 / p), F the sum of ω |w|^p over counted entries; p = inf: max |w|.

        Returns:
            A 0-d tensor on the weights' device; nothing waits for it.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> before = plan.norm()
            >>> plan.step()
            >>> bool(plan.norm() <= before)
            True
        """
        with self.rescaler.lock:
            return self.rescaler.open_together().objective().norm()

    def layer_norms(self) -> dict[str, Tensor]:
        """Returns, by layer, the p-norm of its counted tensors, without layer weights.

        Returns:
            0-d tensors on the weights' device; nothing waits for them until the dict is printed, as plain numbers.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> sorted(plan.layer_norms())
            ['0', '2']
        """
        with self.rescaler.lock:
            weights = self.rescaler.open_together()
            return LayerNorms(weights.layer_norms(weights.objective()))

    def imbalance(self) -> Tensor:
        """Returns the distance from balance: max_k |log(N_k / P_k)| / p over the variables that are not held.

        Returns:
            A 0-d tensor on the weights' device; nothing waits for it.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> result = plan.balance()
            >>> bool(plan.imbalance() < 1e-5)
            True
        """
        with self.rescaler.lock:
            weights = self.rescaler.open_together().within()
            return imbalance(*weights.log_sums(), self.options.p, weights.held_mask())

    def channel_imbalance(self) -> Tensor:
        """Returns log(N_k / P_k) / p of each variable: positive where the consumers outweigh the producers.

        Returns:
            (num_scales,) on the weights' device, held variables included; not finite where N or P is zero.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.channel_imbalance().shape
            torch.Size([8])
        """
        with self.rescaler.lock:
            negative, positive = self.rescaler.open_together().log_sums()
        return (negative - positive) / (1.0 if math.isinf(self.options.p) else self.options.p)

    @property
    def history(self) -> History:
        """The norm and the imbalance at the times when ``history.record()`` or ``attach(..., record=k)`` added them.

        Empty until then. ``history.rows()`` has them as numbers, ``history.plot()`` draws them.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.history.record()
            >>> len(plan.history)
            1
        """
        return self.rescaler.history

    # ---------------------------------------------------------------- calls that rescale

    def step(
        self,
        optimizer: OptimizerLike = None,
        *,
        cycles: int = 1,
        grads: bool = False,
        state: StateChoice = "reexpress",
        agree_every: int = 1,
        frozen: FrozenChoice = "auto",
    ) -> None:
        """Moves the weights towards their least norm by Jacobi cycles, in place; call it after ``optimizer.step()``.

        One cycle multiplies channel k by (N_k / P_k) ** (1 / 2p), N and P the sums of |w|^p over its consumers and producers: the
        sqrt(R / L) of ENorm (Stock et al., ICLR 2019, section 3). All channels start from the same weights. The objective never
        increases, and nothing waits for the device. A channel goes no farther than all entries that follow have room in their
        types: none becomes infinite or zero. Processes over which the model is spread tell one another channel sums, in one
        collective a cycle (Gauss-Seidel: one a group; every 64th step with powers of two or a dead band: some 35).
        Replicas of DistributedDataParallel agree in one small collective before they write.

        No rule makes these exact: coupled weight decay (of SGD, Adam, RMSprop, ...) is in the buffers and is rescaled as
        if it were gradient; decoupled decay (AdamW) is not, but acts on norms that a rescaling moves, also from a decayed
        parameter to one that is not. eps, clipping and learning rates meet gradients of another size: in front of a BatchNorm the
        effective rate goes with the inverse square of the weight's norm. LBFGS's initial Hessian is a multiple of the identity.

        Under gradient accumulation, call it only after a real step of the optimizer, or use `attach`: between two backward passes
        of one step, weights move and ``.grad`` stays, unless `grads` is True. A warning says so once. After a step that a
        GradScaler skipped nothing is wrong, for the gradients are thrown away.

        An average of the weights that you keep, as an AveragedModel, cannot be seen from here: it mixes weights from before and
        after a rescaling unless you say ``plan.track(average)`` once.

        Args:
            optimizer: whose state follows: one, a sequence, a wrapper with ``.optimizer``, or None.
            cycles: number of cycles; all of them work on sums, and the weights are written once.
            grads: whether ``.grad`` follows too, as between the backward passes of gradient accumulation.
            state: "reexpress": optimizer state follows by its class's rule; "reset": it is dropped; "keep": it stays, as momentum
                does in fully connected networks under the original ENorm.
            agree_every: of DistributedDataParallel, the replicas agree at the first of this many steps, and at none of the
                others. In between an error on one of them does not stop the others, which then wait for it as they do for
                gradients, and what differs makes the replicas differ; both are found at the next agreement, after the damage.
                The compiled executor begins at an agreement.
            frozen: whether parameters with requires_grad=False are left bit for bit: "auto": unless no parameter of the model
                requires a gradient, as for inference; "hold": always; "move": never, the flag is not looked at.

        Raises:
            AgreementError: another process cannot take part, or is asked for something else; nothing was written on any.
            OptimizerError: the optimizer has no rule, or its state does not fit the model; nothing was written.
            BindError, RescaleError: a parameter has another shape than at the analysis, or cannot be multiplied in place; nothing
                was written.
            OptionError: `cycles` or `agree_every` is not a positive integer, or `state` or `frozen` is unknown.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            >>> model(torch.ones(2, 4)).sum().backward()
            >>> optimizer.step()
            >>> plan.step(optimizer)
        """
        step(self.rescaler, StepRequest(optimizer, cycles, grads, state, agree_every, frozen))

    def balance(
        self,
        optimizer: OptimizerLike = None,
        *,
        tol: float = 1e-6,
        max_iterations: int = 10_000,
        state: StateChoice = "reexpress",
        frozen: FrozenChoice = "auto",
        objective: Any = None,
        maximise: bool = False,
        max_log_scale: float | None = None,
        check: Any = None,
        bits: Bits | None = None,
        worse_by: float = 0.0,
    ) -> BalanceResult:
        """Moves the weights to their least norm: Newton's method until the imbalance is at most `tol`, then one write.

        As a rule the minimum is unique, and it does not matter which of all rescalings of a model this starts from. Scales in
        front of a normalisation stay as they are; `fxenorm.canonical` folds BatchNorms first, which frees them. For p = inf
        the answer is max-balanced: for every set of channels the largest weight in is as large as the largest weight out. It is
        the one whose sorted weights are lexicographically least, the limit of large p; ``residual`` says how far a result is
        from it. With solver="gauss-seidel" sweeps equalise the ranges of single channels, which has many answers in a model
        with residual streams.

        Of a model spread over processes, every question of the solver is one small collective, and none gathers a weight.

        Args:
            optimizer: as in `step`.
            tol: largest imbalance |log(N_k / P_k)| / p that counts as balanced; for p > 4 of sets of channels too.
            max_iterations: Newton steps or cycles at most; the best that was reached is applied then, and ``converged`` is False.
            state, frozen: as in `step`.
            objective: a term of `fxenorm.objectives`, or a sum of terms with weights, which is minimised instead of the norm;
                None: the norm.
            maximise: whether the objective is made large instead, inside a box: by vertices of the box, to a local maximum.
            max_log_scale: of an objective, the largest |log-scale| of any variable that may move; None: the plan's own. In a box
                nothing is held for want of a minimum.
            check: inputs, in a form that `fxenorm.analyze` takes: the model is run on them in eval mode with rounded weights and
                activations, by ranges observed there, as it is and as it would be. Where the relative error of the outputs
                grows, nothing is written, and the result says so; the second run needs a copy of the weights. None: no check.
            bits: of the check: how weights and inputs of linear layers and convolutions are rounded; None: 8 of both, per tensor.
            worse_by: the share by which that error may grow: 0.1 for a tenth.

        Returns:
            The norms before and after, and more; print it. ``plan.rescale(-result.log_scales)`` undoes it.

        Raises:
            AgreementError, OptimizerError, BindError: as `step`; nothing was written.
            ExampleInputsError: the model does not run on the inputs of a check, or gives no finite outputs; nothing was written.
            OptionError: `tol`, `max_iterations` or `max_log_scale` is not positive, `state` or `frozen` is unknown, the
                objective does not fit the model, `maximise` lacks an objective or a box, or a check cannot be done so.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> x = torch.ones(2, 4)
            >>> before = model(x)
            >>> result = plan.balance()
            >>> result.norm_after <= result.norm_before, torch.allclose(model(x), before, atol=1e-6)
            (True, True)
        """
        if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol > 0:
            raise OptionError(f"tol={tol!r} is not valid: expected a number > 0")
        if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
            raise OptionError(f"max_iterations={max_iterations!r} is not valid: expected an integer >= 1")
        composed = objective is not None or maximise or max_log_scale is not None
        if composed:
            self._check_box(objective, maximise, max_log_scale)
        with self.rescaler.lock:
            checking = self._checking(check, bits, worse_by)
            permit = None if checking is None else checking.permits
            if composed:
                objective = following(objective, self.follow)
                request = Request(objective, maximise, max_log_scale, float(tol), max_iterations, state, frozen)
                result = minimise_terms(self.rescaler, optimizer, request, permit)
            else:
                options: dict[str, Any] = {"tol": float(tol), "max_iterations": max_iterations}
                result = balance(self.rescaler, optimizer, **options, state=state, frozen=frozen, permit=permit)
        return result if checking is None else checking.noted(result)

    def _checking(self, check: Any, bits: Any, worse_by: Any) -> RoundingCheck | None:
        """Returns the check of a balance with rounded weights and activations; None: there is none."""
        chosen = checked_bits(check, bits, worse_by)
        if chosen is None:
            return None
        if self.rescaler.ranks() is not None or self.rescaler.replicas() is not None:
            raise OptionError("check= runs the model in one process, and this one is spread over several, or has copies there")
        self.rescaler.repair()
        return RoundingCheck(self._subject(), resolve_inputs(self.model, check), chosen, float(worse_by))

    def _subject(self) -> Subject:
        """Returns the model with what checks have to know of it."""
        return Subject(self.rescaler.analysis, self.model, lambda module, scales: self.bind(module).rescale(scales))

    def _check_box(self, objective: Any, maximise: bool, max_log_scale: float | None) -> None:
        """Raises an OptionError where a box, or what is asked for in it, is not valid."""
        number = isinstance(max_log_scale, (int, float)) and not isinstance(max_log_scale, bool)
        if max_log_scale is not None and not (number and 0 < max_log_scale < math.inf):
            raise OptionError(f"max_log_scale={max_log_scale!r} is not valid: expected None, or a natural logarithm > 0")
        if type(maximise) is not bool:
            raise OptionError(f"maximise={maximise!r} is not valid: expected True or False")
        if objective is None:
            name = "maximise" if maximise else "max_log_scale"
            raise OptionError(f"{name} belongs to an objective: pass objective=fxenorm.objectives.Weights() for the norm")
        if maximise and max_log_scale is None and self.options.max_log_scale is None:
            raise OptionError("maximise=True needs a box, for objectives grow for ever: pass max_log_scale=0.3, say")

    def objective(self, term: Any) -> Function:
        """Returns an objective as a function of the log-scales, at the current weights; what becomes of these later is not seen.

        Args:
            term: a term of `fxenorm.objectives`, a sum of terms with weights, or one of your own.

        Returns:
            Its ``value_and_gradient(log_scales)`` and ``curvature_times(log_scales, direction)``, float64 of shape (num_scales,).
            Of a model that is spread over processes, all of these call it together.

        Raises:
            OptionError: the term does not fit the model.

        Example:
            >>> import fxenorm, torch
            >>> plan = fxenorm.analyze(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
            >>> value, gradient = plan.objective(fxenorm.objectives.Weights(p=2)).value_and_gradient(torch.zeros(8).double())
        """
        with self.rescaler.lock:
            weights = self.rescaler.open_together()
            return function_of(following(as_term(term), self.follow), self.rescaler.analysis, weights).kept()

    def rescale(
        self, log_scales: Tensor | Sequence[float], optimizer: OptimizerLike = None, *, state: StateChoice = "reexpress"
    ) -> None:
        """Multiplies every entry by exp(a . log_scales), in place; frozen parameters too.

        Args:
            log_scales: (num_scales,) natural logarithms, a tensor or a sequence of floats.
            optimizer, state: as in `step`.

        Raises:
            RescaleError: `log_scales` has another shape or is not finite, or a tensor would overflow; nothing was written.
            AgreementError, OptimizerError, BindError: as `step`; nothing was written.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> before = model[0].bias[0].item()
            >>> plan.rescale([1.0] + 7 * [0.0])
            >>> round(model[0].bias[0].item() / before, 4)
            2.7183
        """

        def look() -> Looked:
            """Finds all that follows, and the factors; raises where an entry would overflow."""
            given = checked_log_scales(log_scales, self.num_scales)
            weights, targets = self.rescaler.targets(optimizer, frozen=True, state=state)
            scales = weights.checked_scales(given)
            targets.refuse_overflow(scales)
            return Looked(weights, targets, scales)

        with self.rescaler.lock:
            _, targets, scales = self.rescaler.look_up_and_agree(("rescale", f"state={state!r}"), look, optimizer)
            if scales is not None:
                targets.apply_and_tell(scales)
                self.rescaler.moved(scales)

    def repair(self) -> None:
        """Finishes the writes that an interrupted call has left; every other call does so too before anything else.

        An error or a signal in the middle of the writes is raised once they are all finished, or all undone, so there is hardly
        ever anything to do here: only where neither was possible, as without memory, is a model left half rescaled, and the
        writes are kept. Of a model spread over processes, each finishes its own; where one cannot, the next call raises on all.

        Raises:
            RescaleError: tensors were written by others since: they are named and left as they are; or it fails again.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> fxenorm.analyze(model).repair()
        """
        self.rescaler.repair()

    def attach(
        self,
        optimizer: OptimizerLike,
        every: int = 1,
        start: int = 0,
        stop: int | None = None,
        *,
        cycles: int = 1,
        grads: bool = False,
        state: StateChoice = "reexpress",
        agree_every: int = 1,
        frozen: FrozenChoice = "auto",
        record: int | None = None,
    ) -> Attachment:
        """Calls `step` from the optimizer's own step hook, so that it works under every trainer that steps that optimizer.

        Parameter groups that are added and parameters that are frozen or unfrozen later are picked up at the next step. Tensors
        are scaled in place and keep their addresses: compiled models and captured CUDA graphs stay valid. A compiled step leaves
        its graph for the hook (so no ``fullgraph=True``). Replayed CUDA graphs call no hooks: where the step itself is captured
        (``capturable=True``), attach nothing and call ``plan.step(optimizer)`` after each replay.

        Args:
            optimizer: one, a sequence (rescaled when the last of them has stepped), or a wrapper with ``.optimizer``.
            every, start, stop: rescaled after each `every`-th of the steps start + 1, start + 2, ..., stop (None: no end).
            cycles, grads, state, agree_every, frozen: as in `step`; `grads` where gradients are kept from one step to the next.
                ``state="reset"`` waits for the device where a GradScaler drives a fused optimizer. With ``frozen="auto"`` a model
                that is frozen as a whole for a while rests meanwhile: it is no inference model here.
            record: after each `record`-th counted step the norm and the imbalance are added to `history`, whether that step was
                followed by a rescaling or not; None: never. It reads all weights once more, and waits for no device; a step
                that a GradScaler skipped may be recorded twice. Of a model spread over processes it communicates.

        Returns:
            A handle with ``remove``, ``state_dict`` and ``load_state_dict``; also a context manager.

        Raises:
            OptimizerError, OptionError: as `step`; in the hook, OptimizerError where a CUDA graph is being captured.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> handle = plan.attach(optimizer)
            >>> handle
            <fxenorm.Attachment to SGD: rescales after each step>
            >>> handle.remove()
        """
        options = AttachOptions(every, start, stop, cycles, grads, state, agree_every, frozen, record)
        return Attachment(self.rescaler, optimizer, options)

    def track(self, copy: Any, *, master: bool = False) -> Tracked:
        """Has a copy of the weights follow every later rescaling, in the same call.

        Args:
            copy: an averaged model (AveragedModel, timm's ModelEma, any module of the model's shape), a dict of tensors by name,
                or a list in the order of ``model.parameters()``, of all or of those that require a gradient.
            master: whether the model's 16-bit weights are rewritten from it, so that factors need be no powers of two.

        Returns:
            A handle with ``remove``.

        Raises:
            BindError, OptionError: names or shapes differ from the model's, or `copy` is none of these.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> average = torch.optim.swa_utils.AveragedModel(model)
            >>> plan.track(average)
            <fxenorm.Tracked Sequential: follows every rescaling>
            >>> plan.rescale(torch.ones(8))
            >>> torch.equal(average.module[0].weight, model[0].weight)
            True
        """
        tracked = self.rescaler.tracked
        tracked.append(Tracked(copy, self.model, self.symmetry, master=master, forget=tracked.remove))
        return tracked[-1]

    def observe(
        self, loader: Any, *, batches: int | None = None, quantile: float = 0.999, derivatives: bool | int = False
    ) -> Observations:
        """Runs the model on data and returns the ranges of its activations by channel, for those who quantise.

        At every site of every group, and at every input of a layer with weights that has none: the smallest and the largest
        value, the mean square, and a high quantile of the absolute value. An activation that a function multiplies by a
        parameter, as ``F.linear(x, layer.weight)`` or ``x @ self.weight``, is such an input too, under (parameter, "operand").
        The quantile is that of each batch, by nearest rank, and the largest of all batches is kept: it is at least that of all
        data together. One calibration serves all later choices: what takes observations first brings them to the current
        weights by known factors, as `follow` does.

        The model runs in eval mode, one batch at a time, and no activation is kept. Its modes, buffers, hooks and gradients, and
        all random numbers, are as before afterwards, also where forward raises. Meanwhile nothing else may use it.

        Args:
            loader: an iterable of batches on the model's device, each a tensor, a tuple of positional arguments, or a dict of
                keyword arguments.
            batches: how many of them are used at most; None: all.
            quantile: the share of the entries of a channel that the quantile bounds, above 0 and at most 1.
            derivatives: whether the mean squared derivatives of the outputs by all activations, and by the weights of linear
                layers and convolutions, are found too, in one backward pass a batch from random signs of the outputs; they take
                16 bytes an entry of these weights. A number: so many passes a batch, each with other signs: by the weights,
                each pass is one draw, so that few large batches need several.

        Returns:
            The observations; ``skipped`` in it names the activations that could not be observed, with the reasons.

        Raises:
            OptionError: the loader is no iterable or gives no batch, an argument is not valid, the model is on the meta device
                or spread over processes, or its outputs have no derivatives.
            ExampleInputsError: the model does not run on a batch.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> observations = plan.observe(torch.randn(2, 4) for _ in range(10))
            >>> bool((observations["2", "input"].minimum >= 0).all())
            True
        """
        if self.rescaler.ranks() is not None:
            raise OptionError("observing runs the whole model, and this one is spread over processes: observe the unsharded one")
        with self.rescaler.lock:
            self.repair()
            request = Observing(loader, batches, quantile, derivatives)
            return observe(self.rescaler.analysis, self.model, request, self.rescaler.position)

    def follow(self, observations: Observations) -> Observations:
        """Returns observations as they are at the current weights, by the rescalings since; no run is needed.

        Whatever takes observations does this first. `rescale` and `balance` of this plan are followed, and of those that were
        made from it by `bind` or a copy. Entries of all parameters tell whether the rescalings lead to the weights. Of a model
        that is spread over processes, each passes the same observations, which were made of the model as a whole.

        Args:
            observations: of `observe`, also stored ones.

        Raises:
            StaleError: the weights have changed otherwise since, as by training, `step`, or a loaded checkpoint; or the
                observations are of a plan with other variables.
            OptionError: these are no observations.
            AgreementError: the model is spread over processes, and another one met an error.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> observations = plan.observe([torch.ones(2, 4)])
            >>> plan.rescale(torch.ones(8))
            >>> now, before = (one["2", "input"].maximum for one in (plan.follow(observations), observations))
            >>> bool(torch.allclose(now, before * torch.ones(8).double().exp()))
            True
        """
        with self.rescaler.lock:
            rescaler = self.rescaler
            return followed(observations, self.symmetry, rescaler.parameters, rescaler.position, rescaler.ranks())

    def predict(self, observations: Observations, bits: Bits | None = None) -> Prediction:
        """Predicts the noise that rounding makes in the outputs, by layer, now and after the best rescaling; print it.

        Nothing is rounded or run, and nothing is written. ``plan.balance(objective=PredictedNoise(observations, bits))`` goes to
        the optimum. The first line says whether this is worth it for this model and these bits.

        Args:
            observations: of ``observe(loader, derivatives=True)``; they follow the plan's rescalings.
            bits: of the quantiser; None: 8 for weights and activations, per tensor.

        Returns:
            The noise of each tensor that is rounded, as a share of the outputs, and that of all together.

        Raises:
            StaleError: the observations are of other weights.
            OptionError: they have no derivatives, or nothing that is rounded reaches the outputs.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> observations = plan.observe([torch.randn(16, 4)], derivatives=True)
            >>> prediction = plan.predict(observations, fxenorm.Bits(weights=4, per="channel"))
            >>> prediction.best <= prediction.now
            True
        """
        with self.rescaler.lock:
            return predict(self.rescaler, self.follow(observations), Bits() if bits is None else bits)

    @property
    def example(self) -> Inputs | None:
        """The inputs on which the analysis ran, given or guessed; None for a plan that was read from a file.

        Example:
            >>> import fxenorm, torch
            >>> plan = fxenorm.analyze(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
            >>> plan.example.guessed, plan.example.args[0].shape
            (True, torch.Size([2, 4]))
        """
        return self._example

    def verify(self, inputs: Any = None, *, seed: int = 0) -> Verification:
        """Checks on the model itself that rescaling leaves its outputs as they are; the model is left as it was.

        In every mode in `modes`, and at a second size of the inputs where the analysis found one, all variables at once are drawn
        from uniform(-1, 1), in float64. A model that does not run in float64 runs in its own dtypes. For the time of a run the
        tensors of the model show other memory, so nothing else may use it meanwhile; nothing is written into their own.

        Args:
            inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; None: those of the analysis, or
                guessed.
            seed: of the log-scales and of the model's own randomness.

        Returns:
            The finding, falsy where the outputs changed; print it.

        Raises:
            RescaleError: the model is on the meta device, or does not run on the inputs.
            ExampleInputsError: no inputs were given and none can be guessed.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> bool(plan.verify())
            True
        """
        example = known_inputs(self.model, self._example, inputs)
        with self.rescaler.lock:
            self.repair()
            return verify(self._subject(), example, seed=seed)

    # ---------------------------------------------------------------- other models, storage, pictures

    def bind(self, model: nn.Module) -> Plan:
        """Returns the same plan on another module of the same parameter names and shapes (checkpoint, copy); no new trace.

        Args:
            model: the module, also after ``fully_shard``; wrappers are looked through, and remembered if DistributedDataParallel.

        Returns:
            A plan that shares everything but the module with this one.

        Raises:
            BindError: names or shapes differ; the differences are listed.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan.bind(other).balance().converged
            True
        """
        check_fits(model, self.symmetry)
        made = Plan(self.symmetry, self.options, model, analysis=self.rescaler.analysis, example=self._example)
        made.rescaler.moved(self.rescaler.position)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a JSON-compatible dict, without any weights; see `from_dict`.

        Example:
            >>> import json
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> text = json.dumps(plan.to_dict())
            >>> fxenorm.Plan.from_dict(json.loads(text), plan.model)
            <fxenorm.Plan of Sequential: 8 scales in 1 group>
        """
        return {**to_dict(self.symmetry, self.options, self.groups, self.pairs), "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], model: nn.Module) -> Plan:
        """Puts a stored plan on a module, without a trace; returns the plan.

        Args:
            stored: the dict of `to_dict`, possibly after a trip through JSON.
            model: a module of the same parameter names and shapes.

        Raises:
            BindError: `stored` is damaged or of another format, or the module does not fit.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> fxenorm.Plan.from_dict(plan.to_dict(), other).num_scales
            8
        """
        analysis = analysis_from_dict(stored)
        check_fits(model, analysis.symmetry)
        return cls(analysis.symmetry, analysis.options, model, analysis=analysis)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Returns the same plan on a deep copy of the model and of the tracked copies; a model's copy takes its plan along.

        Raises:
            RescaleError: an interrupted call has left writes to do: call `repair` first.
        """
        made = Plan.__new__(Plan)
        memo[id(self)] = made
        made._begin(self.rescaler.analysis, copy.deepcopy(self._state(), memo))
        return made

    def __copy__(self) -> Plan:
        """Returns the same plan on the same model; it tracks the same copies, and knows of the same replicas."""
        made = Plan.__new__(Plan)
        made._begin(self.rescaler.analysis, self._state(), self.rescaler.group)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the stored form, the model and the tracked copies; names nothing of this package but `plan_from_dict`.

        Raises:
            RescaleError: an interrupted call has left writes to do: call `repair` first.
        """
        return plan_from_dict, (self.to_dict(),), self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up the state that `_state` gave."""
        self._begin(self._stored, state)
        del self._stored

    def _state(self) -> dict[str, Any]:
        """Returns the state that a copy of this plan needs beside its stored form."""
        if self.rescaler.journal.is_open:
            raise RescaleError("the model is half rescaled after an interruption: call plan.repair() before the plan is copied")
        example = self._example
        return {
            "model": self.model,
            "example": None if example is None else (example.args, dict(example.kwargs), example.guessed),
            "tracked": [(tracked.copy, tracked.master) for tracked in self.rescaler.tracked],
            "history": list(self.history),
            "position": self.rescaler.position,
        }

    def _begin(self, analysis: Analysis, state: dict[str, Any], group: Any = None) -> None:
        """Begins anew with the state that `_state` gave. The model may be empty as yet: it is being copied or loaded itself."""
        example = state["example"]
        self._example = None if example is None else Inputs(*example)
        self._rescaler = Rescaler(analysis, unwrap(state["model"]), replica_group(state["model"]) if group is None else group)
        tracked = self._rescaler.tracked
        for given, master in state["tracked"]:
            tracked.append(Tracked.again(given, analysis.symmetry, master=master, forget=tracked.remove))
        # Older pickles have neither.
        if "position" in state:
            self._rescaler.moved(state["position"])
        self._rescaler.history = History(self._rescaler.measured, state.get("history", ()))

    def to_networkx(self) -> networkx.MultiDiGraph[Any]:
        """Returns the pair graph: layers as nodes, pairs as edges with ``group``, ``channels`` and ``operators``.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> list(plan.to_networkx().edges)
            [('0', '2', 0)]
        """
        return pair_graph(self.symmetry, self.pairs)

    def draw(self, path: str | os.PathLike[str] | None = None, *, expand: bool | None = None) -> Any:
        """Draws the pair graph: layers as boxes in graph order, groups as lines from writers to readers.

        Modules of equal structure whose names differ in their numbers are drawn as one. It needs matplotlib, and no weight.

        Args:
            path: a file to write as well, in the format that its ending names, as "plan.png", "plan.pdf" or "plan.svg".
            expand: whether each layer has a box of its own; None: in a model of at most 60 layers.

        Returns:
            A ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            MissingLibraryError: matplotlib is not installed.
            OptionError: the file cannot be written, or its ending names no format; `expand` is none of True, False, None.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> type(fxenorm.analyze(model).draw()).__name__
            'Figure'
        """
        if expand is not None and not isinstance(expand, bool):
            raise OptionError(f"expand={expand!r} is not valid: expected True, False or None")
        figure = figure_of(picture_of(self.rescaler.analysis, expand=expand))
        if path is not None:
            save(figure, path)
        return figure

    def describe(self, *, expand: bool = False, width: int | None = None) -> str:
        """Puts the plan into words and tables, as ``print(plan)`` does, without reading a weight.

        Groups of one kind whose layers' names differ only in their numbers share a row: ``layers.{0..31}.up -> .down`` with
        ``32 × 11,008`` channels stands for 32 groups of 11,008 channels.

        Args:
            expand: whether each group has a row of its own, and every layer and operator is named.
            width: of the text, in characters; None: the terminal's; where there is none, 100 of the table, any of other
                lines. A name is never broken, so that a line with a longer name is longer.

        Returns:
            Text of several lines.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> layers = [nn.Linear(4, 4)]
            >>> for _ in range(5):
            ...     layers += [nn.ReLU(), nn.Linear(4, 4)]
            >>> print("\\n".join(fxenorm.analyze(nn.Sequential(*layers)).describe().splitlines()[4:7:2]))
            group      kind   channels  producers -> consumers
            g0 ... g4  chain     5 × 4  {0,2,...,8} -> {2,4,...,10}
        """
        return describe(self.rescaler.analysis, *self._told(), width, expand=expand)

    def _told(self) -> tuple[str, frozenset[str]]:
        """Returns the name of the model's class and its frozen parameters, which descriptions tell."""
        return type(self.model).__name__, frozen_names(self.model, self.symmetry)

    def __str__(self) -> str:
        """Returns the text of `describe`: the groups, and the operators that hold the other channels."""
        return self.describe()

    def _repr_html_(self) -> str:
        """Returns the text of `describe` as a table for notebooks."""
        return plan_html(self.rescaler.analysis, *self._told())

    def __repr__(self) -> str:
        """Returns one line: the model's class, the scales and the groups."""
        found = f"{plural(self.num_scales, 'scale')} in {plural(len(self.groups), 'group')}"
        return f"<fxenorm.Plan of {type(self.model).__name__}: {found}>"


def plan_from_dict(stored: Mapping[str, Any]) -> Plan:
    """Returns a stored plan without a module, which a pickle gives it at once.

    Args:
        stored: the dict of `Plan.to_dict`.

    Raises:
        BindError: `stored` is damaged or of another format.

    Example:
        >>> import copy, pickle
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> pickle.loads(pickle.dumps(plan)).num_scales
        8
    """
    made = Plan.__new__(Plan)
    made._stored = analysis_from_dict(stored)
    return made


# Pickles name it so, and files of this package may move.
plan_from_dict.__module__ = "fxenorm"
