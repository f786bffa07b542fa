"""The tracer: names, modes, metadata and flat graphs, and that a model comes out of it exactly as it went in."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from fxenorm.errors import ExampleInputsError, FxenormWarning, OptionError, TraceError
from fxenorm.trace import TracedModel, module_path, source_line, trace_model, unwrap
from fxenorm.trace.names import overlapping
from fxenorm.trace.source import SourceLines

from ..process_state import assert_same_process, process_state, settings_of_a_user
from ..releases import EXPORTS_WRITES_TO_PARAMETERS


class Record:
    """Everything about a model and the process that a trace must leave alone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.tensors = {name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()}
        self.attributes = [(module, dict(vars(module)), list(module._forward_hooks.items())) for module in model.modules()]
        self.process = process_state()

    def check(self) -> None:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        assert list(tensors) == list(self.tensors)
        for name, (tensor, value, requires_grad) in self.tensors.items():
            assert tensors[name] is tensor and tensor.requires_grad == requires_grad and tensor.grad is None
            assert tensor.is_meta or torch.equal(tensor, value)
        for module, attributes, hooks in self.attributes:
            assert list(vars(module)) == list(attributes)
            assert all(vars(module)[name] is value for name, value in attributes.items())
            assert list(module._forward_hooks.items()) == hooks and not module._forward_pre_hooks
        assert_same_process(self.process)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Nothing that torch deprecates inside its tracers may reach the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def operators(traced: TracedModel) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]


def check_form(traced: TracedModel, model: nn.Module) -> None:
    """The graph is flat, every node annotated, and every parameter stands under its first name."""
    traced.graph.lint()
    first_names = dict(model.named_parameters()).keys()
    for node in traced.graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        assert {"val", "module", "source"} <= node.meta.keys()
        if node.op in ("placeholder", "get_attr"):
            item = traced.placeholders[node.name]
            assert (item.value is not None) == (item.kind in ("buffer", "constant", "state"))
            assert item.kind != "parameter" or item.name in first_names
        if node.op == "call_function":
            assert node.meta["val"] is not None or "item" in str(node.target)
            assert module_path(node) in dict(model.named_modules(remove_duplicate=False))
        if node.op == "output":
            assert all(isinstance(value, fx.Node) for value in node.args[0])
    modes = {value.fake_mode for node in traced.graph.nodes if isinstance(value := node.meta["val"], FakeTensor)}
    assert len(modes) == 1


class InPlace(nn.Module):
    """Writes into activations, its buffer, its plain attributes and its input."""

    def __init__(self, data_dependent: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.plain = torch.zeros(4)
        self.seen: list[torch.Tensor] = []
        self.data_dependent = data_dependent

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x).relu_()
        if self.data_dependent and y.sum() > -1:
            y = y * 2
        with torch.no_grad():
            self.calls += 1
            self.plain.add_(1)
        self.seen.append(y)
        self.last = y
        x.mul_(2)
        return {"y": self.norm(y) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.rand(4)}


