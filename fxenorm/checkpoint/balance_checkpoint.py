"""`balance_checkpoint`: from a checkpoint on disk to a balanced one, one component at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis.analysis import Analysis
from ..errors import OptionError
from ..plan.analyze import analyze
from ..text.progress import bytes_done
from ..version import __version__
from .check import changed_modules, modules_around
from .components import components, names_in, restricted
from .files.tensor_files import TensorFiles, open_files
from .files.workplace import Workplace
from .in_turn import in_turn
from .journal import ComponentReport, ProgressJournal
from .meta_model import meta_model
from .part import Part, balance_part
from .result import CheckpointResult, result_of
from .sharing import Sharing, sharing_of
from .stored_names import stored_names

__all__ = ["balance_checkpoint"]


def balance_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model_or_config: Any = None,
    *,
    tol: float = 1e-6,
    jobs: int = 1,
    overwrite: bool = False,
    check: Literal["sample", "all", "none"] = "sample",
    process_group: Any = None,
    **options: Any,
) -> CheckpointResult:
    """Balances a checkpoint on disk that need not fit into memory; the new one has the same tensors, sharding and metadata.

    The plan comes from the model without its weights. Its objective falls apart into components (a Llama layer has two); each
    is read, balanced and written. The next one is read and the last one written meanwhile, so no more than two are in memory at
    once. A killed run goes on where it was when it is called again.

    Args:
        source: a ``.safetensors`` file, or a folder with one or with several and their index.
        target: where the new file or folder will stand; it is complete or absent. The log-scales stand beside it, in
            ``target + ".log_scales.json"``.
        model_or_config: the module, also on the meta device; a configuration of Transformers, or a folder that holds one; None:
            that of `source`.
        tol: as in `fxenorm.Plan.balance`.
        jobs: processes that share the components; where there are several, each holds one at a time.
        overwrite: whether a target that is there may be replaced.
        check: which modules are run on random inputs with the old and the new weights before the target is put in place:
            "sample": one of each structure; "all"; "none".
        process_group: processes of torch.distributed that share the components, on one machine or on many: each makes this
            same call, sees the same files (a file system on which several may write to one file at once) and gets the same
            result. Each has `jobs` processes.
        options: those of `fxenorm.analyze`, as ``p`` or ``example_inputs``. 16-bit weights move by powers of two unless
            ``scales="exact"``.

    Returns:
        Norms and imbalances before and after, and the log-scales.

    Raises:
        CheckpointError: the files cannot be read, do not belong to the model, or the target cannot be written; or
            the check found other outputs; or another process met an error.
        OptionError: `jobs` is not a positive integer, `check` is none of the three words, `process_group` is no group of this
            process, or as `fxenorm.analyze`.
        FxenormError: as `fxenorm.analyze`.

    Example:
        >>> import fxenorm, os, safetensors.torch, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, target = os.path.join(folder, "model.safetensors"), os.path.join(folder, "balanced.safetensors")
        ...     safetensors.torch.save_file(model.state_dict(), source)
        ...     result = fxenorm.balance_checkpoint(source, target, model)
        >>> result.norm_after < result.norm_before
        True
    """
    _refuse(jobs, check)
    sharing = sharing_of(process_group)
    place = Workplace(open_files(source), Path(target))
    placed = sharing.first(lambda: place.ready(overwrite))
    model = meta_model(model_or_config, source)
    plan = analyze(model, **options)
    analysis = plan.rescaler.analysis
    stored = stored_names(analysis, place.source)
    variables = components(analysis)
    key = _key(analysis, place.source, tol)
    if placed:  # a run that was killed while its files took their places: nothing else is left of it
        return sharing.first(lambda: result_of(place.target, analysis, variables, _taken(place, key), None))
    parts = [_part(index, ids, analysis, stored, place, tol) for index, ids in enumerate(variables)]
    moved = [one for name in analysis.symmetry.exponents for one in stored[name]]
    reports = _balance_all(parts, place, moved, key, jobs, sharing)

    def finished() -> CheckpointResult:
        """Checks the new files and puts them in place."""
        checked = None
        if check != "none":
            around = modules_around(model, analysis, parts, every=check == "all")
            # A copy on the meta device has tensors of their own in the place of tied ones.
            files = place.source.with_aliases(analysis.symmetry.aliases)
            checked = changed_modules(model, plan.example, around, files, place.folder)
            checked.refuse(place.folder)
        result = result_of(place.target, analysis, variables, reports, checked)
        kept = {"fxenorm": __version__, "fingerprint": analysis.fingerprint, "log_scales": result.log_scales.tolist()}
        place.finish(json.dumps(kept))
        return result

    return sharing.first(finished)


def _refuse(jobs: int, check: str) -> None:
    """Raises where one of these options is none."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise OptionError(f"jobs={jobs!r} is not a valid option: expected a positive integer")
    if check not in ("sample", "all", "none"):
        raise OptionError(f"check={check!r} is not a valid option: expected one of 'sample', 'all', 'none'")


