"""The command behind tools/quantise.py."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from fxenorm import FxenormError

from .measuring import PREDICTED, SETTINGS, Kept, finish, runs_of
from .methods import METHODS
from .networks import NETS, SEEDS
from .quantisers import QUANTISERS, quantiser
from .tables import Results, report

ALL = (*SETTINGS, *PREDICTED)


def _parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/quantise.py",
        description="Trains two small nets, rescales them in ten ways, rounds them, prints tables with the spread over seeds.",
    )
    parser.add_argument("nets", nargs="*", metavar="net", help=f"{', '.join(NETS)}; none: both")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: 4 depthwise nets, 3 transformers)")
    parser.add_argument("--results", type=Path, default=Path("build/quantise/results.jsonl"), help="keeps finished runs")
    parser.add_argument("--networks", type=Path, default=Path("build/quantise"), help="keeps trained nets")
    parser.add_argument("--epochs", type=int, help="of training (default: 15 of the depthwise net, 40 of the transformer)")
    parser.add_argument("--settings", nargs="+", choices=list(ALL), default=list(ALL), help="bits to measure at")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="ways to rescale (default: all)")
    parser.add_argument(
        "--quantiser",
        choices=list(QUANTISERS),
        default="own",
        help="who rounds: fxenorm itself, or torchao where it is installed: pt2e (exported), torchao (quantize_, linear layers)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    unknown = [net for net in options.nets if net not in NETS]
    if unknown:
        print(f"tools/quantise.py: no net is called {unknown[0]!r}; there are {', '.join(NETS)}", file=sys.stderr)
        return 2
    # A start with one-sided groups holds some scales, and each plan says so.
    warnings.filterwarnings("ignore", category=UserWarning)
    kept, began = Kept(options.results), time.perf_counter()
    try:
        quantiser(options.quantiser)
        for net in options.nets or list(NETS):
            seeds = SEEDS[net] if options.seeds is None else tuple(range(options.seeds))
            runs = runs_of(net, seeds, options.settings, options.quantiser, options.methods)
            for run in finish(runs, kept, options.networks, options.epochs):
                now = time.perf_counter() - began
                print(f"{now:6.0f} s  {run.net} {run.start} {run.seed}: {run.method}, {run.setting}", file=sys.stderr)
            report(Results(net, seeds, kept, options.quantiser), print)
    except FxenormError as error:
        print(f"tools/quantise.py: {error}", file=sys.stderr)
        return 1
    return 0
