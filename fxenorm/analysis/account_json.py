"""Turns the account of channel ends into a JSON-compatible dict and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..symmetry.account import KINDS, AccountRow, ChannelAccount

__all__ = ["account_from_dict", "account_to_dict"]


def account_to_dict(account: ChannelAccount) -> dict[str, Any]:
    """Returns numbers and rows; each row a list of its fields in their order."""
    rows = [list(dataclasses.astuple(row)) for row in account.rows]
    return {"total": account.total, "free": account.free, "uncounted": account.uncounted, "rows": rows}


def account_from_dict(stored: Mapping[str, Any]) -> ChannelAccount:
    """Returns the account of a dict that `account_to_dict` made.

    Raises:
        ValueError: a number is no count, or the account does not add up.
    """
    account = ChannelAccount(
        stored["total"], stored["free"], stored["uncounted"], tuple(AccountRow(*row) for row in stored["rows"])
    )
    counts = [account.total, account.free, account.uncounted, *(row.count for row in account.rows)]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("the account of channel ends has counts that are no integers from 0 on")
    if any(row.kind not in KINDS for row in account.rows) or any(
        not isinstance(text, str) for row in account.rows for text in dataclasses.astuple(row)[2:]
    ):
        raise ValueError("the account of channel ends has rows of an unknown kind")
    if account.free + account.fixed() + account.tied != account.total:
        raise ValueError("the account of channel ends does not add up")
    return account
