"""The parser of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ...version import __version__
from .analysis_options import add_analysis_options
from .help_text import DESCRIPTION, epilog
from .readers import read_input

__all__ = ["build_parser", "parse"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and ends with exit code 2."""
        print(f"{self.prog}: error: {message} ({self.prog} --help lists the options)", file=sys.stderr)
        raise SystemExit(2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the checked arguments; ends with exit code 2, and one line on stderr, where one is wrong."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    names = [spec.name for spec in arguments.input if spec.name]
    if len(set(names)) < len(names):
        parser.error("argument --input: each name is given once")
    if len(arguments.c) > 1 and not all(isinstance(value, tuple) for value in arguments.c):
        parser.error("argument --c: give it once, or as LAYER=NUMBER each time")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``fxenorm-inspect``, with all its options."""
    parser = _Parser(
        prog="fxenorm-inspect",
        usage="%(prog)s [options] model",
        description=DESCRIPTION,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a Python file, file:name, package.module:name, torchvision:name, timm:name, or hf:folder")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=read_input,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input, as 2x3x32x32 or 2x128:int64; repeat it for further positional arguments; "
        "with a name a keyword argument, as mask=2x7:bool",
    )
    parser.add_argument("--seed", type=int, default=0, help="torch's seed before the model is built (default 0)")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--pairs", action="store_true", help="print each pair in a row of its own")
    shown.add_argument(
        "--expand", action="store_true", help="collapse and shorten nothing: all pairs, groups, places and reasons"
    )
    shown.add_argument("--json", action="store_true", help="print JSON instead of tables")
    shown.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    parser.add_argument("--version", action="version", version=f"fxenorm-inspect {__version__}")
    add_analysis_options(parser.add_argument_group("the analysis (as the arguments of fxenorm.analyze)"))
    return parser
