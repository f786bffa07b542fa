"""The account of channel ends held against the exponents, which are found on another way."""

from __future__ import annotations

import numpy as np

from fxenorm.symmetry.symmetry import Symmetry


def counted_rank(symmetry: Symmetry) -> int:
    """Number of independent ways in which the scales move the weights that are counted."""
    count = symmetry.num_scales
    blocks = [np.zeros((1, count))]
    for name, terms in symmetry.exponents.items():
        if symmetry.roles.get(name) in ("weight", "gamma"):
            rows = np.zeros((*symmetry.shapes[name], count + 1))
            for coefficient, ids in terms:
                rows += coefficient * np.eye(count + 1)[ids]
            blocks.append(np.unique(rows.reshape(-1, count + 1)[:, :-1], axis=0))
    return int(np.linalg.matrix_rank(np.concatenate(blocks))) if count else 0


def assert_adds_up(symmetry: Symmetry) -> None:
    """Free is the rank of the exponents; what equations fixed and tied away is all the rest."""
    account = symmetry.account
    assert account is not None
    assert account.free == counted_rank(symmetry) == symmetry.num_scales - account.uncounted
    kinds = {kind: sum(row.count for row in account.rows if row.kind == kind) for kind in {row.kind for row in account.rows}}
    assert set(kinds) <= {"input", "output", "barrier", "option", "tied"} and all(row.count > 0 for row in account.rows)
    assert account.free + sum(kinds.values()) == account.total
    assert all(row.operator for row in account.rows)
    assert all(row.reason for row in account.rows if row.kind == "barrier"), "a barrier says why"
    assert not any(row.reason for row in account.rows if row.kind == "tied" and row.node), "a tie of nodes needs none"
    assert_sides_add_up(symmetry)


def assert_sides_add_up(symmetry: Symmetry) -> None:
    """The ends by weight are those of the account, row by row, and a side has no more scales than ends that move."""
    account = symmetry.account
    assert account is not None
    found = dict.fromkeys(range(-1, len(account.rows)), 0)
    for side in account.sides:
        for share in side.shares:
            found[share.row] += share.count
        moving = sum(share.count for share in side.shares if share.row < 0 or account.rows[share.row].kind == "tied")
        free = sum(share.count for share in side.shares if share.row < 0)
        assert free <= side.scales <= moving <= side.total and (side.scales > 0) == (moving > 0)
    assert found == {-1: account.free, **{place: row.count for place, row in enumerate(account.rows)}}
