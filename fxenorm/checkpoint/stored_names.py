"""Which tensors of the files are those of the model."""

from __future__ import annotations

from collections import defaultdict

from ..analysis.analysis import Analysis
from ..errors import CheckpointError
from .files.tensor_files import TensorFiles

__all__ = ["stored_names"]


def stored_names(analysis: Analysis, files: TensorFiles) -> dict[str, tuple[str, ...]]:
    """Returns, for each tensor that balancing reads or writes, the names under which the files hold it.

    A tensor of several names, as a tied embedding, may be stored under one of them or under several.

    Raises:
        CheckpointError: a tensor is missing or has another shape; at most ten are listed.
    """
    symmetry = analysis.symmetry
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, name in symmetry.aliases.items():
        aliases[name].append(alias)
    found: dict[str, tuple[str, ...]] = {}
    wrong: list[str] = []
    for name in dict.fromkeys([*symmetry.exponents, *sorted(analysis.counted.folded_names)]):
        names = tuple(one for one in (name, *aliases[name]) if one in files.tensors)
        shape = symmetry.shapes.get(name)
        if not names:
            wrong.append(f"{name} is missing")
        for one in names:
            if shape is not None and files.tensors[one].shape != tuple(shape):
                wrong.append(f"{one} has shape {files.tensors[one].shape} instead of {tuple(shape)}")
        found[name] = names
    if wrong:
        listed = "; ".join([*wrong[:10], *([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else [])])
        raise CheckpointError(f"the checkpoint in {files.folder} does not belong to the model: {listed}")
    return found
