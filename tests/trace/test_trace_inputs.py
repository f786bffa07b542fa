"""Example inputs: given, guessed, on the meta device, wrong; and models whose outputs or inputs are special."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fxenorm.errors import ExampleInputsError, TraceError
from fxenorm.trace import TracedModel, trace_model
from fxenorm.trace.guess import candidates


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def input_values(traced: TracedModel) -> list[torch.Tensor]:
    nodes = [node for node in traced.graph.nodes if traced.placeholders.get(node.name, None) is not None]
    return [node.meta["val"] for node in nodes if traced.placeholders[node.name].kind == "input"]


class Two(nn.Module):
    """A picture and a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.convolution = nn.Embedding(9, 6), nn.Conv2d(3, 6, 3)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.convolution(image).mean((2, 3)) + self.embedding(tokens).mean(1)


class Pictures(nn.Module):
    """Takes a list of pictures of any size, as detection models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.layer(image) for image in images]


class Unpacks(nn.Module):
    """Wants four axes though its first layer takes vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, _, _ = x.shape
        return self.layer(x.reshape(batch, -1))


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, *, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(first if second is None else first + second)


class Cache:
    """A key-value cache: no container that torch knows."""

    def __init__(self) -> None:
        self.layers: list[dict[str, torch.Tensor]] = []


