"""Every rule holds against history that is fed again, and a wrong one is named; what wrappers keep beside the weights follows."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxenorm
from fxenorm.errors import OptimizerError, OptionError
from fxenorm.optim.registry import registered, registered_names

from ..helpers import draw_log_scales

TORCH = sorted((cls for cls in registered() if cls.__module__.startswith("torch.optim")), key=lambda cls: cls.__name__)
X = torch.randn(5, 6, dtype=torch.float64)

MATRICES = [(8, 6), (6, 4)]
SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9}, "SGDW": {"lr": 0.1, "momentum": 0.9}, "SGDP": {"lr": 0.1, "momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True}, "RMSpropTF": {"momentum": 0.9, "centered": True},
    "Lamb": {"max_grad_norm": None},
    "Adafactor": {},
}  # fmt: skip


def factory(cls: type[Optimizer], **more: Any) -> Callable[[Any], Any]:
    return lambda parameters: cls(parameters, **{**SETTINGS.get(cls.__name__, {}), **more})


def check(cls: type[Optimizer], **more: Any) -> Any:
    return fxenorm.check_optimizer(factory(cls, **more), **({"shapes": MATRICES} if cls.__name__ == "Muon" else {}))


def found(name: str) -> Any:
    """A class of a library that may be missing."""
    module, _, cls = name.rpartition(".")
    return getattr(pytest.importorskip(module), cls)


@pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)
def test_torch(cls: type[Optimizer]) -> None:
    result = check(cls)
    assert result and str(result).startswith(f"the rule for {cls.__name__} holds ({registered()[cls].contract})"), str(result)


PLAIN = sorted(name for name in registered_names() if not name.endswith(("Lookahead", "Wrapper")))


@pytest.mark.parametrize("name", PLAIN)
def test_other_libraries(name: str) -> None:
    cls = found(name)
    result = check(cls)
    assert result, str(result)
    assert result.contract == registered_names()[name].contract
    assert f"{cls.__module__}.{cls.__qualname__}" == name


def test_timm_muon_where_it_falls_back_too() -> None:
    cls = found("timm.optim.Muon")
    assert fxenorm.check_optimizer(cls, shapes=[*MATRICES, (5,)]).keys == {"momentum_buffer": -1, "exp_avg": -1, "exp_avg_sq": -2}
    with pytest.raises(OptimizerError, match=r"adamuon.*state='reset'"):
        fxenorm.check_optimizer(factory(cls, algo="adamuon"), shapes=MATRICES)


def keys_to_break() -> list[Any]:
    cases = []
    for cls in (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Adadelta,
        torch.optim.Rprop,
    ):
        for key, power in check(cls).keys.items():
            if key == "prev":
                continue  # only its sign matters
            cases += [pytest.param(cls, key, power + by, id=f"{cls.__name__}-{key}-{power + by}") for by in (1, -1)]
    return cases


@pytest.mark.parametrize(("cls", "key", "power"), keys_to_break())
def test_a_wrong_power_is_named_and_the_right_one_is_found(cls: type[Optimizer], key: str, power: int) -> None:
    right = dict(check(cls).keys)
    wrong: type[Optimizer] = type("Wrong", (cls,), {})
    fxenorm.register_optimizer(wrong, {**right, key: power}, contract=registered()[cls].contract)
    result = fxenorm.check_optimizer(factory(wrong, **SETTINGS.get(cls.__name__, {})))
    assert not result and list(result.at_fault) == [key]
    assert f"D ** {right[key]} would be right" in str(result) and "WRONG" in str(result)


class Two(Optimizer):
    """A sum of gradients and one of their squares."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("sums", torch.zeros_like(parameter)).add_(parameter.grad)
                state.setdefault("squares", torch.zeros_like(parameter)).add_(parameter.grad.square())
                parameter.sub_(state["sums"] / state["squares"].sqrt(), alpha=0.01)


class Hidden(Two):
    """Remembers gradients where no rule looks."""

    last: Any = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.last = self.last or [torch.zeros_like(one) for one in self.param_groups[0]["params"]]
        super().step()
        for parameter, last in zip(self.param_groups[0]["params"], self.last, strict=True):
            parameter.sub_(last)
            last.copy_(parameter.grad)


