"""Turns the account of channel ends into a JSON-compatible dict and back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..symmetry.account import KINDS, AccountRow, ChannelAccount, EndShare, WeightSide

__all__ = ["account_from_dict", "account_to_dict"]


def account_to_dict(account: ChannelAccount) -> dict[str, Any]:
    """Returns numbers, rows and sides; each row a list of its fields in their order."""
    return {
        "total": account.total,
        "free": account.free,
        "uncounted": account.uncounted,
        "rows": [list(dataclasses.astuple(row)) for row in account.rows],
        "sides": [
            [side.parameter, side.side, side.scales, [list(dataclasses.astuple(share)) for share in side.shares]]
            for side in account.sides
        ],
    }


def account_from_dict(stored: Mapping[str, Any]) -> ChannelAccount:
    """Returns the account of a dict that `account_to_dict` made.

    Raises:
        ValueError: a number is no count, or the account does not add up.
    """
    rows = tuple(AccountRow(*row) for row in stored["rows"])
    # Plans that were stored by earlier versions have no sides.
    sides = tuple(_side(*side) for side in stored.get("sides", ()))
    account = ChannelAccount(stored["total"], stored["free"], stored["uncounted"], rows, sides)
    counts = [account.total, account.free, account.uncounted, *(row.count for row in account.rows)]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("the account of channel ends has counts that are no integers from 0 on")
    if any(row.kind not in KINDS for row in account.rows) or any(
        not isinstance(text, str) for row in account.rows for text in dataclasses.astuple(row)[2:]
    ):
        raise ValueError("the account of channel ends has rows of an unknown kind")
    if account.free + account.fixed() + account.tied != account.total:
        raise ValueError("the account of channel ends does not add up")
    if sides:
        _check_sides(account)
    return account


def _side(parameter: str, side: Any, scales: int, shares: Any) -> WeightSide:
    """Returns one side of a weight."""
    return WeightSide(parameter, side, scales, tuple(EndShare(*share) for share in shares))


def _check_sides(account: ChannelAccount) -> None:
    """Raises where the sides of the weights are not the account again."""
    found: Counter[int] = Counter()
    for side in account.sides:
        if not isinstance(side.parameter, str) or side.side not in ("input", "output") or type(side.scales) is not int:
            raise ValueError("the account of channel ends has a side of no weight")
        for share in side.shares:
            if any(type(number) is not int for number in dataclasses.astuple(share)) or share.tied_to >= len(account.sides):
                raise ValueError("the account of channel ends has shares that are no integers or point nowhere")
            found[share.row] += share.count
    if found != Counter({-1: account.free, **{place: row.count for place, row in enumerate(account.rows)}}):
        raise ValueError("the sides of the weights do not add up to the account of channel ends")