class LanguageModel(nn.Module):
    """Names its main input and returns a cache, as Hugging Face's models do."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, input_ids: torch.Tensor | None = None, labels: torch.Tensor | None = None, **other: Any) -> dict[str, Any]:
        if input_ids is None:
            raise ValueError("input_ids is needed")
        cache, x = Cache(), self.embedding(input_ids)
        cache.layers.append({"keys": x * 2})
        return {"logits": self.head(x), "cache": cache, "length": 3, "nothing": None}


LENET = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 10))


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), [(2, 3, 224, 224)]),
        (LENET, [(2, 1, 32, 32)]),
        (nn.Sequential(nn.Conv1d(5, 4, 3)), [(2, 5, 128)]),
        (nn.Sequential(nn.Conv3d(1, 2, 3)), [(2, 1, 16, 112, 112)]),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), [(2, 784)]),
        (Unpacks(), [(2, 3, 4, 4)]),
        (nn.LSTM(3, 4, batch_first=True), [(2, 16, 3)]),
        (nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)), [(2, 16)]),
        (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)]),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), [(2, 3, 224, 224)]),
        (Two(), [(2, 3, 224, 224), (2, 16)]),
        (Pictures(), [(3, 224, 224)]),
        (KeywordOnly(), [(2, 5)]),
        (LanguageModel(), [(2, 16)]),
    ],
)
def test_guesses(model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    traced = trace_model(model, modes="eval")[0]
    assert [tuple(value.shape) for value in input_values(traced)] == shapes
    assert all(value.is_floating_point() or "mbedding" in str(model) for value in input_values(traced))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_guesses_take_the_dtype_and_device_of_the_model(dtype: torch.dtype) -> None:
    (traced,) = trace_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(dtype))
    assert input_values(traced)[0].dtype == dtype
    (traced,) = trace_model(nn.Linear(3, 4, device="meta", dtype=dtype))
    assert input_values(traced)[0].device.type == "meta" and input_values(traced)[0].dtype == dtype


def test_guesses_are_lazy_and_end() -> None:
    ladder = list(candidates(nn.Linear(4, 4, device="meta"), {}))
    assert 1 < len(ladder) < 50 and len({str(inputs) for inputs in ladder}) == len(ladder)


def test_outputs_of_any_kind_become_tensors() -> None:
    (traced,) = trace_model(LanguageModel())
    assert traced.tracer == "export"
    assert [str(node.target) for node in traced.graph.output_node().args[0]] == ["aten.linear.default", "aten.mul.Tensor"]


@pytest.mark.parametrize(
    "given",
    [
        {"example_inputs": torch.ones(3, 5)},
        {"example_inputs": (torch.ones(3, 5),)},
        {"example_inputs": [torch.ones(3, 5)]},
        {"example_inputs": {"x": torch.ones(3, 5)}},
        {"example_inputs": (), "example_kwargs": {"x": torch.ones(3, 5)}},
        {"example_kwargs": {"x": torch.ones(3, 5)}},
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_given_inputs(given: dict[str, Any], device: str) -> None:
    class Plain(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    (traced,) = trace_model(Plain(5, 2, device=device), **given)
    assert [tuple(value.shape) for value in input_values(traced)] == [(3, 5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"example_inputs": 3}, "tuple of positional arguments.*got int"),
        ({"example_inputs": "x"}, "got str"),
        ({"example_kwargs": [1]}, "dict of keyword arguments, got list"),
        ({"example_inputs": {"x": 1}, "example_kwargs": {"x": 1}}, "x is given both"),
        ({"example_inputs": torch.ones(2, 4)}, r"float32\[2, 4\].*eval mode: RuntimeError"),
        ({"example_inputs": torch.ones(2, 3, dtype=torch.int64)}, r"int64\[2, 3\]"),
        ({"example_inputs": (torch.ones(2, 3), torch.ones(1))}, "TypeError.*takes 2 positional arguments"),
        ({"example_inputs": (2, 3)}, r"runs on: did you mean torch\.randn\(2, 3\)\?$"),
        ({"example_inputs": {"y": torch.ones(2, 3)}}, r"a dict is taken as keyword .*, pass \(\{\.\.\.\},\)\.$"),
        ({"example_inputs": torch.ones(2, 4)}, r"that the model runs on\.$"),
        ({"example_inputs": {"y": torch.ones(2, 3)}}, "TypeError"),
    ],
)
def test_wrong_inputs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExampleInputsError, match=message):
        trace_model(nn.Linear(3, 3), **given)


def test_no_guess_runs() -> None:
    class Picky(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("a forward pass of its own mind")

    with pytest.raises(ExampleInputsError) as caught:
        trace_model(Picky(3, 3))
    text = str(caught.value)
    assert "(float32[2, 3])" in text and "ValueError: a forward pass of its own mind (test_trace_inputs.py:" in text
    assert text.count("a forward pass of its own mind") == 1  # inputs that fail for the same reason are told together
    assert "example_inputs" in text and "Picky" in text


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y * 2 if y.abs().sum() >= 0 else y


def test_meta_models() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(222, 100_000, bias=False)).to("meta")
    traced = trace_model(model)
    assert [item.mode for item in traced] == ["eval", "train"]
    assert all(item.value is None or item.value.is_meta for one in traced for item in one.placeholders.values())
    for inputs in (None, torch.ones(2, 4)):
        with pytest.raises(TraceError, match="meta device"):
            trace_model(DataDependent().to("meta"), inputs)
    with pytest.raises(ExampleInputsError, match=r"float32\[2, 5\]"):
        trace_model(DataDependent().to("meta"), torch.ones(2, 5))


def test_a_batch_of_one_is_repeated_for_train_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    evaluated, trained = trace_model(model, torch.ones(1, 4))
    assert input_values(evaluated)[0].shape[0] == 1 and input_values(trained)[0].shape[0] == 2


def test_both_tracers_fail() -> None:
    class Hopeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.Parameter(self.layer(x)) * 2 if x.sum() < 1e9 else x

    with pytest.raises(TraceError, match=r"(?s)torch.export: .*make_fx along a real run: .*example_inputs"):
        trace_model(Hopeless(), torch.ones(2, 4))


@pytest.mark.parametrize("made_there", [False, True])
def test_calls_from_inference_mode(made_there: bool) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4))

    model = build()
    with torch.inference_mode():
        model = build() if made_there else model
        assert len(trace_model(model)) == len(trace_model(model, torch.ones(2, 4))) == 2
