"""The console script ``fxenorm-inspect``: its exit code, and its errors in one line.

Only a run imports more than the parser: ``--help`` waits for nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import FxenormError
from .apart import answer_stream, one_line, run_apart
from .arguments.parser import parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 0, 2 after an error of the user's or the model's, 130 when interrupted.
    """
    arguments = parse(argv)
    if argv is not None:
        return _guarded(arguments, lasting=False)
    return run_apart(lambda: _guarded(arguments, lasting=True))


def _guarded(arguments: argparse.Namespace, lasting: bool) -> int:
    """Runs, and makes one line of every error; returns the exit code."""
    try:
        with answer_stream(lasting) as stream:
            from .run import run

            return run(arguments, stream)
    except KeyboardInterrupt:
        print("fxenorm-inspect: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: there is nobody to tell
        return 0
    except BaseException as error:  # the model's own code may raise anything anywhere, SystemExit among it
        if arguments.traceback:
            import traceback

            traceback.print_exc()
        print(f"fxenorm-inspect: error: {one_line(_told(error))}", file=sys.stderr)
        return 2


def _told(error: BaseException) -> str:
    """Returns the message of an error in the words of the command line."""
    message = str(error)
    if isinstance(error, FxenormError):
        from .wording import in_words_of_the_command

        return in_words_of_the_command(message)
    return f"the model's code raised {type(error).__name__}{': ' if message else ''}{message} (--traceback shows where)"


if __name__ == "__main__":
    sys.exit(main())
