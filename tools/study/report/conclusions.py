"""The conclusions that the protocol allows: a difference in score that is one at two of three depths, or none."""

from __future__ import annotations

from collections.abc import Sequence

from .summary import Row, noise

DEPTHS_NEEDED = 2


def conclusions(section_rows: Sequence[Sequence[Row]]) -> list[str]:
    """One line for each arm, start and batch that was scored at three depths or more.

    An arm is better or worse than the first where, at two depths at least, the interval of the paired difference leaves out 0 on
    that side and the difference is larger than the spread of the A/A rows there. A depth that says the opposite is named.
    """
    found: dict[tuple[str, int, str], list[tuple[int, int, Row]]] = {}
    for rows in section_rows:
        least = noise(rows) or 0.0
        for row in rows:
            base = row.cell.base
            if row.score is None or base.experiment != "mlp":
                continue
            sign = 0
            if row.score.leaves_out_zero and abs(row.score.mean) > least:
                sign = 1 if row.score.mean > 0 else -1
            found.setdefault((row.start, base.batch, row.method.name), []).append((base.depth, sign, row))
    lines = []
    for (start, batch, name), depths in found.items():
        if len({depth for depth, _, _ in depths}) < 3:
            continue
        verdict = "no conclusion"
        for sign, word, other in ((1, "better", "worse"), (-1, "worse", "better")):
            at = sorted(depth for depth, found_sign, _ in depths if found_sign == sign)
            against = sorted(depth for depth, found_sign, _ in depths if found_sign == -sign)
            if len(at) >= DEPTHS_NEEDED:
                verdict = f"{word} (at depths {', '.join(map(str, at))})"
                verdict += f", but {other} at {', '.join(map(str, against))}" if against else ""
        numbers = "; ".join(
            f"{depth}: {row.score.text(2)}" for depth, _, row in sorted(depths, key=lambda one: one[0]) if row.score
        )
        lines.append(f"start {start}, batch {batch}: {name} against {depths[0][2].cell.methods[0].name}: {verdict} [{numbers}]")
    return lines
