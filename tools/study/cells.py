"""The cells of the study on the digits: a core, and a star of single changes around one of its cells."""

from __future__ import annotations

from .configuration import Configuration
from .methods import METHODS, Method, Objective
from .protocol import Cell

CORE_METHODS = ("plain", "BatchNorm", "plan.step", "balanced once", "AdamW")
DEPTHS, BATCHES, STARTS = (15, 5, 30), (8, 64), ("he", "layers", "channels")
STEPS = {5: 300, 15: 500, 30: 600}
"""Steps of a run by depth, with batches below 64."""
STEPS_64 = {5: 200, 15: 300, 30: 400}
"""The same with batches of 64 or more."""
SAME_NETWORK = ("balanced once", "balanced once, from layers", "balanced once, from channels")
"""Arms that train one and the same network: their spread is the noise of the protocol."""
UNBALANCED = ("layers", "channels")
MOMENTUM_RULES = (
    "plan.step",
    "plain",
    "plan.step, momentum kept",
    "plan.step, momentum reset",
    "plan.step, momentum as displacement",
)


def base(dataset: str, data: str, experiment: str = "mlp", depth: int = 15, batch: int = 16) -> Configuration:
    """A run of the study; every cell changes some of it."""
    known = STEPS if batch < 64 else STEPS_64
    steps = known.get(depth, 500) if experiment == "mlp" else 500
    width = {"mlp": 64, "autoencoder": 1, "transformer": 32}.get(experiment, 1 / 8)
    return Configuration(experiment, dataset, data, METHODS["plain"], 0.0, 0, depth=depth, batch=batch, steps=steps, width=width)


def named(*names: str) -> tuple[Method, ...]:
    """The arms of some names."""
    return tuple(METHODS[name] for name in names)


def default(experiment: str, dataset: str, data: str) -> Cell:
    """The cell of an experiment that is run where nothing else is said: for `mlp` depth 15, batch 16, He.

    Its last rows train the network of a "balanced once" again.
    """
    names: tuple[str, ...] = (*CORE_METHODS, *SAME_NETWORK[1:])
    if experiment == "autoencoder":
        names = ("plain", "BatchNorm", "plan.step, c adaptive", "BatchNorm, plan.step affine", "AdamW", *SAME_NETWORK)
    if experiment == "resnet18":
        names = (*CORE_METHODS, SAME_NETWORK[2])
    if experiment == "transformer":
        names = ("AdamW", "AdamW, plan.step", "AdamW, plan.step, gains fixed")
        names = (*names, "AdamW, balanced once", "AdamW, balanced once, from channels")
    return Cell(base(dataset, data, experiment), named(*names))


def core(dataset: str, data: str) -> list[Cell]:
    """Five arms at every depth, batch and start."""
    return [
        Cell(base(dataset, data, depth=depth, batch=batch).but(start=start), named(*CORE_METHODS))
        for batch in BATCHES
        for start in STARTS
        for depth in DEPTHS
    ]


def star(dataset: str, data: str) -> list[Cell]:
    """Around depth 15 and batch 16 from He: all other arms, starts, momentum rules and ways of decay, and other networks."""
    centre = base(dataset, data)
    others = [method for method in METHODS.values() if "momentum" not in method.name and "gains" not in method.name]
    pair = named("plain", "plan.step")
    cells = [Cell(centre, tuple(others))]
    cells += [Cell(centre.but(start=start), named(*MOMENTUM_RULES), label="momentum rules") for start in UNBALANCED]
    objectives = tuple(method for method in others if isinstance(method, Objective))
    for start in ("layers", "channels", "wild", "default"):
        arms = named(*CORE_METHODS) + (objectives if start in ("layers", "default") else ())
        cells.append(Cell(centre.but(start=start), arms))
    cells += [Cell(centre.but(decay_on=on), pair) for on in ("matrices", "none")]
    cells += [Cell(centre.but(decoupled=True), pair), Cell(centre.but(batch=32), named(*CORE_METHODS))]
    cells += [default(experiment, dataset, data) for experiment in ("autoencoder", "transformer")]
    return cells
