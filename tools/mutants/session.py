"""Draw mutants by seed into a session of cosmic-ray, and find them again after the sources have changed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkItem
from mutants import Mutant, difference, mutants_of
from native import NativeMutant, compiles, native_mutants_of

_NATIVE = ("*.h", "*.cpp")


@dataclass(frozen=True)
class Drawn:
    """A mutant that was drawn: its file, the mutated text and its diff without line numbers, which is its name."""

    path: str
    operator: str
    position: tuple[int, int]
    changed: str
    text: str

    @property
    def key(self) -> str:
        """Names the mutant as long as its lines stand."""
        return hashlib.sha256(f"{self.path}\n{self.changed}".encode()).hexdigest()[:16]


def folder_of(path: str) -> str:
    """The folder of fxenorm that a report counts a source under."""
    parts = Path(path).parts[1:-1]
    return "/".join(parts) or "fxenorm"


def sources(root: Path) -> dict[str, list[str]]:
    """Every source that is mutated, by folder; the package's own folder holds names and error classes alone."""
    found: dict[str, list[str]] = {}
    files = [*(root / "fxenorm").rglob("*.py"), *(path for one in _NATIVE for path in (root / "fxenorm").rglob(one))]
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        if path.name != "__init__.py" and path.parent != root / "fxenorm":
            found.setdefault(folder_of(name), []).append(name)
    return found


@cache
def _all_mutants(root: Path, path: str) -> tuple[str, dict[tuple[int, int], list[Mutant | NativeMutant]]]:
    source = (root / path).read_text(encoding="utf-8")
    by_place: dict[tuple[int, int], list[Mutant | NativeMutant]] = {}
    if path.endswith(".py"):
        for mutant in mutants_of(source):
            by_place.setdefault(mutant.start, []).append(mutant)
    else:
        for native in native_mutants_of(source):
            by_place.setdefault((source.count("\n", 0, native.start) + 1, native.start), []).append(native)
    return source, by_place


def _drawn(root: Path, path: str, place: tuple[int, int], mutant: Mutant | NativeMutant) -> Drawn | None:
    source, _ = _all_mutants(root, path)
    text = mutant.text(source)
    if text is None or (isinstance(mutant, NativeMutant) and not compiles((root / path).parent, Path(path).name, text)):
        return None
    lines = difference(source, text, path).splitlines()[2:]
    changed = "\n".join(line[0] + line[1:].strip() for line in lines if line[:1] in "+-")
    return Drawn(path, mutant.operator, place, changed, text)


def drawn_of(root: Path, folder: str, paths: list[str], seed: int) -> Iterator[Drawn]:
    """Yield the folder's mutants in the order of the seed: places in the sources first, then one mutant at each."""
    chance = random.Random(f"{seed} {folder}")
    places = [(path, place) for path in paths for place in sorted(_all_mutants(root, path)[1])]
    chance.shuffle(places)
    for path, place in places:
        drawn = _drawn(root, path, place, chance.choice(_all_mutants(root, path)[1][place]))
        if drawn is not None:
            yield drawn


def shares(places: dict[str, int], sample: int, quotas: dict[str, int]) -> dict[str, int]:
    """How many mutants each folder gets: its quota, and of the rest a share that grows with the root of its size.

    >>> shares({"symmetry": 900, "solve": 100, "rules": 400}, 70, {"symmetry": 40})
    {'symmetry': 40, 'solve': 10, 'rules': 20}
    """
    rest = sample - sum(quotas.values())
    others = {folder: count**0.5 for folder, count in places.items() if folder not in quotas}
    exact = {folder: rest * weight / sum(others.values()) for folder, weight in others.items()}
    given = {folder: int(share) for folder, share in exact.items()}
    for folder in sorted(exact, key=lambda one: given[one] - exact[one])[: max(0, rest - sum(given.values()))]:
        given[folder] += 1
    return {folder: min(count, quotas.get(folder, given.get(folder, 0))) for folder, count in places.items()}


def draw(root: Path, session: WorkDB, sample: int, seed: int, quotas: dict[str, int], only: list[str]) -> int:
    """Add mutants to a session until it holds the sample; those that it holds already stay. Returns how many are new."""
    folders = {folder: paths for folder, paths in sources(root).items() if not only or any(fnmatch(folder, one) for one in only)}
    places = {folder: sum(len(_all_mutants(root, path)[1]) for path in paths) for folder, paths in folders.items()}
    known = {item.job_id: item for item in session.work_items}
    added: list[WorkItem] = []
    for folder, count in shares(places, sample, {name: n for name, n in quotas.items() if name in folders}).items():
        for place, drawn in zip(range(count), drawn_of(root, folder, folders[folder], seed), strict=False):
            if drawn.key not in known:
                added.append(_item(drawn, seed, place))
                known[drawn.key] = added[-1]
    session.add_work_items(added)
    return len(added)


def _item(drawn: Drawn, seed: int, place: int) -> WorkItem:
    line, column = drawn.position
    facts = {"seed": seed, "place": place, "changed": drawn.changed}
    spec = MutationSpec(drawn.path, drawn.operator, 0, (line, column), (line, column + 1), facts, None)
    return WorkItem.single(drawn.key, spec)


def find(root: Path, item: WorkItem) -> Drawn | None:
    """The mutant of a session's item in the sources as they are now; None if its lines are no longer there."""
    (spec,) = item.mutations
    path, changed = Path(spec.module_path).as_posix(), spec.operator_args["changed"]
    if not (root / path).exists():
        return None
    near = sorted(_all_mutants(root, path)[1].items(), key=lambda one: abs(one[0][0] - spec.start_pos[0]))
    removed = [line[1:] for line in changed.splitlines() if line.startswith("-")]
    lines = _all_mutants(root, path)[0].splitlines()
    for place, mutants in near:
        around = {line.strip() for line in lines[max(0, place[0] - 12) : place[0] + 12]}
        if all(line in around for line in removed):
            for mutant in mutants:
                if mutant.operator == spec.operator_name:
                    drawn = _drawn(root, path, place, mutant)
                    if drawn is not None and drawn.changed == changed:
                        return drawn
    return None
