"""The parser of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ...version import __version__
from .analysis_options import add_analysis_options
from .completion import PrintCompletion
from .help_text import DESCRIPTION, epilog
from .readers import read_bits, read_count, read_input

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
    _check_together(arguments, parser)
    return arguments


def _check_together(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses options that mean nothing together."""
    if arguments.model is None and not arguments.operators:
        parser.error("the model is missing: name a Python file, file:name, or torchvision:name")
    if arguments.undo and not arguments.balance:
        parser.error("argument --undo: name the file to write, with --balance OUT")
    if arguments.balance and arguments.compare:
        parser.error("argument --compare: not together with --balance")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``fxenorm-inspect``, with all its options."""
    parser = _Parser(
        prog="fxenorm-inspect",
        usage="%(prog)s [options] model",
        description=DESCRIPTION,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", help="a Python file, file:name, package.module:name, or torchvision:, timm: or hf: and a name"
    )
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
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for the model: safetensors, their index.json or folder, or a state dict; no code of a pickle is run",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--pairs", action="store_true", help="print each pair in a row of its own")
    shown.add_argument(
        "--expand", action="store_true", help="collapse and shorten nothing: all pairs, groups, places and reasons"
    )
    shown.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="NAME",
        help="only why the channels of this layer are free, tied or fixed, with source lines; repeatable",
    )
    shown.add_argument("--groups", action="store_true", help="only the groups, each in a row of its own")
    shown.add_argument("--barriers", action="store_true", help="only the barriers, with all places")
    shown.add_argument(
        "--operators",
        action="store_true",
        help="only the model's operators, with the law that each obeys; without a model all operators that have one",
    )
    shown.add_argument(
        "--verify", action="store_true", help="compare outputs before and after random rescalings; exit code 1 if they differ"
    )
    shown.add_argument(
        "--strict", action="store_true", help="exit code 1 if an operator has no scale rule, or rescaling is not exact"
    )
    shown.add_argument(
        "--bits",
        type=read_bits,
        metavar="WEIGHTS/ACTIVATIONS[/PER]",
        help="predict the noise that rounding makes in the outputs on the example inputs, as 8/8, 4/8/channel, 4/-/128 "
        "(- stays in float); meant for real inputs, in the file's example_inputs",
    )
    shown.add_argument("--json", action="store_true", help="print JSON instead of tables")
    shown.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes this command, as for ~/.local/share/bash-completion/completions/fxenorm-inspect",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--balance",
        metavar="OUT",
        help="balance the --weights and write them in the same format, with the log-scales in OUT.log_scales.json",
    )
    files.add_argument(
        "--jobs",
        type=read_count,
        default=1,
        metavar="N",
        help="processes that share the work of --balance on hf:FOLDER, whose weights are read and written piece by piece",
    )
    files.add_argument("--undo", metavar="LOG_SCALES", help="with --balance: take these log-scales back in place of balancing")
    files.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="the distance of two files of weights, as they are and in canonical form; permutations of channels remain",
    )
    files.add_argument(
        "--html", metavar="FILE", help="write a report with pictures, tables and charts as one page that works offline"
    )
    files.add_argument("--svg", metavar="FILE", help="write the picture of layers and groups; with --expand each layer by itself")
    files.add_argument("--dot", metavar="FILE", help="write the pair graph for Graphviz")
    files.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--version", action="version", version=f"fxenorm-inspect {__version__}")
    add_analysis_options(parser.add_argument_group("the analysis (as the arguments of fxenorm.analyze)"))
    return parser
