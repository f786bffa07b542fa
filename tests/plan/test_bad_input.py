"""Bad input: one clear error each that names the thing and what to do, and nothing changed."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import (
    ExampleInputsError,
    FxenormError,
    OptimizerError,
    OptionError,
    RescaleError,
    UnsupportedOperatorError,
)

from ..helpers import assert_same_state, mlp, state_of

INPUT = torch.ones(2, 4)

BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "p zero": ({"p": 0}, r"\bp=0\b"),
    "p negative": ({"p": -1.5}, r"\bp=-1.5\b"),
    "p nan": ({"p": math.nan}, r"\bp=nan\b"),
    "p text": ({"p": "2"}, r"\bp='2'"),
    "p bool": ({"p": True}, r"\bp=True"),
    "c zero": ({"c": 0}, r"\bc=0\b"),
    "c nan": ({"c": math.nan}, r"\bc=nan\b"),
    "c word": ({"c": "adaptiv"}, "adaptiv.*adaptive"),
    "c unknown layer": ({"c": {"nowhere": 2.0}}, "nowhere"),
    "batchnorm": ({"batchnorm": "fold"}, "batchnorm='fold'.*'affine', 'folded', 'frozen', 'skip'"),
    "biases": ({"biases": "none"}, "biases='none'.*'scale', 'count', 'skip'"),
    "modes": ({"modes": "test"}, "modes='test'.*'both'"),
    "modes None": ({"modes": None}, "modes=None"),
    "solver": ({"solver": "sinkhorn"}, "solver='sinkhorn'.*'jacobi'"),
    "scales": ({"scales": "half"}, "scales='half'"),
    "backend": ({"backend": "cuda"}, "backend='cuda'"),
    "on_unknown": ({"on_unknown": "ignore"}, "on_unknown='ignore'.*'barrier', 'error'"),
    "balance_last": ({"balance_last": "no"}, "balance_last='no'"),
    "exclude": ({"exclude": 3}, "exclude=3"),
    "approximate": ({"approximate": ("no_such_operator",)}, "no_such_operator"),
    "max_log_scale": ({"max_log_scale": -1}, "max_log_scale=-1"),
    "c negative": ({"c": -1}, r"\bc=-1\b"),
    "c zero for a layer": ({"c": {"a": 0}}, r"\bc\['a'\]=0\b"),
    "c of what is no name": ({"c": {1: 1.0}}, r"\bc=\{1: 1\.0\}"),
    "biases None": ({"biases": None}, "biases=None"),
    "balance_last a number": ({"balance_last": 1}, "balance_last=1"),
    "exclude numbers": ({"exclude": [1]}, "exclude"),
    "scales a number": ({"scales": 2}, "scales=2"),
    "max_log_scale zero": ({"max_log_scale": 0}, "max_log_scale=0"),
    "max_log_scale inf": ({"max_log_scale": math.inf}, "max_log_scale=inf"),
    "on_unknown empty": ({"on_unknown": ""}, "on_unknown=''"),
    "frozen in train mode": ({"batchnorm": "frozen", "modes": "train"}, "frozen.*train"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_option_is_named_with_the_valid_ones(name: str) -> None:
    options, message = BAD_OPTIONS[name]
    model = mlp(4, 5, 3)
    state = state_of(model)
    with pytest.raises(OptionError, match=message):
        fxenorm.analyze(model, INPUT, **options)
    assert_same_state(model, state)


def test_unknown_option_name_is_refused() -> None:
    with pytest.raises(TypeError, match="power"):
        fxenorm.analyze(mlp(4, 5, 3), INPUT, power=2)


@pytest.mark.parametrize("model", [None, "resnet18", nn.Linear, {"weight": torch.ones(2)}, torch.ones(2), lambda x: x])
def test_what_is_not_a_module_is_refused(model: Any) -> None:
    with pytest.raises(FxenormError, match=r"nn\.Module") as caught:
        fxenorm.analyze(model, INPUT)
    assert isinstance(caught.value, (TypeError, ValueError))


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "wrong features": (torch.ones(2, 17), r"17"),
    "wrong rank": (torch.ones(()), r"example_inputs"),
    "too many": ((INPUT, INPUT), r"example_inputs|positional"),
    "unknown keyword": ({"nonsense": INPUT}, r"nonsense"),
    "not a tensor": (("text",), r"example_inputs|text|str"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_wrong_example_inputs(name: str) -> None:
    given, message = BAD_INPUTS[name]
    model = mlp(4, 5, 3)
    state = state_of(model)
    with pytest.raises(ExampleInputsError, match=message):
        fxenorm.analyze(model, given)
    assert_same_state(model, state)


def test_guess_that_fails_lists_what_was_tried_and_names_example_inputs() -> None:
    class TwoThings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor, table: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.a(x) + table["offset"]

    with pytest.raises(ExampleInputsError, match="example_inputs"):
        fxenorm.analyze(TwoThings())

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-1] != 37:
                raise ValueError("37 pixels, please")
            return self.a(x)

    with pytest.raises(ExampleInputsError, match=r"(?s)example_inputs") as caught:
        fxenorm.analyze(Picky())
    assert "224" in str(caught.value) and "37 pixels" in str(caught.value), "what was tried, and why it did not run"
    assert fxenorm.analyze(Picky(), torch.ones(2, 3, 37, 37)).num_scales == 0


def test_inputs_are_guessed_for_the_usual_models() -> None:
    for model, scales in (
        (mlp(4, 5, 3), 5),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)), 5),
        (nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 2, 1)), 5),
        (nn.Sequential(nn.Conv3d(3, 5, 3), nn.ReLU(), nn.Conv3d(5, 2, 1)), 5),
        (nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 2)), 5),
    ):
        assert fxenorm.analyze(model).num_scales == scales


def test_unknown_operators_are_listed_at_once() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x) + torch.special.bessel_y0(x.abs() + 1)

    model = nn.Sequential(nn.Linear(4, 5), Odd(), nn.Linear(5, 3))
    with pytest.raises(UnsupportedOperatorError) as caught:
        fxenorm.analyze(model, INPUT, on_unknown="error")
    assert "bessel_j0" in str(caught.value) and "bessel_y0" in str(caught.value)
    fxenorm.analyze(mlp(4, 5, 3), INPUT, on_unknown="error")


BAD_LOG_SCALES: dict[str, Callable[[], Any]] = {
    "too few": lambda: torch.zeros(4),
    "too many": lambda: torch.zeros(6),
    "two axes": lambda: torch.zeros(5, 1),
    "nan": lambda: torch.tensor([0, 0, math.nan, 0, 0]),
    "inf": lambda: torch.tensor([0, 0, math.inf, 0, 0]),
    "overflows a weight": lambda: torch.tensor([0, 0, 200.0, 0, 0]),
    "nothing but nan": lambda: torch.full((5,), math.nan),
    "overflows every weight": lambda: torch.full((5,), 100.0),
    "a list that is too short": lambda: [0] * 4,
    "integers": lambda: torch.zeros(5).int(),
    "text": lambda: "zeros",
}


@pytest.mark.parametrize("name", BAD_LOG_SCALES)
def test_bad_log_scales_leave_the_model_whole(name: str) -> None:
    model = mlp(4, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(INPUT).sum().backward()
    optimizer.step()
    plan = fxenorm.analyze(model, INPUT)
    state = state_of(model)
    buffers = {p: optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    with pytest.raises(RescaleError):
        plan.rescale(BAD_LOG_SCALES[name](), optimizer)
    assert_same_state(model, state)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], buffer) for p, buffer in buffers.items())


def unknown_optimizer(model: nn.Module) -> Any:
    """An optimizer of a class that no rule knows, though its state looks like SGD's."""

    class Mine(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)

    optimizer = Mine(model.parameters())
    optimizer.step()
    return optimizer


