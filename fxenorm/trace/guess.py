"""Example inputs made up from a model's first layers and its forward signature."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ExampleInputsError
from .guess_several import Maker, combinations, takes_a_tensor
from .inputs import Inputs, given_inputs
from .layer_shapes import TOKENS, is_first_layer, shapes_for_layer
from .reached_layers import reached
from .reasons import needs_values, reason, runs_on
from .traced_model import Mode

__all__ = ["candidates", "choose", "further", "known_inputs", "resolve_inputs"]

_WITHOUT_PARAMETERS = ((2, 3, 224, 224), (2, 3, 32, 32), (2, 16), (2, 3, 64), (2, 16, 32), (2, 3, 16, 32, 32), (2,))
"""Shapes for a model without a known first layer, the commonest first: images of ImageNet's and CIFAR's size, vectors,
sequences of channels, sequences of vectors, clips, one number a sample; two samples, since some models refuse a batch of one."""

_SHOWN, _SHOWN_EACH = 6, 3
"""Reasons in a message, and guesses that met one of them: as many as fit on a screen; the likeliest come first."""


def candidates(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[Inputs]:
    """Inputs to try, the likeliest first: one shape for every required argument of forward, a batch of two."""
    yield from _from_pretrained(model, kwargs)
    if not _accepts_arguments(model):
        yield Inputs((), dict(kwargs), True)
        return
    device, dtype = _device_and_dtype(model)
    vocabulary = _smallest_vocabulary(model)

    def tensor(shape: tuple[int, ...], integer: bool) -> torch.Tensor:
        return _make(shape, integer, vocabulary, device, dtype)

    required = _required(model, kwargs)
    if kwargs and not required:
        yield Inputs((), dict(kwargs), True)
    if not required:
        yield from further(model, kwargs)
    lists = [_is_list_of_tensors(parameter) for parameter in required] or [False]
    bilinear = next((module for module in model.modules() if isinstance(module, nn.Bilinear)), None)
    if bilinear is not None and len(required) == 2:
        sides = (bilinear.in1_features, bilinear.in2_features)
        yield _arrange(required, [tensor((2, side), False) for side in sides], kwargs)
    if len(required) > 1 and not any(lists):
        for values in combinations(model, required, Maker(device, dtype), vocabulary):
            yield _arrange(required, values, kwargs)
    for shape, integer in dict.fromkeys(_shapes(model)):
        arguments: list[Any] = [[tensor(shape[1:], integer)] if listed else tensor(shape, integer) for listed in lists]
        yield _arrange(required, arguments, kwargs)
    if len(required) in (2, 3):  # arguments of different kinds: a picture and a sentence
        kinds = {type(layer): next(shapes_for_layer(layer)) for layer in model.modules() if is_first_layer(layer)}
        for mixed in itertools.product(list(kinds.values())[:3], repeat=len(required)):
            if len(set(mixed)) > 1:
                yield _arrange(required, [tensor(shape, integer) for shape, integer in mixed], kwargs)
    if required:
        yield from further(model, kwargs)


def further(model: nn.Module, kwargs: Mapping[str, Any], wanted: Iterable[nn.Module] | None = None) -> Iterator[Inputs]:
    """Inputs that give a value also to arguments that may be left out: those that reach layers, or one of the `wanted` ones."""
    required, (device, dtype) = _required(model, kwargs), _device_and_dtype(model)
    names = {parameter.name for parameter in required} | set(kwargs)
    optional = [parameter for parameter in _parameters(model) if parameter.name not in names and takes_a_tensor(parameter)]
    layers = {parameter.name: set(reached(model, parameter.name).layers) for parameter in optional}
    aim = set().union(*layers.values()) if wanted is None else set(wanted)
    wider = [parameter for parameter in optional if layers[parameter.name]]
    closer = [parameter for parameter in wider if layers[parameter.name] & aim]
    for chosen in (wider, closer) if closer and closer != wider else (closer,):
        given = [*required, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in chosen)]
        for values in combinations(model, given, Maker(device, dtype), _smallest_vocabulary(model)) if chosen else ():
            yield _arrange(given, values, kwargs)


def choose(model: nn.Module, ladder: Iterable[Inputs], mode: Mode) -> Inputs:
    """Returns the first of `ladder` on which the model runs, with fake values where that can be."""
    tried: list[tuple[Inputs, Exception]] = []
    for inputs in ladder:
        failure = runs_on(model, inputs, mode, confirm=False)
        if failure is None or needs_values(failure):  # the second: on the meta device, where the tracer will say so
            return inputs
        tried.append((inputs, failure))
    raise ExampleInputsError(
        f"No example inputs could be guessed for {type(model).__name__}{_device_words(model, tried)}. Tried:\n"
        f"{_failures(tried)}\n"
        "Pass example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments."
    )


def _failures(tried: Sequence[tuple[Inputs, Exception]]) -> str:
    """Returns a line for each reason, with the first inputs that met it."""
    by_reason: dict[str, list[str]] = {}
    for inputs, failure in tried:
        by_reason.setdefault(reason(failure), []).append(str(inputs))
    lines = []
    for why, calls in list(by_reason.items())[:_SHOWN]:
        more = f" and {len(calls) - _SHOWN_EACH} more" if len(calls) > _SHOWN_EACH else ""
        lines.append(f"  {', '.join(calls[:_SHOWN_EACH])}{more}: {why}")
    if len(by_reason) > _SHOWN:
        lines.append(f"  ... and {sum(map(len, list(by_reason.values())[_SHOWN:]))} more")
    return "\n".join(lines)


def _device_words(model: nn.Module, tried: Sequence[tuple[Inputs, Exception]]) -> str:
    """Returns a sentence where every failure names CUDA and the weights lie elsewhere; else ""."""
    device, _ = _device_and_dtype(model)
    if device.type == "cuda" or not tried or not all(re.search("cuda", str(failure), re.IGNORECASE) for _, failure in tried):
        return ""
    return f": its code names a CUDA device, and its weights are on {device} (write x.device in place of 'cuda')"


def resolve_inputs(model: nn.Module, example_inputs: Any = None, example_kwargs: Any = None, mode: Mode = "eval") -> Inputs:
    """Returns the given inputs in one form, or where none are given the first guess on which the model runs.

    Raises:
        ExampleInputsError: the inputs are of a wrong type, or no guess runs.
    """
    given = given_inputs(example_inputs, example_kwargs)
    return choose(model, candidates(model, example_kwargs or {}), mode) if given is None else given


def known_inputs(model: nn.Module, known: Inputs | None, example_inputs: Any = None) -> Inputs:
    """Returns the given inputs; where none are given those that are known, or guessed ones where these have no values.

    Raises:
        ExampleInputsError: as `resolve_inputs`.
    """
    if known is None or example_inputs is not None or any(tensor.is_meta for tensor in known.tensors()):
        return resolve_inputs(model, example_inputs)
    return known


def _arrange(required: list[inspect.Parameter], arguments: list[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Positional arguments by position, keyword-only ones by name."""
    positional: list[Any] = []
    named = dict(kwargs)
    for parameter, value in itertools.zip_longest(required, arguments):
        if parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        else:
            positional.append(value)
    return Inputs(tuple(positional), named, True)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Forward's parameters; none where they cannot be read."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _required(model: nn.Module, kwargs: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Forward's parameters that have no default and are not given."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter
        for parameter in _parameters(model)
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic and parameter.name not in kwargs
    ]