@pytest.mark.parametrize(
    ("cls", "rule", "faults"),
    [
        (Two, {"sums": -1, "squares": -2}, []),
        (Two, {"sums": -1}, ["squares"]),
        (Two, {"sum": -1, "squares": -2}, ["sum", "sums"]),
        (Two, lambda state, group: {"sums": -1, "squares": -1}, ["squares"]),
        (Two, {"sums": 0, "squares": 0}, ["sums", "squares"]),
        (Hidden, {"sums": -1, "squares": -2}, ["(updates)"]),
    ],
)
def test_what_a_rule_gets_wrong_is_named(cls: type[Optimizer], rule: Any, faults: list[str]) -> None:
    fxenorm.register_optimizer(cls, rule)
    result = fxenorm.check_optimizer(cls)
    assert list(result.at_fault) == faults and bool(result) is not bool(faults)
    assert all(f"  {key}: " in str(result) for key in faults)


def test_without_a_rule_or_an_optimizer_it_raises() -> None:
    class Unknown(Optimizer):
        """No rule."""

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:
            pass

    with pytest.raises(OptimizerError, match=r"Unknown.*register_optimizer"):
        fxenorm.check_optimizer(Unknown)
    for wrong in (3, list, torch.optim.SGD([nn.Parameter(torch.ones(1))])):
        with pytest.raises(OptionError, match="optimizer_factory"):
            fxenorm.check_optimizer(wrong)  # type: ignore[arg-type]


# -------------------------------------------------------------------- what is around an optimizer


class Slow(Optimizer):
    """Keeps slow weights in state of its own, and shows the optimizer in it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.state, self.param_groups = optimizer, {}, optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                slow = self.state.setdefault(parameter, {}).setdefault("slow", parameter.detach().clone())
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)


class Shows:
    """As trainers put around an optimizer: it holds nothing."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "own": lambda parameters: Slow(adam(parameters)),
    "own within another": lambda parameters: Shows(Slow(adam(parameters))),
    "timm": lambda parameters: found("timm.optim.Lookahead")(adam(parameters), k=1),
    "pytorch_optimizer": lambda parameters: found("pytorch_optimizer.Lookahead")(adam(parameters), k=1),
    "torch_optimizer": lambda parameters: found("torch_optimizer.Lookahead")(adam(parameters), k=1),
    "schedulefree": lambda parameters: found("schedulefree.ScheduleFreeWrapper")(torch.optim.SGD(parameters, lr=0.01)),
    "AdamWScheduleFree": lambda parameters: found("schedulefree.AdamWScheduleFree")(parameters),
}


def trained(kind: str) -> tuple[nn.Module, fxenorm.Plan, Any]:
    torch.manual_seed(0)
    fxenorm.register_optimizer(Slow, {"slow": 1}, contract="by definition")
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = WRAPPERS[kind](model.parameters())
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(3):
        backward(model)
        optimizer.step()
    return model, fxenorm.analyze(model, X), optimizer


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(X).square().sum().backward()


def slow_weights(optimizer: Any, parameter: Tensor) -> Tensor:
    """What is kept beside a parameter in its own units, wherever it is."""
    holders = [optimizer]
    for holder in holders:
        holders += [vars(holder)[name] for name in ("optimizer", "_base_optimizer", "base") if name in vars(holder)]
    keys = ("slow", "slow_param", "slow_params", "lookahead_slow_buff", "z")
    return next(one.state[parameter][key] for one in holders for key in keys if key in one.state.get(parameter, {}))


@pytest.mark.parametrize("state", ["reexpress", "reset"])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_slow_weights_follow(kind: str, state: Any) -> None:
    if state == "reset" and kind not in ("own", "own within another"):
        pytest.skip("it keeps them in the state that is dropped, or makes them anew")
    model, plan, optimizer = trained(kind)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    slow = [slow_weights(optimizer, parameter).clone() for parameter in model.parameters()]
    plan.rescale(draw_log_scales(plan), optimizer, state=state)
    for parameter, weight, old in zip(model.parameters(), weights, slow, strict=True):
        torch.testing.assert_close(slow_weights(optimizer, parameter), old * parameter.detach() / weight, rtol=1e-10, atol=1e-14)
    assert not torch.equal(weights[0], model[0].weight)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_training_goes_on_step_after_step(kind: str) -> None:
    """By calls and by the hook; nothing that one call looked up is stale in the next."""
    model, plan, optimizer = trained(kind)
    for step in range(4):
        backward(model)
        optimizer.step()
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        slow = [slow_weights(optimizer, parameter).clone() for parameter in model.parameters()]
        plan.step(optimizer)
        for parameter, weight, old in zip(model.parameters(), weights, slow, strict=True):
            expected = old * parameter.detach() / weight
            torch.testing.assert_close(slow_weights(optimizer, parameter), expected, rtol=1e-10, atol=1e-14, msg=str(step))
    with plan.attach(optimizer) as handle:
        for _ in range(2):
            backward(model)
            optimizer.step()
    assert handle.steps == 2
    plan.step(optimizer)
    assert float(plan.imbalance()) < 0.1


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_can_be_checked(kind: str) -> None:
    fxenorm.register_optimizer(Slow, {"slow": 1}, contract="by definition")
    result = fxenorm.check_optimizer(WRAPPERS[kind])
    assert result and result.contract == "by definition", str(result)