BAD_OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "unknown class": (unknown_optimizer, "Mine"),
    "text": (lambda model: "sgd", "sgd|str"),
    "a class": (lambda model: torch.optim.SGD, "SGD|type"),
    "of another model": (lambda model: torch.optim.SGD(mlp(4, 5, 3).parameters(), lr=0.1), "parameter"),
}


@pytest.mark.parametrize("method", ["step", "balance"])
@pytest.mark.parametrize("name", BAD_OPTIMIZERS)
def test_bad_optimizer_leaves_the_model_whole(name: str, method: str) -> None:
    build, message = BAD_OPTIMIZERS[name]
    model = mlp(4, 5, 3)
    plan = fxenorm.analyze(model, INPUT)
    state = state_of(model)
    with pytest.raises(OptimizerError, match=message):
        getattr(plan, method)(build(model))
    assert_same_state(model, state)


@pytest.mark.parametrize("arguments", [{"cycles": -1}, {"cycles": 0}, {"cycles": True}, {"cycles": 1.0}, {"cycles": 1.5}])
def test_bad_number_of_cycles(arguments: dict[str, Any]) -> None:
    model = mlp(4, 5, 3)
    plan = fxenorm.analyze(model, INPUT)
    state = state_of(model)
    with pytest.raises(OptionError, match="cycles"):
        plan.step(**arguments)
    assert_same_state(model, state)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"tol": tol} for tol in (0.0, -1.0, math.nan, "small")),
        *({"max_iterations": number} for number in (-1, 0, True, 2.0, "3")),
    ],
)
def test_bad_tolerance(arguments: dict[str, Any]) -> None:
    plan = fxenorm.analyze(mlp(4, 5, 3), INPUT)
    with pytest.raises(OptionError, match=next(iter(arguments))):
        plan.balance(**arguments)


