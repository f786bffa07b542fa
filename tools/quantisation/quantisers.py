"""Who rounds: the library's own rounding, or torchao where it is installed, eagerly or on an exported model (PT2E)."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fxenorm import Bits, FxenormError
from fxenorm.quantisation.rounded_outputs import observed_ranges, rounded_outputs
from fxenorm.trace.inputs import Inputs

TORCHAO = "torchao"


class NotInstalledError(FxenormError):
    """A quantiser needs a package that is not there."""


class Rounding(Protocol):
    """A model whose rounded logits can be had.

    Args:
        model: in float32, which is left as it was.
        calibration: the images on which ranges of activations are observed.
    """

    def __init__(self, model: nn.Module, calibration: Tensor) -> None: ...

    @staticmethod
    def expresses(net: str, bits: Bits) -> bool:
        """Whether it can round a net to such bits."""

    def logits(self, bits: Bits, images: Tensor) -> Tensor:
        """Returns the logits of some images, rounded to some bits, in float64."""


def returned(leaves: Sequence[Any]) -> list[Any]:
    """The returned tensors."""
    return [leaf for leaf in leaves if leaf.returned]


class Own:
    """The library's own rounding: whole multiples of largest / (2 ** (bits - 1) - 1), ranges of activations from calibration."""

    def __init__(self, model: nn.Module, calibration: Tensor) -> None:
        self._model = model
        self._ranges, _, _ = observed_ranges(model, [Inputs((calibration,))], returned)

    @staticmethod
    def expresses(net: str, bits: Bits) -> bool:
        """Rounds everything."""
        return True

    def logits(self, bits: Bits, images: Tensor) -> Tensor:
        """Returns the logits of some images, rounded to some bits, in float64."""
        (found,) = rounded_outputs(self._model, Inputs((images,)), returned, bits, self._ranges)
        return found


class Exported:
    """PT2E of torchao: exported, prepared with observers at each layer's weight and input, calibrated, converted.

    The numbers are those of the own rounding: in torchao's words, a symmetric range from -127 to 127.
    """

    def __init__(self, model: nn.Module, calibration: Tensor) -> None:
        many = ({0: torch.export.Dim.DYNAMIC},)
        self._exported = torch.export.export(model, (calibration,), dynamic_shapes=many).module()
        self._calibration = calibration

    @staticmethod
    def expresses(net: str, bits: Bits) -> bool:
        """Activations whose numbers begin at 0 or below, layer by layer, are another scheme there."""
        return bits.activations is None or bits.symmetric

    def logits(self, bits: Bits, images: Tensor) -> Tensor:
        """Returns the logits of some images, rounded to some bits, in float64."""
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        with torch.no_grad():
            prepared = prepare_pt2e(copy.deepcopy(self._exported), layers_quantizer(bits))
            prepared(self._calibration)
            found: Tensor = convert_pt2e(prepared)(images)
        return found.double()


def layers_quantizer(bits: Bits) -> Any:
    """Returns a torchao quantizer that observes weights and inputs of linear layers and convolutions, and nothing else."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    def spec(number: int, by_channel: bool) -> Any:
        """Symmetric numbers of so many bits."""
        levels = (1 << number - 1) - 1
        observer = (PerChannelMinMaxObserver if by_channel else MinMaxObserver).with_args(eps=1e-30)
        scheme = torch.per_channel_symmetric if by_channel else torch.per_tensor_symmetric
        ends = {"quant_min": -levels, "quant_max": levels, "ch_axis": 0 if by_channel else None}
        return QuantizationSpec(dtype=torch.int8, qscheme=scheme, observer_or_fake_quant_ctr=observer, **ends)

    class LayersQuantizer(Quantizer):  # type: ignore[misc]
        """Annotates each layer."""

        def annotate(self, model: Any) -> Any:
            """Says what each layer's operands become."""
            for node in model.graph.nodes:
                if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
                    specs = {}
                    if bits.weights is not None:
                        specs[node.args[1]] = spec(bits.weights, bits.per == "channel")
                    if bits.activations is not None:
                        specs[node.args[0]] = spec(bits.activations, False)
                    node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
            return model

        def validate(self, model: Any) -> None:
            """Takes every model."""

    return LayersQuantizer()


class Eager:
    """`quantize_` of torchao: its own configurations, for linear layers; activations by the range of the batch at hand.

    Its symmetric numbers go from -128 to 127 in steps of largest / 127.5, so that the largest entry is off by half a step.
    """

    def __init__(self, model: nn.Module, calibration: Tensor) -> None:
        self._model = model

    @staticmethod
    def expresses(net: str, bits: Bits) -> bool:
        """It has no configuration for convolutions, for int4 with one range, or for numbers of some activations from 0."""
        known = bits.weights == 8 or (bits.per == "channel" and bits.activations is None)
        return net == "transformer" and known and (bits.activations is None or bits.symmetric)

    def logits(self, bits: Bits, images: Tensor) -> Tensor:
        """Returns the logits of some images, rounded to some bits, in float64."""
        from torchao.quantization import quantize_

        model = copy.deepcopy(self._model)
        quantize_(model, configuration(bits))
        with torch.no_grad():
            found: Tensor = model(images)
        return found.double()


def configuration(bits: Bits) -> Any:
    """Returns torchao's configuration for some bits."""
    from torchao import quantization as ao

    by_channel = bits.per == "channel"
    if bits.activations is not None:
        ranges = [ao.PerTensor(), ao.PerRow()] if by_channel else ao.PerTensor()
        return ao.Int8DynamicActivationInt8WeightConfig(granularity=ranges)
    if bits.weights == 8:
        return ao.Int8WeightOnlyConfig(granularity=ao.PerRow() if by_channel else ao.PerTensor())
    return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerAxis(0))


QUANTISERS: dict[str, type[Rounding]] = {"own": Own, "pt2e": Exported, "torchao": Eager}


def is_installed() -> bool:
    """Whether torchao is there."""
    return importlib.util.find_spec(TORCHAO) is not None


def quantiser(name: str) -> type[Rounding]:
    """Returns a quantiser by name.

    Raises:
        NotInstalledError: torchao is needed and not there.
    """
    if name != "own" and not is_installed():
        raise NotInstalledError(f"the quantiser {name!r} is torchao's, which is not installed here: pip install torchao")
    return QUANTISERS[name]