def test_slow_weights_without_a_rule_are_never_left_behind_in_silence() -> None:
    class Unknown(Slow):
        """No rule: it has its own step."""

        def step(self, closure: Any = None) -> None:
            super().step()

    model, plan, _ = trained("own")
    optimizer = Unknown(adam(model.parameters()))
    plan.step(optimizer)  # it holds nothing as yet
    backward(model)
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptimizerError, match="Unknown"):
        plan.step(optimizer)
    lookahead = found("timm.optim.Lookahead")(adam(model.parameters()), k=1)
    backward(model)
    lookahead.step()
    after = copy.deepcopy(model.state_dict())
    with pytest.raises(OptimizerError, match=r"'lookahead_slow_buff'.*pass the wrapper"):
        plan.step(lookahead._base_optimizer)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items()) and before.keys() == after.keys()


def test_no_library_is_imported_for_its_rules() -> None:
    source = importlib.import_module("fxenorm.optim.rules.other_libraries").__file__
    assert source is not None
    with open(source, encoding="utf-8") as lines:
        imports = [line for line in lines if line.startswith(("import", "from"))]
    assert imports and not any(word in line for line in imports for word in ("timm", "transformers"))


def _fed(seed: int, shapes: Sequence[Sequence[int]] = ((4, 3), (5,))) -> list[list[list[torch.Tensor]]]:
    """By run of the check, by step, the gradients."""
    runs: list[list[list[torch.Tensor]]] = []

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        given = list(parameters)
        assert [tuple(parameter.shape) for parameter in given] == [tuple(shape) for shape in shapes]
        optimizer, steps = torch.optim.SGD(given, lr=0.1, momentum=0.9), []
        optimizer.register_step_pre_hook(lambda *_: steps.append([p.grad.clone() for p in given]))  # type: ignore[union-attr]
        runs.append(steps)
        return optimizer

    assert fxenorm.check_optimizer(make, shapes=shapes, seed=seed)
    return runs


def test_every_step_has_gradients_of_its_own_and_every_run_the_same_but_for_the_factors() -> None:
    """A rule that is right for a gradient that never changes may be wrong: the history has to be one."""
    runs = _fed(0)
    assert len(runs) >= 3
    ratios = []
    for run in runs:
        for number in range(2):
            assert len({tuple(step[number].flatten().tolist()) for step in run}) == len(run) > 1
            several = torch.stack([one[number] / other[number] for one, other in zip(runs[0], run, strict=False)][:5])
            torch.testing.assert_close(several, several[:1].expand_as(several))
            ratios.append(several[0])
    matrices = [ratio for ratio in ratios if ratio.ndim == 2]
    moved = [ratio for ratio in matrices if not torch.equal(ratio, torch.ones_like(ratio))]
    assert moved and all((ratio.std(0) > 0.05).all() and (ratio.std(1) > 0.05).all() for ratio in moved)
    for one, other in zip(runs, _fed(0), strict=True):
        assert all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(runs[0][0][0], _fed(1)[0][0][0])
    assert _fed(0, [(2, 3)])


def test_an_optimizer_that_has_to_be_set_to_training_is() -> None:
    told: list[str] = []

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = torch.optim.Adam(parameters)
        optimizer.train = lambda: told.append("train")  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(lambda *_: told.append("step"))
        return optimizer

    assert fxenorm.check_optimizer(make)
    assert told[0] == "train" and "step" in told
