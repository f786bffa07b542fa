"""Options that make up a known experiment: those of the paper, and the four commands of the release's README."""

from __future__ import annotations

_MLP = "--dataset cifar10 --model-type linear --n-layers 15 --epochs 60 --lr 0.1 --weight-decay 1e-3 --momentum 0 --n-iter 5"
_CONV = "--dataset cifar10 --model-type conv --epochs 128 --lr 0.05 --weight-decay 1e-3 --momentum 0.9 --n-iter 5"

PRESETS: dict[str, str] = {
    "paper-mlp": f"{_MLP} --enorm 1.2 --batch-size 256",
    "paper-conv": f"{_CONV} --enorm 1.1 --batch-size 256",
    "released-mlp-off": f"{_MLP} --enorm 0",
    "released-mlp": f"{_MLP} --enorm 1.2",
    "released-conv-off": f"{_CONV} --enorm 0",
    "released-conv": f"{_CONV} --enorm 1.1",
}
"""Command lines by name; what is written beside --preset comes after them and wins."""
