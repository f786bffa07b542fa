"""The model argument of ``fxenorm-inspect``: files, calls, modules of packages, models of other libraries."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fxenorm.errors import ModelFileError
from fxenorm.inspect.arguments.input_spec import as_arguments, parse_input
from fxenorm.inspect.cli import main
from fxenorm.inspect.targets.load import check_target, load
from fxenorm.inspect.targets.target import parse_target

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5, *, out=3, names=()):
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, out)

    def forward(self, x):
        return self.second(self.first(x).relu())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes files below the working directory; modules that are imported from there are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__in__", "/").replace("_py", ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def width_of(target: str) -> int:
    """Width of the hidden layer of the `Net` that was found."""
    return load(target, (), 0).model.first.out_features


CALLS = {
    "Net": 5,
    "Net()": 5,
    "Net(7)": 7,
    "Net(width=6)": 6,
    "Net(6, out=2, names=['a:b', {'c': (1, -2.5)}])": 6,
    "build(depth=3)": 3,
    "holder.build(4)": 4,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_made_with_its_literals(folder: Callable[..., Path], name: str) -> None:
    text = "def build(depth):\n    return Net(depth)\nclass holder:\n    build = staticmethod(build)\n"
    folder(model_py=NET + text)
    assert width_of(f"model.py:{name}") == CALLS[name]
    assert width_of(f"model:{name}") == CALLS[name]  # the same as a module


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Net(depth)", "its arguments are literals"),
        ("Net(*[3])", "its arguments are literals"),
        ("Net(**{'width': 3})", "its arguments are literals"),
        ("Net(width=__import__('os').getcwd())", "its arguments are literals"),
        ("Net(3", "is not the name of a Python object"),
        ("Net 3)", "its arguments are literals"),
        ("(3)", "its arguments are literals"),
        ("Net(3)(4)", "is not the name of a Python object"),
        ("Net(depth=3)", r"Net\(\) in .*unexpected keyword argument 'depth'"),
        ("made(3)", "made in .* has type Net: expected something that can be called"),
        ("three(3)", r"three\(\) in .* returned int"),
        ("Net(width='wide')", r"Net\(\) in .*TypeError"),
        ("build", r"write the call, as .*:build\(depth=\.\.\.\)"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    folder(model_py=NET + "made = Net()\ndef build(depth): ...\ndef three(x): return x\n")
    assert main([f"model.py:{name}"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert re.search(message, told.err), told.err


PACKAGE = {
    "pkgd__in____init___py": "",
    "pkgd__in__parts_py": "width = 8\n",
    "pkgd__in__inner__in____init___py": "",
    "pkgd__in__inner__in__model_py": f"from ..parts import width\nfrom pkgd import parts\n{NET}\nmodel = Net(width)\n",
}


@pytest.mark.parametrize(
    "target",
    [
        "pkgd/inner/model.py",
        "pkgd.inner.model",
        "pkgd.inner.model:Net(8)",
        "pkgd/inner/model.py:model",
        "pkgd.inner:model.Net(8)",
    ],
)
def test_files_inside_packages_import_relatively(folder: Callable[..., Path], target: str) -> None:
    folder(**PACKAGE)
    if target.startswith("pkgd.inner:"):
        folder(pkgd__in__inner__in____init___py="from . import model\n")
    before, arguments = list(sys.path), list(sys.argv)
    assert width_of(target) == 8
    assert (sys.path, sys.argv) == (before, arguments)


def test_a_file_of_a_package_is_found_from_another_folder(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(**PACKAGE, elsewhere__in__empty="")
    monkeypatch.chdir(root / "elsewhere")
    assert width_of(str(root / "pkgd" / "inner" / "model.py")) == 8


def test_names_of_a_packages_files_do_not_hide_those_of_python(folder: Callable[..., Path]) -> None:
    folder(**PACKAGE, pkgd__in__inner__in__colorsys_py="raise RuntimeError('taken for the module of Python')")
    sys.modules.pop("colorsys", None)
    folder(pkgd__in__inner__in__model_py=f"import colorsys\n{NET}\nmodel = Net(8)\n")
    assert width_of("pkgd/inner/model.py") == 8


def test_the_working_directory_is_on_the_path(folder: Callable[..., Path]) -> None:
    folder(width_of_net_py="width = 9", scripts__in__model_py=f"from width_of_net import width\n{NET}\nmodel = Net(width)")
    assert width_of("scripts/model.py") == 9


def test_modules_can_be_found_while_the_model_runs(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    inside = NET.replace("return self", "import found_late\n        return found_late.one * self")
    folder(found_late_py="one = 1", model_py=inside)
    assert main(["model.py", "--input", "2x4"]) == 0
    assert "Groups: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nb.ipynb", "is a notebook: save its code as a Python file"),
        ("net.safetensors", "holds weights.*--weights net.safetensors"),
        ("pkge.no_such.model:Net", "no module 'pkge', neither in the working directory nor installed"),
        ("loose.py", r"no known parent package.*put an __init__\.py beside it, or name it .*\.loose"),
        ("absent.py", r"absent\.py:1, in <module>: ModuleNotFoundError.*PYTHONPATH"),
        ("broken.py", r"broken\.py:2: SyntaxError: .*: def f\(:"),
        ("math", "math holds no model"),
        ("hf:nothing", "no file nothing: name a folder with a config.json"),
        ("hf:.", "no file config.json: name a folder with a config.json"),
        ("hf:notes.json", "is no JSON"),
        ("hf:list.json", "it has no model_type"),
        ("hf:own.json", "asks for code of its own"),
        ("hf:unknown.json", "Transformers cannot build the model"),
        ("transformers:bert", "a model of Transformers is written hf:FOLDER"),
        ("timm:resnet19", "timm has no model 'resnet19': did you mean .*resnet18"),
    ],
)
def test_targets_that_cannot_be_loaded_are_one_line(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], target: str, message: str
) -> None:
    if target.startswith("timm") or "unknown" in target:
        pytest.importorskip("timm" if target.startswith("timm") else "transformers")
    root = folder(loose_py="from .parts import width", absent_py="import fxenorm_no_such", broken_py="x = 1\ndef f(:\n    pass")
    texts = {"nb.ipynb": "{}", "net.safetensors": "", "notes.json": "{", "list.json": "[]"}
    texts |= {"own.json": '{"model_type": "a", "auto_map": {"AutoModel": "b.C"}}', "unknown.json": '{"model_type": "no_such"}'}
    for name, text in texts.items():
        (root / name).write_text(text)
    assert main([target]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and re.search(message, told.err), told.err


def test_a_model_that_uses_another_is_the_one(folder: Callable[..., Path]) -> None:
    """Of Backbone and Model(Backbone) the second: no other class names it."""
    outer = "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.body = Net()\n"
    folder(model_py=NET + outer)
    assert type(load("model.py", (), 0).model).__name__ == "Model"


def test_a_notebooks_commands_are_left_out(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder(model_py=f"get_ipython().run_line_magic('matplotlib', 'inline')\nget_ipython().system('ls')\n{NET}")
    assert width_of("model.py") == 5
    assert "commands of a notebook (get_ipython) are left out" in capsys.readouterr().err


def test_a_file_that_asks_for_arguments_gets_none(folder: Callable[..., Path]) -> None:
    text = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=6)\n"
    folder(model_py=f"{text}{NET}\nmodel = Net(parser.parse_args().width)\n")
    assert width_of("model.py") == 6


def test_what_the_main_guard_protects_does_not_run(folder: Callable[..., Path]) -> None:
    root = folder(model_py=f"{NET}\nif __name__ == '__main__':\n    open('trained', 'w')\n")
    assert width_of("model.py") == 5 and not (root / "trained").exists()


def test_models_of_timm_have_random_weights() -> None:
    pytest.importorskip("timm")
    assert type(load("timm:resnet10t", (), 0).model).__name__ == "ResNet"


LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "vocab_size": 30,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", None])
def test_a_configuration_of_transformers(folder: Callable[..., Path], architecture: str | None) -> None:
    pytest.importorskip("transformers")
    root = folder()
    config: dict[str, Any] = {**LLAMA, "architectures": [architecture] if architecture else None}
    (root / "config.json").write_text(json.dumps(config))
    for target in ("hf:config.json", "hf:.", f"hf:{root}"):
        model = load(target, (), 0).model
        assert type(model).__name__ == (architecture or "LlamaModel") and len(list(model.parameters())) > 10


def test_keyword_inputs_and_positional_ones() -> None:
    assert as_arguments([]) == (None, None)
    positional, named = as_arguments([parse_input("2x3"), parse_input("mask=2x7:bool"), parse_input("4:int64")])
    assert positional is not None and [tuple(t.shape) for t in positional] == [(2, 3), (4,)]
    assert named is not None and list(named) == ["mask"] and named["mask"].dtype == torch.bool and named["mask"].all()


MASKED = NET.replace("forward(self, x)", "forward(self, x, *, mask)").replace(".relu())", ".relu() * mask)")


def test_a_keyword_input_reaches_forward(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder(model_py=MASKED)
    assert main(["model.py", "--input", "2x4", "--input", "mask=2x5:bool", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["free_channels"] == 5
    assert main(["model.py", "--input", "2x4", "--input", "cover=2x5:bool"]) == 2
    assert "cover" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["torchvision:resnet18", "timm:a", "hf:b"])
def test_names_of_catalogues_are_taken_apart(text: str) -> None:
    found = parse_target(text)
    assert (found.kind, found.place) == tuple(text.split(":"))


def test_a_missing_module_is_told_before_torch_is_needed() -> None:
    with pytest.raises(ModelFileError, match="no module"):
        check_target("no_such_package.model:Net")


def test_a_large_configuration_is_shown_without_weights(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    (folder() / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr("fxenorm.inspect.targets.from_config._LARGE", 1000)
    assert main(["hf:config.json", "--modes", "eval"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("hf:config.json: LlamaForCausalLM, no weights\n") and re.search(r"norm +-", told)
    assert not any(parameter.is_meta for parameter in load("hf:config.json", (), 0, with_values=True).model.parameters())


def test_weights_that_transformers_renames_are_read_by_it(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Mixtral's files hold every expert by itself, the model all in one tensor."""
    transformers = pytest.importorskip("transformers")
    sizes = {key: LLAMA[key] for key in LLAMA if key not in ("model_type", "architectures")}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**sizes, "num_local_experts": 3}))
    root = folder()
    model.save_pretrained(root / "mixtral")
    capsys.readouterr()
    assert main(["hf:mixtral", "--modes", "eval", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    import fxenorm

    plan = fxenorm.analyze(model.eval(), example_kwargs={"input_ids": torch.arange(8)[None]}, modes="eval")
    assert answer["weights"] == "weights of mixtral" and answer["totals"]["norm"] == pytest.approx(float(plan.norm()))
