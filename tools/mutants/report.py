"""What a campaign found: a table by folder and each survivor with its diff."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult
from equivalents import EQUIVALENT
from session import folder_of
from table import WIDER

OF_THE_ROW, OF_THE_WIDER_SET, BY_LIMIT, EQUAL, SURVIVED = "own tests", "wider set", "time limit", "equivalent", "survived"


@dataclass(frozen=True)
class Judged:
    """One mutant with its verdict."""

    folder: str
    path: str
    line: int
    changed: str
    verdict: str
    output: str

    @property
    def key(self) -> tuple[str, str]:
        """Names it in `EQUIVALENT`."""
        return self.path, self.changed


def judged(item: WorkItem, result: WorkResult) -> Judged | None:
    """Read a result of the session; None for a mutant whose lines were gone."""
    if result.test_outcome is None:
        return None
    (spec,) = item.mutations
    path, changed = Path(spec.module_path).as_posix(), spec.operator_args["changed"]
    noticed_by, _, said = (result.output or "").partition("\n")
    if result.test_outcome == TestOutcome.SURVIVED:
        verdict = EQUAL if (path, changed) in EQUIVALENT else SURVIVED
    elif said.startswith("longer than"):
        verdict = BY_LIMIT
    else:
        verdict = OF_THE_WIDER_SET if noticed_by == OF_THE_WIDER_SET or noticed_by in WIDER else OF_THE_ROW
    return Judged(folder_of(path), path, spec.start_pos[0], changed, verdict, result.output or "")


def all_judged(session: WorkDB) -> list[Judged]:
    """Every verdict of a session, by path and line."""
    found = [judged(item, result) for item, result in session.completed_work_items]
    return sorted((one for one in found if one is not None), key=lambda one: (one.path, one.line))


def table(found: list[Judged]) -> str:
    """The table by folder, as Markdown."""
    kinds = [OF_THE_ROW, OF_THE_WIDER_SET, BY_LIMIT, EQUAL, SURVIVED]
    lines = ["| folder | mutants | " + " | ".join(kinds) + " | noticed |", "|---|" + "---:|" * (len(kinds) + 2)]
    folders = sorted({one.folder for one in found})
    for folder in [*folders, "all"]:
        counts = Counter(one.verdict for one in found if folder in (one.folder, "all"))
        total = sum(counts.values())
        noticed = total - counts[SURVIVED] - counts[EQUAL]
        rate = 100.0 * noticed / max(1, total - counts[EQUAL])
        lines.append(f"| {folder} | {total} | " + " | ".join(str(counts[kind]) for kind in kinds) + f" | {rate:.0f} % |")
    return "\n".join(lines)


def survivors(found: list[Judged]) -> str:
    """Each survivor with its diff; those set aside, with the reason."""
    lines = []
    for one in found:
        if one.verdict == SURVIVED:
            lines.append(f"{one.path}:{one.line} ({one.output.strip() or 'no test of the table reaches it'})\n{one.changed}\n")
    for one in found:
        if one.verdict == EQUAL:
            lines.append(f"set aside: {one.path}:{one.line}: {EQUIVALENT[one.key]}\n{one.changed}\n")
    return "\n".join(lines)
