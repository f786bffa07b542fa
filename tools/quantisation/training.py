"""Trains a net once for each seed and keeps it in a file."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .digits import digits
from .networks import EPOCHS, NETS

BATCH = 50


def trained(net: str, seed: int, folder: Path, epochs: int | None = None) -> nn.Module:
    """The net after training, in float64, BatchNorms folded: from its file where there is one."""
    path = folder / f"{net}-{seed}.pt"
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = NETS[net]()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            _train(model, net, seed, EPOCHS[net] if epochs is None else epochs)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
    return model.eval().folded().double()


def _train(model: nn.Module, net: str, seed: int, epochs: int) -> None:
    """Trains by Adam with a rate that falls to zero along a cosine."""
    data, random = digits(net), torch.Generator().manual_seed(seed)
    steps = epochs * (len(data.train) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 if net == "depthwise" else 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train), generator=random).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train[chosen]), data.train_classes[chosen]).backward()
            optimizer.step()
            schedule.step()