def test_every_public_error_is_one_of_ours() -> None:
    for name in fxenorm.errors.__all__:
        error = getattr(fxenorm.errors, name)
        assert issubclass(error, (FxenormError, UserWarning)) and error.__doc__


# The command line.

GOOD = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
"""

FILES: dict[str, tuple[str | None, list[str], str]] = {
    "no such file": (None, [], "no such file"),
    "syntax error": ("def broken(:\n", [], "line 1|SyntaxError|syntax"),
    "does not import": ("import torch\nimport no_such_module_anywhere\n", [], "no_such_module_anywhere"),
    "raises": ("raise RuntimeError('not today')\n", [], "not today"),
    "exits": ("import sys\nsys.exit(0)\n", [], "model"),
    "holds no model": ("x = 1\n", [], "model"),
    "empty": ("", [], "model"),
    "model is not a module": ("model = 'resnet'\n", [], "Module"),
    "two classes": ("from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...\n", [], "A.*B"),
    "constructor needs arguments": (
        "from torch import nn\nclass A(nn.Module):\n    def __init__(self, width): super().__init__()\n",
        [],
        "argument",
    ),
    "wrong input": (GOOD, ["--input", "2x17"], "17"),
    "malformed input": (GOOD, ["--input", "2xx17"], "2xx17"),
    "unknown dtype": (GOOD, ["--input", "2x4:float99"], "float99"),
    "p zero": (GOOD, ["--p", "0"], r"\bp\b"),
    "unknown option value": (GOOD, ["--batchnorm", "fold"], "fold"),
    "unknown option": (GOOD, ["--no-such-option"], "no-such-option"),
}


def inspect(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs fxenorm-inspect in a process of its own, as a user does."""
    code = "import sys; from fxenorm.inspect.cli import main; sys.exit(main())"
    paths = [str(Path(fxenorm.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("name", FILES)
def test_command_line_says_one_clear_thing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxenorm.inspect.cli import main

    text, options, message = FILES[name]
    path = tmp_path / "model.py"
    if text is not None:
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["model.py", *options])
    except SystemExit as stop:  # argparse
        code = stop.code
    streams = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in streams.err + streams.out and streams.out == ""
    import re

    assert re.search(message, streams.err, re.DOTALL), streams.err
    assert path.exists() is (text is not None) and (text is None or path.read_text() == text)


def test_command_line_exit_codes_of_the_real_process(tmp_path: Path) -> None:
    missing = inspect("nowhere.py", cwd=tmp_path)
    assert missing.returncode == 2 and "nowhere.py" in missing.stderr and "Traceback" not in missing.stderr
    unknown = inspect("torchvision:resnet17", cwd=tmp_path)
    assert unknown.returncode == 2 and "resnet17" in unknown.stderr and "Traceback" not in unknown.stderr
    (tmp_path / "model.py").write_text(GOOD)
    good = inspect("model.py", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "5" in good.stdout


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    for arguments, code in ((["--help"], 0), (["--no-such-option"], 2), ([], 2)):
        answer = inspect(*arguments, cwd=tmp_path)
        assert answer.returncode == code and "was imported" not in answer.stderr


class _EvalOnly(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ValueError("no training")
        return super().forward(x)


class _Drawn(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)
        return y if random.random() < 0.5 else -y


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (nn.Linear(3, 2), {"exclude": "nothing"}, "exclude: no parameter"),
        (nn.Linear(3, 2), {"p": float("inf"), "c": 2.0}, "c is ignored"),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), {"p": float("inf")}, "can be folded"),
        (_EvalOnly(3, 2), {}, "could not be traced in train mode"),
        (_Drawn(3, 2), {}, "not exact"),
    ],
    ids=["exclude", "ignored c", "folds", "one mode", "not exact"],
)
def test_a_warning_of_analyze_points_at_the_users_line(model: nn.Module, options: dict[str, Any], said: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fxenorm.analyze(model, **options)
    places = [warning.filename for warning in seen if said in str(warning.message)]
    assert places == [__file__]