def _part(
    index: int, ids: NDArray[np.int64], analysis: Analysis, stored: dict[str, tuple[str, ...]], place: Workplace, tol: float
) -> Part:
    """Returns one component with the places of its tensors."""
    names = names_in(analysis, ids)
    return Part(index, restricted(analysis, ids), {name: stored[name] for name in names}, place.source, place.folder, tol)


def _balance_all(
    parts: list[Part], place: Workplace, moved: Sequence[str], key: str, jobs: int, sharing: Sharing
) -> dict[int, ComponentReport]:
    """Balances the components that no journal has, and shows how far it is; returns the reports of all of them.

    Of several processes each takes some, and keeps a journal of its own.
    """
    sizes = [sum(place.source.bytes_of(names[0]) for names in part.stored.values()) for part in parts]
    known = sharing.first(lambda: _prepared(place, moved, key))
    left = [part for part in parts if part.index not in known]
    own = [left[piece] for piece in sharing.own([sizes[part.index] for part in left])]

    def work() -> dict[int, ComponentReport]:
        """Balances this process's share."""
        journal = ProgressJournal(place.journal_of(sharing.place), key)
        done = {} if sharing.place else known
        total = sum(sizes[part.index] for part in own) + sum(sizes[index] for index in done)
        with bytes_done("balance", total, sum(sizes[index] for index in done)) as advance:
            for report in _balanced(own, jobs):
                journal.add(report)
                advance(sizes[report.index])
        return journal.reports

    found = sharing.gathered(work)
    return {**known, **{index: report for reports in found for index, report in reports.items()}}


def _key(analysis: Analysis, files: TensorFiles, tol: float) -> str:
    """Returns a hash of all that decides what is written."""
    words = [analysis.fingerprint, files.digest(), repr(tol), __version__]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _prepared(place: Workplace, moved: Sequence[str], key: str) -> dict[int, ComponentReport]:
    """Sees to it that the files are there with all that does not move; returns the reports of what is finished."""
    if not place.folder.is_dir():  # finished just before its journals could be removed, or its files are gone
        place.forget()
    journal = ProgressJournal(place.journal, key)
    if not journal.prepared:
        place.forget_others()
        place.prepare(moved)
        journal.say_prepared()
    return _reports(place, key)


def _reports(place: Workplace, key: str) -> dict[int, ComponentReport]:
    """Returns what all journals report, those of other processes too."""
    return {index: one for path in place.journals() for index, one in ProgressJournal(path, key).reports.items()}


def _taken(place: Workplace, key: str) -> dict[int, ComponentReport]:
    """Returns what all journals report, and removes them."""
    found = _reports(place, key)
    place.forget()
    return found


def _balanced(parts: list[Part], jobs: int) -> Iterator[ComponentReport]:
    """Balances the components, one after the other or on several processes; yields each report once its bytes are written."""
    if jobs == 1 or len(parts) < 2:
        yield from in_turn(parts, balance_part)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # Forked children of a process with threads may hang.
    with ProcessPoolExecutor(
        min(jobs, len(parts)), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        futures = [pool.submit(balance_part, part) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
