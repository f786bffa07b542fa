"""``--balance`` of a folder of Transformers: one component at a time, so that the weights need not fit into memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...checkpoint.balance_checkpoint import balance_checkpoint
from ..arguments.analysis_options import analysis_options
from ..targets.load import Loaded

__all__ = ["balance_folder"]

Json = dict[str, Any]


def balance_folder(arguments: argparse.Namespace, loaded: Loaded, folder: Path) -> tuple[Json, list[str]]:
    """Balances the safetensors files of a folder, and writes them with all else that the folder holds.

    Args:
        arguments: the command line.
        loaded: the model on the meta device, and its example inputs.
        folder: of the weights.

    Returns:
        Norms and imbalances before and after, and the paths, as JSON; and lines that tell them.

    Raises:
        CheckpointError: the files do not belong to the model, or the target cannot be written.
        FxenormError: of the analysis.
    """
    result = balance_checkpoint(
        folder,
        arguments.balance,
        loaded.model,
        jobs=arguments.jobs,
        overwrite=arguments.force,
        example_inputs=loaded.example_inputs,
        example_kwargs=loaded.example_kwargs,
        **analysis_options(arguments),
    )
    beside = f"{arguments.balance}.log_scales.json"
    answer = {
        "undone": None,
        "converged": result.converged,
        "norm": [result.norm_before, result.norm_after],
        "imbalance": [result.imbalance_before, result.imbalance_after],
        "written": arguments.balance,
        "log_scales": beside,
    }
    lines = [*str(result).splitlines(), f"  log-scales {beside} (--undo takes them back)"]
    return answer, lines
