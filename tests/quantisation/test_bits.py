"""`fxenorm.Bits`: a value that tells of each layer its bits, and of each weight which entries share a range."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fxenorm
from fxenorm import Bits
from fxenorm.errors import OptionError


def test_it_is_a_value_that_prints_as_it_is_written() -> None:
    bits = Bits(4, None, per=32, layers={"head": None, "body.*": Bits(6)}, symmetric=True)
    assert eval(repr(bits)) == bits == pickle.loads(pickle.dumps(bits)) == copy.deepcopy(bits)
    assert hash(bits) == hash(copy.copy(bits)) and repr(Bits()) == "Bits()" and bits != Bits(4, None, per=32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bits.weights = 8  # type: ignore[misc]
    given: dict[str, Any] = {"head": None}
    kept = Bits(layers=given)
    given["body"] = None
    assert kept.of("body") is not None


@pytest.mark.parametrize(
    "given",
    [
        {"weights": 1},
        {"weights": 25},
        {"weights": 8.0},
        {"weights": True},
        {"weights": "8"},
        {"activations": 0},
        {"per": "row"},
        {"per": 0},
        {"per": True},
        {"per": None},
        {"layers": ["head"]},
        {"layers": None},
        {"layers": {1: None}},
        {"layers": {"head": 4}},
        {"layers": {"head": Bits(layers={"head": None})}},
        {"symmetric": 1},
    ],
    ids=str,
)
def test_values_that_are_none_of_the_documented_ones_raise_in_one_line(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        Bits(**given)
    assert next(iter(given)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("head", None),
        ("head.inner", None),
        ("a.head", Bits(4)),
        ("a", Bits(4)),
        ("b", Bits(8)),
        ("free", None),
        ("", Bits(8)),
    ],
)
def test_the_first_pattern_on_a_layer_or_a_module_that_it_is_in_counts(layer: str, expected: Bits | None) -> None:
    bits = Bits(layers={"head": None, "free": Bits(None, None), "a*": Bits(4), "*.head": None})
    assert bits.of(layer) == expected


def test_a_pattern_that_fits_no_layer_is_told() -> None:
    Bits(layers={"a": None, "*.c": None}).check(["a.b", "d.c"])
    with pytest.raises(OptionError, match=r"'haed'.*none of the 2 .*a.b, head"):
        Bits(layers={"haed": None}).check(["a.b", "head"])


@pytest.mark.parametrize("bits", [2, 4, 8, 24])
def test_levels_are_the_largest_numbers_of_that_many_bits(bits: int) -> None:
    """Signed: as many below 0 as above, so that one number of 2 ** bits is left out."""
    made = Bits(bits, bits)
    assert made.weight_levels is not None and 2 * made.weight_levels + 1 == 2**bits - 1
    assert made.activation_levels(True) == 2**bits - 1 and made.activation_levels(False) == made.weight_levels
    assert Bits(bits, bits, symmetric=True).activation_levels(True) == made.weight_levels
    assert Bits(None, None).weight_levels is None and Bits(None, None).activation_levels(True) is None


def parts(bits: Bits, shape: tuple[int, ...], **given: int) -> list[set[int]]:
    """The sets of entries, by flat number, that share a range."""
    ids, count = bits.weight_ranges(shape, **given)
    assert ids.dtype == torch.int64 and ids.ndim == len(shape)
    spread: Tensor = ids.expand(shape).reshape(-1)
    assert set(spread.tolist()) == set(range(count))
    return [set((spread == number).nonzero().reshape(-1).tolist()) for number in range(count)]


def test_entries_that_share_a_range_are_those_of_a_tensor_a_channel_or_a_group_of_inputs() -> None:
    shape = (2, 5, 3)
    every = torch.arange(30).reshape(shape)
    assert parts(Bits(), shape) == [set(range(30))]
    assert parts(Bits(per="channel"), shape) == [set(every[row].reshape(-1).tolist()) for row in range(2)]
    wanted = [set(every[row, a:b].reshape(-1).tolist()) for row in range(2) for a, b in ((0, 2), (2, 4), (4, 5))]
    assert parts(Bits(per=2), shape) == wanted
    assert parts(Bits(per=100), shape) == parts(Bits(per="channel"), shape)
    assert parts(Bits(per="channel"), (5, 2), output=1, input=0) == [
        set(torch.arange(10).reshape(5, 2)[:, k].tolist()) for k in (0, 1)
    ]


@pytest.mark.parametrize("per", ["channel", 1, 2])
def test_groups_of_a_transposed_convolution_have_output_channels_of_their_own(per: Any) -> None:
    """Output channel (group, k) reads the inputs of its group: it is that of a convolution of each group alone."""
    shape, groups = (6, 2, 3), 2
    every = torch.arange(36).reshape(shape)
    alone = [
        set(every[part * 3 :][:3].reshape(-1)[list(one)].tolist())
        for part in (0, 1)
        for one in parts(Bits(per=per), (3, 2, 3), output=1, input=0)
    ]
    assert sorted(map(sorted, parts(Bits(per=per), shape, output=1, input=0, groups=groups))) == sorted(map(sorted, alone))


def test_it_is_a_public_name() -> None:
    assert fxenorm.Bits is Bits and "Bits" in fxenorm.__all__