class OutwardWrites(InPlace):
    """Writes into its own parameter, which only a real run can do by itself."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.layer.weight.add_(random.gauss(0.0, 1.0) + float(np.random.randn()))
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "data_dependent", "process"),
    [
        (InPlace, False, contextlib.nullcontext),
        (InPlace, True, settings_of_a_user),
        (OutwardWrites, False, settings_of_a_user),
        (OutwardWrites, True, contextlib.nullcontext),
    ],
)
def test_the_model_and_the_process_are_left_as_they_were(
    kind: type[InPlace], data_dependent: bool, process: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with process():
        leaves_all_as_it_was(kind, data_dependent)


def leaves_all_as_it_was(kind: type[InPlace], data_dependent: bool) -> None:
    model = kind(data_dependent)
    model.norm.eval()
    model.layer.bias.requires_grad_(False)
    model.layer.register_forward_hook(lambda module, args, output: output * 2)
    x, plain = torch.randn(3, 4), model.plain.clone()
    before, record = x.clone(), Record(model)
    with pytest.warns(FxenormWarning, match="some paths only") if kind is OutwardWrites else contextlib.nullcontext():
        traced = trace_model(model, x)
    record.check()
    assert torch.equal(x, before) and torch.equal(model.plain, plain) and model.seen == [] and not hasattr(model, "last")
    assert [item.mode for item in traced] == ["eval", "train"]
    along_a_real_run = data_dependent or (kind is OutwardWrites and not EXPORTS_WRITES_TO_PARAMETERS)
    assert {item.tracer for item in traced} == {"make_fx" if along_a_real_run else "export"}
    for item in traced:
        check_form(item, model)
        assert operators(item).count("aten.mul.Tensor") == 1 + data_dependent  # the hook; the taken branch
        assert any("one run of the given inputs" in note for note in item.notes) == (item.tracer == "make_fx")
        assert any("draws random numbers" in reason for reason in item.inexact) == (kind is OutwardWrites)


@pytest.mark.parametrize(("data_dependent", "process"), [(False, settings_of_a_user), (True, contextlib.nullcontext)])
def test_the_model_and_the_process_are_left_as_they_were_when_it_raises(
    data_dependent: bool, process: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with process():
        model = InPlace(data_dependent)
        model.norm = nn.BatchNorm1d(5)
        model.norm.eval()
        x = torch.randn(3, 4)
        record = Record(model)
        with pytest.raises(ExampleInputsError, match=r"float(32|64)\[3, 4\].*example_inputs"):
            trace_model(model, x)
        with pytest.raises(ExampleInputsError, match="No example inputs could be guessed"):
            trace_model(model)
        record.check()


def leave_marks() -> None:
    """Has a function attribute, of which forward makes more."""


class Marking(nn.Module):
    """Puts something of every kind into itself, its class, a function and a global table, and counts on what it found there."""

    kinds = ("text", 3, 0.5, True, None, (1, 2), [1], {"a": 1}, {1}, b"bytes", torch.float32, torch.ones(2), len)
    counted = 1

    def __init__(self, data_dependent: bool) -> None:
        super().__init__()
        self.layer, self.data_dependent = nn.Linear(4, 4), data_dependent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, value in enumerate(self.kinds):
            for owner in (self, type(self), leave_marks):
                setattr(owner, f"mark_{number}", value)
            MARKS[number] = value
        type(self).counted = "other"  # type: ignore[assignment]
        y = self.layer(x)
        return y * 2 if self.data_dependent and y.sum() > -1e9 else y


MARKS: dict[int, object] = {}


@pytest.mark.parametrize("data_dependent", [False, True])
def test_nothing_that_forward_puts_anywhere_stays(data_dependent: bool) -> None:
    model = Marking(data_dependent)
    assert not any(name.startswith("mark_") for name in vars(Marking))
    before = [set(vars(owner)) for owner in (model, Marking, leave_marks)]
    traced = trace_model(model, torch.randn(3, 4))
    assert {item.tracer for item in traced} == {"make_fx" if data_dependent else "export"}
    assert not MARKS and Marking.counted == 1
    assert [set(vars(owner)) for owner in (model, Marking, leave_marks)] == before


def test_train_overrides_are_respected_and_undone() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()
            self[0].weight.requires_grad_(not mode)
            return self

    model = Frozen(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].training = False
    record = Record(model)
    _, train = trace_model(model)
    record.check()
    norm = next(node for node in train.graph.nodes if str(node.target) == "aten.batch_norm.default")
    dropout = next(node for node in train.graph.nodes if str(node.target) == "aten.dropout.default")
    assert norm.args[5] is False and dropout.args[2] is True


def test_train_graph_only_where_a_module_can_tell() -> None:
    class ByHelper(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return helper(self, x)

    def helper(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if getattr(module, "training") else x  # noqa: B009

    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, args, output: output * 2 if module.training else output)
    same = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    assert [traced.covers for traced in trace_model(same)] == [("eval", "train")]
    assert [traced.covers for traced in trace_model(same, modes="train")] == [("train",)]
    for model in (nn.Sequential(nn.Linear(3, 3), nn.Dropout()), ByHelper(), hooked, nn.Sequential(nn.LSTM(3, 3))):
        assert [traced.covers for traced in trace_model(model, torch.ones(2, 3))] == [("eval",), ("train",)]


def test_resnet_names_paths_and_lines() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18()
    stages: list[str] = []
    traced = trace_model(model, report=stages.append)
    assert stages == [
        "guessing example inputs", "tracing in eval mode", "tracing at a second size", "tracing in train mode",
    ]  # fmt: skip
    for item in traced:
        check_form(item, model)
        assert [entry.name for entry in item.placeholders.values() if entry.kind == "parameter"] == [
            name for name, _ in model.named_parameters()
        ]
    convolution = next(node for node in traced[0].graph.nodes if module_path(node) == "layer3.0.downsample.0")
    assert source_line(convolution).startswith("resnet.py:") and source_line(convolution).endswith(", in forward")
    at_second_size = traced[0].second
    assert at_second_size is not None
    called = [
        {(module_path(node), str(node.target), source_line(node)) for node in item.graph.nodes if node.op == "call_function"}
        for item in (*traced, at_second_size)
    ]
    # Whichever tracer was at work; counting the batches belongs to train mode alone.
    assert called[0] == called[2] == {call for call in called[1] if call in called[0] or call[1] != "aten.add_.Tensor"}
    assert operators(traced[0]).count("aten.batch_norm.default") == 20
    known = traced[1].placeholders
    counters = [node for node in traced[1].graph.nodes if node.name in known and "num_batches_tracked" in known[node.name].name]
    assert len(counters) == 20 and all(user.target is torch.ops.aten.add_.Tensor for node in counters for user in node.users)


def test_a_reused_module_keeps_one_path() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))

    (traced,) = trace_model(Twice())
    nodes = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert [module_path(node) for node in nodes] == ["inner.0", "inner.0"]
    assert all(source_line(node).startswith("test_trace.py:") for node in nodes)


@pytest.mark.parametrize("data_dependent", [False, True])
def test_ties_go_by_the_first_name(data_dependent: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight
            self.again = self.embedding

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.again(tokens)
            return self.head(x * 2 if data_dependent and x.sum() > 1e9 else x)

    model = Tied()
    (traced,) = trace_model(model)
    check_form(traced, model)
    assert traced.aliases == {"head.weight": "embedding.weight", "again.weight": "embedding.weight"}
    parameters = {name for name, item in traced.placeholders.items() if item.kind == "parameter"}
    users = [node for node in traced.graph.nodes if parameters & {source.name for source in node.all_input_nodes}]
    assert [str(node.target) for node in users] == ["aten.embedding.default", "aten.linear.default"]
    assert {item.name for item in traced.placeholders.values() if item.kind == "parameter"} == {"embedding.weight"}


def test_blocks_of_tensors_that_overlap() -> None:
    """One that covers two others ties them together; what only touches does not overlap."""
    memory = torch.zeros(40)
    parts = {"wide": (0, 10), "first": (1, 3), "second": (5, 8), "beside": (10, 14), "apart": (20, 30), "over": (29, 35)}
    named = [(name, memory[start:end]) for name, (start, end) in parts.items()]
    named += [("other", torch.zeros(4)), ("empty", memory[3:3])]
    assert set(overlapping(named)) == {("wide", "first", "second"), ("apart", "over")}
    assert overlapping([*named[3:4], *named[6:]]) == ()


def test_tensors_that_overlap_are_named() -> None:
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.Parameter(torch.ones(6))
            self.part = nn.Parameter(self.whole.data[:3])
            self.view = self.whole.data[3:]
            flat = torch.ones(6)
            self.left, self.right = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])  # side by side, as cuDNN's weights

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.whole.sum() * self.part * self.view * self.left * self.right

    (traced,) = trace_model(Overlapping(), torch.ones(3))
    assert [set(block) for block in traced.shared_storage] == [{"whole", "part", "view"}]
    assert traced.aliases == {}


@pytest.mark.parametrize("data_dependent", [False, True])
def test_regions_without_gradient_or_in_autocast_are_inlined(data_dependent: bool) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
            if data_dependent and x.sum() > 1e9:
                x = x + 1
            with torch.no_grad():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = self.layer(x)
                y = y.float().relu_()
            return y, self.layer(x), 3

    model = Regions()
    (traced,) = trace_model(model)
    check_form(traced, model)
    computing = [name for name in operators(traced) if name in ("aten.linear.default", "aten.relu_.default")]
    assert computing == ["aten.linear.default", "aten.relu_.default", "aten.linear.default"]
    assert len(traced.graph.output_node().args[0]) == 2


@pytest.mark.parametrize("way", ["tolist", "numpy", "parameter"])
def test_values_that_pass_through_python_are_not_lost(way: str) -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            if y.sum() > 1e9:
                return y
            if way == "parameter":
                return nn.Parameter(y) * 2
            return torch.tensor(y.tolist()) if way == "tolist" else torch.from_numpy(y.detach().numpy() * 2)

    if way == "parameter":  # a constant would come back that does not depend on the layer
        with pytest.raises(TraceError, match="came back as a constant"):
            trace_model(Through())
        return
    (traced,) = trace_model(Through())
    held = "fxenorm.hold.default" if way == "numpy" else "aten.item.default"  # numpy shares the memory, too
    assert operators(traced).count("aten.item.default") + operators(traced).count("fxenorm.hold.default") == 2
    assert held in operators(traced)  # beside the branch: the values that left


def test_data_attribute_is_followed() -> None:
    class Data(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).data * 2

    (traced,) = trace_model(Data(3, 3))
    assert traced.tracer == "export" and operators(traced)[-1] == "aten.mul.Tensor"


def test_unwrap_and_options() -> None:
    layer = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    assert unwrap(nn.DataParallel(layer)) is layer and unwrap(averaged) is averaged.module and unwrap(layer) is layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.12 warns about itself when its compiler is first imported
        compiled = torch.compile(nn.DataParallel(layer))
    assert unwrap(compiled) is layer
    (traced,) = trace_model(torch.compile(layer))
    assert traced.placeholders["p_weight"].name == "weight"
    layer.compile()
    record = Record(layer)
    assert operators(trace_model(layer)[0]) == ["aten.linear.default"]
    record.check()
    with pytest.raises(OptionError, match="must be a torch"):
        trace_model([layer])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="modes"):
        trace_model(layer, modes="all")  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="lazy"):
        trace_model(nn.LazyLinear(3))


def test_no_train_mode_warns_or_raises() -> None:
    class WantsTargets(nn.Linear):
        def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if self.training and targets is None:
                raise ValueError("targets should be given in train mode")
            return super().forward(x)

    model = WantsTargets(3, 3)
    with pytest.warns(FxenormWarning, match="only eval mode is covered.*targets should be given"):
        (traced,) = trace_model(model)
    assert traced.covers == ("eval",)
    assert len(trace_model(model, example_kwargs={"targets": torch.ones(2)})) == 2
    with pytest.raises(ExampleInputsError, match="targets should be given"):
        trace_model(model, torch.ones(2, 3), modes="train")
    (guessed,) = trace_model(model, modes="train")
    assert guessed.covers == ("train",), "guessed inputs hold what train mode wants"


def test_lines_of_a_notebook_are_those_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel keeps each cell under the name of a file that nobody has seen."""
    stack = '  File "/tmp/ipykernel_77/1234567.py", line 5, in forward\n    return self.a(x)\n'
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert SourceLines()(stack) == "notebook cell:5, in forward"
    console = SimpleNamespace(compile=SimpleNamespace(_filename_map={"/tmp/ipykernel_77/1234567.py": 3}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: console))
    assert SourceLines()(stack) == "In[3]:5, in forward"
    assert SourceLines()(stack.replace("ipykernel_77/1234567", "ipykernel/model")) == "model.py:5, in forward"