def _accepts_arguments(model: nn.Module) -> bool:
    """Whether forward takes anything at all."""
    return bool(_parameters(model)) or not hasattr(model, "forward")


def _is_list_of_tensors(parameter: inspect.Parameter) -> bool:
    """Whether the parameter is annotated as a list of tensors, as detection models' images are."""
    return re.search(r"(list|sequence)\[.*tensor", str(parameter.annotation), re.IGNORECASE) is not None


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the first tensor and dtype of the first floating one."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize > 1)
    return device, next(floating, torch.get_default_dtype())


def _smallest_vocabulary(model: nn.Module) -> int:
    """Returns the number of rows of the smallest embedding, so that made-up indices fit every one of them."""
    sizes = [module.num_embeddings for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    return max(1, min(sizes, default=2))


def _make(shape: tuple[int, ...], integer: bool, vocabulary: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Returns a made-up tensor; its random numbers come from a generator of its own."""
    if device.type == "meta":
        return torch.empty(shape, dtype=torch.int64 if integer else dtype, device=device)
    if integer:
        return torch.arange(math.prod(shape), dtype=torch.int64, device=device).reshape(shape) % vocabulary
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu").to(device, dtype)


def _shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], bool]]:
    """(shape, integer) of a tensor that the first layers could take, likeliest first."""
    layer = next((module for module in model.modules() if is_first_layer(module)), None)
    if layer is not None:
        yield from shapes_for_layer(layer)
    # A layer registered first need not run first, and an image may be cut into patches before it.
    if layer is None or not next(model.parameters(), None) is not None:
        yield from ((shape, False) for shape in _WITHOUT_PARAMETERS)
        yield (2, 16), True
        return
    others: dict[type, nn.Module] = {}
    for module in model.modules():
        if is_first_layer(module) and type(module) is not type(layer):
            others.setdefault(type(module), module)
    for other in itertools.islice(others.values(), 3):
        yield from itertools.islice(shapes_for_layer(other), 5)
    for channels in (3, 1):
        yield from (((2, channels, side, side), False) for side in (224, 32, 28))


def _from_pretrained(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[Inputs]:
    """Inputs for models that name their main input, as Hugging Face's do."""
    name = getattr(model, "main_input_name", None)
    if not isinstance(name, str):
        return
    config = getattr(model, "config", None)
    device, dtype = _device_and_dtype(model)
    vocabulary = _smallest_vocabulary(model)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))

    def call(value: torch.Tensor) -> Inputs:
        extra = {"decoder_input_ids": _make((2, 8), True, vocabulary, device, dtype)} if encoder_decoder else {}
        return Inputs((), {name: value, **extra, **kwargs}, True)

    if name == "input_ids":
        yield from (call(_make((2, length), True, vocabulary, device, dtype)) for length in TOKENS)
    else:
        size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
        if isinstance(size, int) and isinstance(channels, int):
            yield call(_make((2, channels, size, size), False, vocabulary, device, dtype))
        for shape, integer in itertools.islice(dict.fromkeys(_shapes(model)), 20):
            yield call(_make(shape, integer, vocabulary, device, dtype))
    try:
        dummy = getattr(model, "dummy_inputs", None)
    except Exception:  # a property of the model's library, which may fail in any way
        dummy = None
    if isinstance(dummy, Mapping):
        tensors = {key: value.to(device) for key, value in dummy.items() if isinstance(value, torch.Tensor)}
        yield Inputs((), {**tensors, **kwargs}, True)
