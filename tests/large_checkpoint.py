"""Makes a checkpoint of 200 MB in a folder, balances it, and prints how much memory that took: "12 of 201 MB"."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import fxenorm


class Block(nn.Module):
    """A pre-norm block with a gate."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


WIDTH, INNER, DEPTH = 1024, 2048, 16


class Stack(nn.Module):
    """Blocks without an embedding, which would be most of so small a model."""

    def __init__(self, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, inner) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def peak() -> int:
    """Returns the most memory that this process has had at once, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def make(folder: Path) -> int:
    """Writes the checkpoint, a block a file; returns its bytes."""
    where = {}
    generator = torch.Generator().manual_seed(0)
    for number in range(DEPTH):
        state = {}
        for name, tensor in Block(WIDTH, INNER).state_dict().items():
            values = torch.randn(tensor.shape, generator=generator) + (tensor.ndim == 1)
            state[f"layers.{number}.{name}"] = values.to(torch.bfloat16)
        save_file(state, folder / f"model-{number}.safetensors")
        where.update(dict.fromkeys(state, f"model-{number}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def balance(depth: int, folder: Path, target: Path) -> None:
    """Balances a checkpoint."""
    with torch.device("meta"):
        model = Stack(WIDTH, INNER, depth).to(torch.bfloat16)
    inputs = torch.empty(2, 5, WIDTH, dtype=torch.bfloat16, device="meta")
    fxenorm.balance_checkpoint(folder, target, model, example_inputs=inputs, check="none")


def main(folder: Path) -> None:
    """Balances, and measures what the balance of all blocks takes beside the analysis of all of them."""
    (folder / "source").mkdir()
    size = make(folder / "source")
    with torch.device("meta"):
        model = Stack(WIDTH, INNER, DEPTH).to(torch.bfloat16)
    fxenorm.analyze(model, torch.empty(2, 5, WIDTH, dtype=torch.bfloat16, device="meta"))
    before = peak()
    balance(DEPTH, folder / "source", folder / "target")
    print(f"{(peak() - before) // 1_000_000} of {size // 1_000_000} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
