"""The options of the command; those of the release have its names."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from .data.load import DATASETS
from .methods import METHODS
from .networks.build import NETWORKS
from .presets import PRESETS
from .starts import STARTS

MODEL_TYPES = {"linear": "mlp", "conv": "conv"}
RESULTS = Path(__file__).resolve().parents[2] / "build" / "reproduce" / "results.jsonl"

DESCRIPTION = """Trains a network by several methods and prints a table with paired differences.

Without --lr, the learning rate of each method is chosen on validation data, as notebooks/study/README.md says: one cell
(for mlp: depth 15, batch 16, He), or with --study all cells. With --lr, all methods train at that rate for --epochs epochs,
as the released ENorm does; its command lines work as they are."""


def _positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _number(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/reproduce.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", nargs="?", choices=list(NETWORKS), help="the experiment; without it --model-type chooses")
    add("--model-type", choices=list(MODEL_TYPES), help="linear: mlp; conv: conv")
    add("--preset", choices=list(PRESETS), help="options of a known experiment; options beside it win")
    add(
        "--study", nargs="?", const="all", choices=("core", "star", "all"), help="all cells of the study on the digits, or a part"
    )
    add("--list", action="store_true", help="print experiments, methods, starts and presets, and stop")

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS, default="digits")
    data.add_argument("--data-path", type=Path, default=Path("data"), help="folder of image files (default: data)")
    data.add_argument("--download", action="store_true", help="fetch the image files into --data-path first")

    network = parser.add_argument_group("network; with --study, only cells of these")
    network.add_argument("--n-layers", type=_positive, nargs="+", help="linear layers of mlp (default: 15)")
    network.add_argument("--start", choices=list(STARTS), nargs="+", help="starting weights (default: he)")
    network.add_argument("-b", "--batch-size", type=_positive, nargs="+", help="images in a batch (default: 16, with --lr 256)")
    network.add_argument("--width", type=_number, help="hidden width of mlp; of others, a factor on the channels")
    network.add_argument(
        "--variant", default="", help="conv: released or average (its head); resnet18: learned or standard (shortcuts)"
    )
    network.add_argument("--no-batchnorm", action="store_true", help="with --lr: no BatchNorm, which the released networks have")

    training = parser.add_argument_group("training")
    training.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="arms; the first is compared to")
    training.add_argument(
        "--enorm",
        type=_number,
        metavar="C",
        help="with --lr: 0 trains plainly, else ENorm with this c, as released. In networks without BatchNorm each layer's norm "
        "grows by C over the one before: 1.2 cannot be trained at a depth of 30",
    )
    training.add_argument("--epochs", type=_positive, default=60, help="with --lr (default: 60)")
    training.add_argument("--steps", type=_positive, help="without --lr: steps of a run")
    training.add_argument("--lr", type=_number, help="one learning rate for all; none is chosen then")
    training.add_argument("--wd", "--weight-decay", dest="weight_decay", type=_number, default=1e-3)
    training.add_argument("--decay-on", choices=("all", "matrices", "none"), default="all", help="what decays")
    training.add_argument("--decoupled", action="store_true", help="decay beside the gradient, not in it (AdamW: always)")
    training.add_argument("--momentum", type=_number, default=0.9)
    training.add_argument("--schedule", choices=("linear", "constant"), default="linear", help="linear: the rate falls to 0")
    training.add_argument("--n-iter", type=_positive, help="runs that are reported (default: 10, with --lr 5)")
    training.add_argument("--tuning-seeds", type=_positive, default=4, help="runs by which a rate is chosen (default: 4)")
    training.add_argument("--dtype", choices=("float32", "float64"), default="float32")

    machine = parser.add_argument_group("machine and results")
    machine.add_argument("--jobs", type=_positive, default=1, help="processes that train side by side (default: 1)")
    machine.add_argument(
        "-j", "--workers", type=_positive, default=1, help="threads of each; data lie in memory and need no workers"
    )
    machine.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    machine.add_argument("-p", "--print-freq", type=int, default=0, help="print the loss every so many steps (default: never)")
    machine.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one a run; finished runs are not repeated")
    machine.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    machine.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the pictures there (needs matplotlib)")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; those of a preset come before what is written.

    Ends the program with status 2 and a message where they contradict one another.
    """
    parser = build_parser()
    first = parser.parse_args(arguments)
    options = parser.parse_args([*shlex.split(PRESETS[first.preset]), *arguments]) if first.preset else first
    options.experiment = options.name or MODEL_TYPES.get(options.model_type or "", "")
    wanted = MODEL_TYPES.get(options.model_type or "")
    if options.list:
        return options
    if not options.experiment:
        parser.error("say which experiment: a name, or --model-type")
    if wanted and options.name and wanted != options.name:
        parser.error(f"--model-type {options.model_type} is {wanted}, not {options.name}")
    if options.enorm is not None and options.lr is None:
        parser.error("--enorm goes with --lr; without it --methods names the arms")
    if options.enorm is not None and options.methods:
        parser.error("--enorm and --methods both say what to train: give one")
    if options.lr is not None and options.study:
        parser.error("--study chooses the learning rates: --lr has no place there")
    if options.study and (options.experiment != "mlp" or options.dataset != "digits" or options.methods):
        parser.error("--study is a fixed set of arms of mlp on the digits")
    if options.lr is not None and any(len(values or ()) > 1 for values in (options.n_layers, options.start, options.batch_size)):
        parser.error("with --lr, --n-layers, --start and --batch-size take one value")
    return options
