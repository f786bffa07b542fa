"""`Configuration`: all that decides the result of one run, and the key under which the result is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from .methods.method import Method, told

VERSION = 1
"""To be raised where the same configuration would give another result than before."""


class StudyError(Exception):
    """Something that was asked for does not exist or cannot be done; the message says what to do."""


@dataclass(frozen=True)
class Configuration:
    """One run.

    Attributes:
        experiment: the network: a key of `networks.build.NETWORKS`.
        dataset: the name of the data.
        data: `data.task.Task.fingerprint` of the data that were really there.
        method: the arm.
        rate: the learning rate at the start.
        seed: of the weights, the batches and the augmentation.
        purpose: "tune": trains without the validation images and is scored on them; "report": trains on both and is scored on
            the test images; "released": trains without the validation images and is scored on the test images.
        batch: images in a batch.
        steps: number of steps; None: `epochs` decides.
        epochs: number of epochs; the last batch of an epoch is left out where it would be smaller.
        schedule: "linear": the rate falls to zero, by step where `steps` is given, else by epoch; "constant".
        momentum, weight_decay: of SGD; AdamW takes the second alone.
        decay_on: "all" parameters, the "matrices" of layers, or "none".
        decoupled: whether the decay of SGD is taken from the weights and not added to the gradient (AdamW: always).
        depth: number of linear layers of the fully connected network.
        width: its hidden width; of other networks, the factor on their numbers of channels.
        bias: whether layers have biases.
        start: a key of `starts.STARTS`.
        variant: a kind of the network, as its module says.
        dtype: "float32" or "float64".
    """

    experiment: str
    dataset: str
    data: str
    method: Method
    rate: float
    seed: int
    purpose: str = "tune"
    batch: int = 16
    steps: int | None = None
    epochs: int = 1
    schedule: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 1e-3
    decay_on: str = "all"
    decoupled: bool = False
    depth: int = 15
    width: float = 64
    bias: bool = True
    start: str = "he"
    variant: str = ""
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the method's included; what has its default is left out, so that a new attribute changes no key."""
        return told(self) | {"method": self.method.to_dict(), "version": VERSION}

    @property
    def key(self) -> str:
        """A hash of everything above."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def but(self, **changes: Any) -> Configuration:
        """The same with some attributes changed."""
        return dataclasses.replace(self, **changes)
