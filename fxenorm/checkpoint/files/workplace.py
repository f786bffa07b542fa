"""The unfinished checkpoint beside its target: prepared, written piece by piece, and put in place by renaming."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError
from .copies import copy_but
from .placing import finish_placing, place
from .tensor_files import TensorFiles

__all__ = ["Workplace"]


@dataclass(frozen=True)
class Workplace:
    """Where a checkpoint is written before it is complete.

    Attributes:
        source: the files that are read.
        target: where the complete checkpoint will stand.
    """

    source: TensorFiles
    target: Path

    @property
    def folder(self) -> Path:
        """The unfinished checkpoint: a folder also where the target is one file."""
        return self.target.with_name(self.target.name + ".partial")

    @property
    def journal(self) -> Path:
        """The journal of what is finished."""
        return self.target.with_name(self.target.name + ".partial.journal")

    def journal_of(self, process: int) -> Path:
        """Returns the journal of one of several processes; that of the first is `journal`."""
        return self.journal.with_name(f"{self.journal.name}.{process}") if process else self.journal

    def journals(self) -> list[Path]:
        """Returns the journals of all processes, as far as they are there; the first process's is the first."""
        own = re.compile(re.escape(self.journal.name) + r"(\.\d+)?")
        return sorted(path for path in self.target.parent.iterdir() if own.fullmatch(path.name))

    @property
    def log_scales(self) -> Path:
        """Where the log-scales are kept, to undo them."""
        return self.target.with_name(self.target.name + ".log_scales.json")

    @property
    def unplaced_log_scales(self) -> Path:
        """Where the log-scales are written before they take their place together with the target."""
        return self.target.with_name(self.target.name + ".partial.log_scales.json")

    def ready(self, overwrite: bool) -> bool:
        """Returns whether a killed run had come to its last renames, which are finished here; else checks, as `check` does."""
        placed = finish_placing(self.target) and self.journal.exists()
        if not placed:
            self.check(overwrite)
        return placed

    def check(self, overwrite: bool) -> None:
        """Raises where the target cannot be written.

        Raises:
            CheckpointError: something stands there and `overwrite` is False, its folder is missing, or it is the source itself.
        """
        own = self.source.folder / self.source.names[0] if self.source.single else self.source.folder
        if self.target.exists() and self.target.samefile(own):
            raise CheckpointError(f"{self.target} is the source: name another place")
        if self.target.resolve().is_relative_to(own.resolve()):
            raise CheckpointError(f"{self.target} lies within the source: name another place")
        if not self.target.parent.is_dir():
            raise CheckpointError(f"no such folder: {self.target.parent}")
        if self.target.exists() and not overwrite:
            raise CheckpointError(f"{self.target} is there already: remove it, name another place, or pass overwrite=True")
        if self.target.exists() and self.target.is_dir() == self.source.single:
            raise CheckpointError(f"{self.target} is a {'folder' if self.target.is_dir() else 'file'}, and the source is none")

    def prepare(self, moved: Iterable[str]) -> None:
        """Makes the files with all bytes but those of the moved tensors, and copies the other files of the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        left: dict[str, list[tuple[int, int]]] = {name: [] for name in self.source.names}
        for name in moved:
            stored = self.source.tensors[name]
            left[stored.file].append((stored.begin, stored.end))
        for name in self.source.names:
            copy_but(self.source.folder / name, self.folder / name, sorted(left[name]))
        for name in self.source.others:
            shutil.copyfile(self.source.folder / name, self.folder / name)

    def finish(self, log_scales: str) -> None:
        """Puts the complete checkpoint and its log-scales in their places, and removes the journal."""
        made = self.folder / self.source.names[0] if self.source.single else self.folder
        self.unplaced_log_scales.write_text(log_scales, encoding="utf-8")
        place({self.target: made, self.log_scales: self.unplaced_log_scales})
        self.forget()

    def forget(self) -> None:
        """Removes the journals, and what else is left beside the target."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.unplaced_log_scales.unlink(missing_ok=True)
        self.forget_others()
        self.journal.unlink(missing_ok=True)

    def forget_others(self) -> None:
        """Removes the journals of all processes but the first."""
        for path in self.journals():
            if path != self.journal:
                path.unlink(missing_ok=True)
