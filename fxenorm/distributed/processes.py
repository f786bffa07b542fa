"""The processes that have to hear of an error in one of them: one, which tells itself, or many."""

from __future__ import annotations

import abc

__all__ = ["OneProcess", "Processes"]


class Processes(abc.ABC):
    """The processes that share one model.

    Attributes:
        is_alone: whether this one is alone, and there is nobody to tell.
    """

    is_alone: bool

    @abc.abstractmethod
    def tell(self, error: BaseException | None, message: str) -> None:
        """Raises on every process where any has an error: its own there, and an AgreementError on the others."""


class OneProcess(Processes):
    """The only process of a model."""

    is_alone = True

    def tell(self, error: BaseException | None, message: str) -> None:
        """Raises the error, if there is one."""
        if error is not None:
            raise error
