"""The errors that fxenorm raises on purpose, one class a reason, and its warning."""

from __future__ import annotations

import sys
import warnings

__all__ = [
    "AgreementError",
    "BindError",
    "CheckpointError",
    "ExampleInputsError",
    "FxenormError",
    "FxenormWarning",
    "MissingLibraryError",
    "MissingTorchError",
    "ModelFileError",
    "OptimizerError",
    "OptionError",
    "RescaleError",
    "StaleError",
    "TraceError",
    "UnsupportedOperatorError",
]

_PACKAGE = __name__.partition(".")[0] + "."


class FxenormError(Exception):
    """Base class of every error that fxenorm raises on purpose.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> try:
        ...     fxenorm.analyze(nn.Linear(4, 2), p=-1)
        ... except fxenorm.FxenormError as error:
        ...     print(type(error).__name__)
        OptionError
    """


class OptionError(FxenormError, ValueError):
    """An argument has a value or a type that is not one of the documented ones."""


class ExampleInputsError(FxenormError, ValueError):
    """The model does not run on the given example inputs, or none that run could be guessed."""


class TraceError(FxenormError, RuntimeError):
    """The model could not be turned into a graph by any tracer."""


class UnsupportedOperatorError(FxenormError, NotImplementedError):
    """Operators without a scale rule were met and ``on_unknown="error"`` was asked for."""


class OptimizerError(FxenormError, TypeError):
    """The optimizer's state cannot follow a rescaling exactly, or does not belong to the model."""


class RescaleError(FxenormError, ValueError):
    """The given log-scales have a wrong shape, are not finite, or would overflow a weight."""


class AgreementError(RescaleError):
    """Processes that have to rescale alike are about to do different things, or one of them has met an error."""


class BindError(FxenormError, ValueError):
    """A plan does not fit a module: parameter names, shapes or the stored format differ."""


class StaleError(FxenormError, ValueError):
    """Observations belong to other weights than the model has now, or to another plan."""


class CheckpointError(FxenormError, ValueError):
    """A checkpoint on disk cannot be read, does not belong to the model, or the place for the new one is taken."""


class MissingTorchError(FxenormError, ImportError):
    """PyTorch is not installed, and a name was used that needs it."""


class MissingLibraryError(FxenormError, ImportError):
    """A library is not installed that one call needs and the rest does without; the message names the extra that installs it."""


class ModelFileError(FxenormError, ValueError):
    """``fxenorm-inspect`` could not find, import or build the model that it was asked for."""


class FxenormWarning(UserWarning):
    """Something was lost or left inexact; said once, with what and why.

    Example:
        >>> import fxenorm, warnings
        >>> from torch import nn
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     plan = fxenorm.analyze(nn.Linear(4, 2), p=float("inf"), c=2.0)
        >>> print(caught[0].message)
        layer weights play no part at p=inf: c is ignored
    """


def warn_user(message: str) -> None:
    """Gives a `FxenormWarning` at the user's own line: the nearest one outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FxenormWarning, stacklevel=level)
