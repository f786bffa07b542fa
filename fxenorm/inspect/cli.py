"""The console script ``fxenorm-inspect``: its arguments, its exit code, its errors in one line.

Only a run imports more than the parser: ``--help`` waits for nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import FxenormError, FxenormWarning, MissingTorchError
from ..version import __version__
from .apart import answer_stream, one_line, printable, run_apart
from .glossary import glossary_lines

if TYPE_CHECKING:
    from .input_spec import InputSpec

__all__ = ["main"]

_DESCRIPTION = "Show which channels of a PyTorch model can be rescaled without changing its function, and how balanced they are."
_EPILOG = """\
the model:
  model.py               the file's module-level `model`; else a function without required arguments that
                         returns an nn.Module, or the only nn.Module class that can be built without arguments
  model.py:name          the module, function or class called `name`
  torchvision:resnet18   a model of torchvision with random weights (nothing is downloaded)

A module-level `example_inputs` (a tensor, a tuple, or a dict of keyword arguments) and `example_kwargs` of the file are
used unless --input is given; without any, inputs are guessed from the first layers.

Groups of equal structure share a row: "layers.{0..31}.up -> .down" with "32 × 64" channels stands for 32 groups, and
".down" is in the module of "up". --expand prints all by themselves.

exit code: 0; 2 after an error; 130 when interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 0, 2 after an error of the user's or the model's, 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    if argv is not None:
        return _guarded(arguments, lasting=False)
    return run_apart(lambda: _guarded(arguments, lasting=True))


def _guarded(arguments: argparse.Namespace, lasting: bool) -> int:
    """Runs, and makes one line of every error; returns the exit code."""
    try:
        with answer_stream(lasting) as stream:
            _run(arguments, stream)
        return 0
    except KeyboardInterrupt:
        print("fxenorm-inspect: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: there is nobody to tell
        return 0
    except BaseException as error:  # the model's own code may raise anything anywhere, SystemExit among it
        message = str(error)
        if not isinstance(error, FxenormError):
            message = (
                f"the model's code raised {type(error).__name__}{': ' if message else ''}{message} (--traceback shows where)"
            )
        if arguments.traceback:
            import traceback

            traceback.print_exc()
        print(f"fxenorm-inspect: error: {one_line(message)}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, stream: TextIO) -> None:
    """Loads the model, analyses it, and prints the answer."""
    from .load import check_target, load
    from .stages import Stages

    check_target(arguments.model)
    with Stages() as stages:
        stages.begin("importing torch")
        analyze_with, kind = _analysis()
        from .report import report
        from .tables import make_console, show

        stages.begin(f"building {printable(arguments.model)}")
        loaded = load(arguments.model, arguments.input, arguments.seed)
        with _own_warnings():
            options = kind(**_options(arguments))
            plan = analyze_with(loaded.model, options, loaded.example_inputs, loaded.example_kwargs, stages.begin)
            stages.begin("measuring the weights")
            answer = report(plan, arguments.model)
    if arguments.json:
        import json

        print(json.dumps(answer, indent=2, allow_nan=False), file=stream)
    else:
        show(printable(answer), make_console(stream), expand=arguments.expand, pairs=arguments.pairs)


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Shows fxenorm's warnings in the form of its errors; others as they come."""
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FxenormWarning):
                print(f"fxenorm-inspect: warning: {one_line(str(message))}", file=sys.stderr)
            else:
                show_other(message, category, *place, **more)

        warnings.simplefilter("always", FxenormWarning)
        warnings.showwarning = show
        yield


def _analysis() -> tuple[Any, Any]:
    """Imports torch, the slow part of every run, and the analysis; raises a MissingTorchError where there is no torch."""
    try:
        from ..analysis.options import Options
        from ..plan.analyze import analyze_with
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingTorchError("fxenorm.analyze needs PyTorch, which is not installed: pip install torch") from None
    return analyze_with, Options


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `analyze` that the command line knows."""
    names = ("p", "c", "batchnorm", "biases", "modes", "balance_last", "on_unknown")
    return {
        **{name: getattr(arguments, name) for name in names},
        "exclude": tuple(arguments.exclude),
        "outputs": tuple(arguments.outputs) or None,
        "approximate": tuple(arguments.approximate),
    }


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fxenorm-inspect",
        usage="%(prog)s [options] model",
        description=_DESCRIPTION,
        epilog="\n".join([_EPILOG, "words:", *glossary_lines()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a Python file, file:name, or torchvision:name")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=_input,
        metavar="SHAPE[:DTYPE]",
        help="an example input, as 2x3x32x32 or 2x128:int64; repeat it for further positional arguments",
    )
    parser.add_argument("--p", type=_p, default=2.0, metavar="P", help="the norm's exponent: a number > 0, or inf (default 2)")
    parser.add_argument("--c", type=_c, default=1.0, metavar="C", help="layer weights: a number > 0, or adaptive (default 1)")
    parser.add_argument(
        "--batchnorm", choices=("affine", "folded", "frozen", "skip"), default="affine", help="default %(default)s"
    )
    parser.add_argument("--biases", choices=("scale", "count", "skip"), default="scale", help="default %(default)s")
    parser.add_argument("--modes", choices=("both", "train", "eval"), default="both", help="default %(default)s")
    parser.add_argument(
        "--balance-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether groups that feed the last layers may move (default: yes)",
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="parameters or modules to hold, as 'head*'; repeatable"
    )
    parser.add_argument(
        "--outputs",
        action="append",
        default=[],
        metavar="PATTERN",
        help="outputs to preserve, as logits or 'boxes.*', in place of all but caches; repeatable",
    )
    parser.add_argument(
        "--approximate",
        action="append",
        default=[],
        metavar="OPERATOR",
        help="activations to treat as homogeneous though they are not, as relu6; repeatable",
    )
    parser.add_argument(
        "--on-unknown", choices=("barrier", "error"), default="barrier", help="for operators without a scale rule"
    )
    parser.add_argument("--seed", type=int, default=0, help="torch's seed before the model is built (default 0)")
    parser.add_argument("--pairs", action="store_true", help="print each pair in a row of its own")
    parser.add_argument(
        "--expand", action="store_true", help="collapse and shorten nothing: all pairs, groups, places and reasons"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    parser.add_argument("--version", action="version", version=f"fxenorm-inspect {__version__}")
    return parser


def _input(text: str) -> InputSpec:
    """Reads ``--input``, with argparse's kind of error."""
    from .input_spec import parse_input

    try:
        return parse_input(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _p(text: str) -> float:
    """Reads ``--p``, with argparse's kind of error."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if value > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0, or inf")


def _c(text: str) -> float | str:
    """Reads ``--c``, with argparse's kind of error."""
    if text == "adaptive":
        return text
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0, or adaptive")


if __name__ == "__main__":
    sys.exit(main())
