"""``--balance`` and ``--undo``: a checkpoint rescaled by a plan, written in its own form, with the log-scales beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...analysis.options import Options
from ...checkpoint.files.placing import finish_placing
from ...errors import CheckpointError
from ...plan.plan import Plan
from ...version import __version__
from ..whole_files import WholeFiles, refuse_existing
from .checkpoint import Checkpoint
from .write import log_scales_path, places, write_checkpoint, write_json

__all__ = ["LogScales", "Rescaled", "read_log_scales"]

Json = dict[str, Any]


@dataclass(frozen=True)
class LogScales:
    """The log-scales that an earlier run has kept.

    Attributes:
        path: of their file.
        values: one for each scale.
        fingerprint: of the plan that found them.
        options: its options; None: the file names none, as that of `fxenorm.balance_checkpoint`.
    """

    path: Path
    values: tuple[float, ...]
    fingerprint: str
    options: Options | None


def read_log_scales(given: str) -> LogScales:
    """Reads a file that ``--balance`` has written.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    path = Path(given)
    if not path.is_file():
        raise CheckpointError(f"no such file: {given}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        values = tuple(float(value) for value in stored["log_scales"])
        given_options = stored.get("options")
        options = None if given_options is None else Options(**{**given_options, "p": float(given_options["p"])})
        if not all(map(math.isfinite, values)):
            raise ValueError("a log-scale is not finite")
        return LogScales(path, values, str(stored["fingerprint"]), options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{given} holds no log-scales of fxenorm-inspect --balance: {error}") from error


@dataclass(frozen=True)
class Rescaled:
    """A checkpoint that is to be written again; made before the work begins, so that a wrong place is told at once.

    Attributes:
        checkpoint: gives the form.
        out: the file or folder that the user named.
        files: by file of the checkpoint, the file that is written.
        undo: log-scales that are taken back; None: the model is balanced.
        options: of the analysis.
        companions: whether the small files of the checkpoint's folder are copied.
    """

    checkpoint: Checkpoint
    out: Path
    files: Mapping[Path, Path]
    undo: LogScales | None
    options: Options
    companions: bool

    @classmethod
    def checked(cls, checkpoint: Checkpoint, out: str, undo: LogScales | None, options: Options, *, force: bool) -> Rescaled:
        """Returns the job, if all its files can be written.

        Raises:
            CheckpointError: a file is there already and `force` is not given, or the place is of a wrong kind.
        """
        path = Path(out)
        finish_placing(path.resolve())
        files, beside = places(checkpoint, path), log_scales_path(path)
        new_folder = checkpoint.spread and not path.is_dir()
        refuse_existing([path, beside] if new_folder else [*files.values(), beside], force)
        return cls(checkpoint, path, files, undo, options, checkpoint.folder)

    def write(self, plan: Plan, names: Mapping[str, str], model: str) -> tuple[Json, list[str]]:
        """Balances the model, or takes log-scales back, and writes its weights.

        Args:
            plan: of the model that holds the checkpoint's weights.
            names: by name in the checkpoint, the name in the model.
            model: how the user named the model.

        Returns:
            Norms and imbalances before and after, and the paths, as JSON; and lines that tell them.

        Raises:
            CheckpointError: the log-scales belong to another model, or a file cannot be written; then nothing is.
            RescaleError: a weight would overflow.
        """
        answer, lines, log_scales = _balanced(plan) if self.undo is None else _undone(plan, self.undo)
        kept = {
            "fxenorm": __version__,
            "model": model,
            "weights": str(self.checkpoint.given),
            "fingerprint": plan.fingerprint,
            "options": _options(plan.options),
            "log_scales": log_scales,
        }
        state, beside = plan.model.state_dict(), log_scales_path(self.out)
        try:
            with WholeFiles() as whole:
                write_json(beside, kept, whole)
                tensors = {outer: state[inner] for outer, inner in names.items()}
                write_checkpoint(self.checkpoint, tensors, self.files, whole, self.companions)
        except OSError as error:
            raise CheckpointError(f"{self.out} could not be written, nothing is: {error}") from error
        lines += [f"  written      {self.out}", f"  log-scales   {beside} (--undo takes them back)"]
        return {**answer, "written": str(self.out), "log_scales": str(beside)}, lines


def _balanced(plan: Plan) -> tuple[Json, list[str], list[float]]:
    """Balances the model; returns the numbers, lines that tell them, and the log-scales."""
    result = plan.balance()
    answer = {
        "undone": None,
        "converged": result.converged,
        "norm": [_finite(result.norm_before), _finite(result.norm_after)],
        "imbalance": [_finite(result.imbalance_before), _finite(result.imbalance_after)],
    }
    return answer, str(result).splitlines(), result.log_scales.tolist()


def _undone(plan: Plan, undo: LogScales) -> tuple[Json, list[str], list[float]]:
    """Takes log-scales back; returns the numbers, lines that tell them, and the log-scales that were applied."""
    if plan.fingerprint != undo.fingerprint or plan.num_scales != len(undo.values):
        raise CheckpointError(f"{undo.path} holds the log-scales of another model, or of this one under other options or inputs")
    norm, imbalance = [float(plan.norm())], [float(plan.imbalance())]
    log_scales = [0.0 - value for value in undo.values]
    plan.rescale(torch.tensor(log_scales, dtype=torch.float64, device="cpu"))
    norm.append(float(plan.norm()))
    imbalance.append(float(plan.imbalance()))
    answer = {
        "undone": str(undo.path),
        "converged": None,
        "norm": [_finite(value) for value in norm],
        "imbalance": [_finite(value) for value in imbalance],
    }
    lines = [
        f"undo: the log-scales of {undo.path} are taken back",
        f"  norm         {norm[0]:.6g} -> {norm[1]:.6g}",
        f"  imbalance    {imbalance[0]:.3g} -> {imbalance[1]:.3g}",
    ]
    return answer, lines, log_scales


def _options(options: Options) -> Json:
    """Returns options as JSON; an infinite p as a word."""
    found = dataclasses.asdict(options)
    return {**found, "p": "inf" if math.isinf(options.p) else options.p}


def _finite(value: float) -> float | None:
    """Returns a number, None where it is none."""
    return value if math.isfinite(value) else None
