"""The warnings of one plan, each of which is given once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

from ...analysis.held import FROZEN, Held
from ...errors import warn_user

__all__ = ["WarnOnce"]


class WarnOnce:
    """Gives each warning of one plan once.

    Attributes:
        looked: whether the plan's first call has looked whether there is anything to move.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()
        self.looked = False
        self._gradient: tuple[weakref.ref[Tensor], int] | None = None

    def parameters_without_optimizer(self, names: Sequence[str]) -> None:
        """Warns of parameters that move and that no optimizer holds; says nothing where there are none."""
        if names:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            self._warn(
                "unowned",
                f"these parameters are rescaled but belong to none of the optimizers given: {shown}. If another optimizer holds "
                "them, pass all of them as a sequence",
            )

    def optimizer_not_passed(self, gradient: Tensor | None) -> None:
        """Warns that the model is being trained by an optimizer that was not passed.

        An optimizer that nobody passes cannot be seen, and one call says little: what is seen is that there is another gradient
        than at an earlier call, as in every training loop and hardly ever elsewhere.

        Args:
            gradient: of some parameter, at this call; None: there is none.
        """
        if gradient is None:
            return
        seen = self._gradient
        self._gradient = (weakref.ref(gradient), gradient._version)
        if seen is None or (seen[0]() is gradient and seen[1] == gradient._version):
            return
        self._warn(
            "unseen",
            "step() is called without an optimizer while the model is being trained. If its optimizer keeps momentum or other "
            "state, pass it, plan.step(optimizer), or that state no longer fits the weights; plan.step(state='keep') says that "
            "there is none",
        )

    def attached_twice(self, again: str) -> None:
        """Warns that an optimizer's step is followed by more than one rescaling, each of which counts."""
        self._warn(
            f"twice {again}",
            f"the plan is attached to this optimizer already, so that each of its steps is followed by a rescaling; {again} "
            "rescales once more. Leave one of them out, or call handle.remove() of the earlier one",
        )

    def accumulating(self) -> None:
        """Warns that the weights move away from gradients that are still being accumulated."""
        self._warn(
            "accumulating",
            "step() moves weights whose .grad no optimizer step has used: under gradient accumulation that gradient no longer "
            "fits the weights. Call plan.step(optimizer) only where optimizer.step() really stepped, or use "
            "plan.attach(optimizer), which does; plan.step(optimizer, grads=True) rescales .grad too",
        )

    def replicas_may_drift(self) -> None:
        """Warns that replicas may drift apart: each reads its own running statistics."""
        self._warn(
            "apart",
            "batchnorm='folded' reads running statistics, and there are other processes, whose batches and statistics differ. If "
            "they train this model too, under DistributedDataParallel, call fxenorm.analyze or plan.bind with that wrapper, so "
            "that all use the statistics of the first; else the copies drift apart",
        )

    def without_kernels(self, ranks: Sequence[int]) -> None:
        """Warns that other processes cannot have the compiled kernels, which are here."""
        listed = ", ".join(map(str, ranks[:10])) + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
        self._warn(
            "without kernels",
            "plan.step runs in plain PyTorch on all processes, about five times slower on a CPU than compiled, since rank "
            f"{listed} cannot have the compiled kernels and replicas must not differ; the warning there says why",
        )

    def nothing(self, call: str, reason: str) -> None:
        """Warns that a call moves nothing, whatever the weights are."""
        self._warn("nothing moves", f"{call}() moved nothing: {reason}")

    def nothing_moves(self, call: str, held: Sequence[Held], count: int) -> None:
        """Warns that all variables are held; says nothing where any can move."""
        totals: dict[str, int] = {}
        for item in held:
            totals[item.reason] = totals.get(item.reason, 0) + item.count
        if count and sum(totals.values()) >= count:
            reasons = "; ".join(f"{number:,} of them {reason}" for reason, number in totals.items())
            names = list(dict.fromkeys(name for item in held if item.reason == FROZEN for name in item.tensors))
            frozen = f". The frozen parameters are {', '.join(names[:5])}" if names else ""
            frozen += f" and {len(names) - 5} more" if len(names) > 5 else ""
            self._warn("nothing moves", f"{call}() moved nothing, since all {count:,} scales are held: {reasons}{frozen}")

    def _warn(self, kind: str, message: str) -> None:
        """Warns at the line outside this package that led here."""
        if kind in self._given:
            return
        self._given.add(kind)
        warn_user(message)
