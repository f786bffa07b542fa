"""``--weights``, ``--balance``, ``--undo`` and ``--compare``: files of weights are read, written whole, and taken back."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import CheckpointError
from fxenorm.inspect.checkpoints import write
from fxenorm.inspect.checkpoints.fit import fit
from fxenorm.inspect.checkpoints.read import read_checkpoint
from fxenorm.inspect.cli import main
from fxenorm.inspect.whole_files import WholeFiles, refuse_existing

safetensors = pytest.importorskip("safetensors.torch")

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.third, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        if tied:
            self.third.weight = self.second.weight

    def forward(self, x):
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(self.third(x).relu())

example_inputs = torch.linspace(-1, 1, 12).reshape(3, 4)
"""


def net(tied: bool = False, seed: int = 1) -> nn.Module:
    """A network with random weights, as the file builds it."""
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(MODEL, namespace)
    torch.manual_seed(seed)
    model = namespace["Net"](tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape[0], *[1] * (parameter.dim() - 1)) * 4 + 0.5)
    return model.eval()


def outputs(model: nn.Module) -> torch.Tensor:
    kind = next(model.parameters()).dtype
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 12).reshape(3, 4).to(kind)).double()


def with_weights(tensors: dict[str, torch.Tensor], tied: bool) -> nn.Module:
    """A new network that has loaded a state dict in the usual way."""
    model = net(tied, seed=9).to(tensors["first.weight"].dtype)
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"third.weight"}
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    """Norm of what is counted: weights and gamma, once each."""
    counted = {name: value for name, value in tensors.items() if name.endswith(".weight")}
    return float(torch.stack([value.double().square().sum() for value in counted.values()]).sum())


# ---------------------------------------------------------------- the formats


def save_safetensors(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    own = {name: value.clone() for name, value in state.items() if not (tied and name == "third.weight")}
    safetensors.save_file(own, path / "w.safetensors", metadata={"format": "pt", "epoch": "7"})
    return "w.safetensors"


def save_twice(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    safetensors.save_file({name: value.clone() for name, value in state.items()}, path / "w.safetensors")
    return "w.safetensors"


def save_sharded(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    own = {name: value.clone() for name, value in state.items() if not (tied and name == "third.weight")}
    names = sorted(own)
    (path / "parts").mkdir()
    places = {name: f"model-{1 + (k >= 5)}-of-2.safetensors" for k, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: own[name] for name in names if places[name] == file}
        safetensors.save_file(part, path / "parts" / file, metadata={"format": "pt", "of": file})
    index = {"metadata": {"total_size": 5}, "weight_map": places}
    (path / "parts" / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "parts" / "config.json").write_text("{}")
    return "parts"


def save_index(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    return save_sharded(path, state, tied) + "/model.safetensors.index.json"


def save_state_dict(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    torch.save(state, path / "w.pt")
    return "w.pt"


def save_training_state(path: Path, state: dict[str, torch.Tensor], tied: bool) -> str:
    """As a training program does: wrapped, with other things beside it."""
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "model": wrapped, "optimizer": {"lr": 0.1}}, path / "w.pt")
    return "w.pt"


FORMATS = [save_safetensors, save_twice, save_sharded, save_index, save_state_dict, save_training_state]


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of what was written, read without fxenorm."""
    if path.is_dir():
        return {k: v for file in sorted(path.glob("*.safetensors")) for k, v in safetensors.load_file(file).items()}
    if path.suffix == ".safetensors":
        return safetensors.load_file(path)
    content = torch.load(path, weights_only=True)
    return {name.removeprefix("module."): value for name, value in content.get("model", content).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
def test_a_balanced_checkpoint_has_the_same_form_and_outputs_and_a_smaller_norm(
    folder: Path, capsys: pytest.CaptureFixture[str], save: Callable[..., str], tied: bool, dtype: torch.dtype
) -> None:
    model = net(tied).to(dtype)
    given = save(folder, model.state_dict(), tied)
    target = f"model.py:Net(tied={tied})"
    spread = "parts" in given
    out, back = ("out", "back") if spread else (f"out{Path(given).suffix}", f"back{Path(given).suffix}")
    line = [target, "--weights", given, "--input", f"3x4:{str(dtype).removeprefix('torch.')}"]
    assert main([*line, "--balance", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["balance"]
    assert told["written"] == out and told["norm"][1] < told["norm"][0] * 0.99
    before, after = tensors_in(folder / (given.split("/")[0])), tensors_in(folder / out)
    assert [(k, v.dtype, v.shape) for k, v in sorted(before.items())] == [(k, v.dtype, v.shape) for k, v in sorted(after.items())]
    loaded = with_weights(after, tied)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-5, atol=1e-5 if dtype is torch.float32 else 0)
    assert norm_of(after) < norm_of(before) * 0.99
    for name in before:
        if "running" in name or "batches" in name:
            assert torch.equal(before[name], after[name])
    # And back.
    line[2] = out + "/model.safetensors.index.json" if given.endswith(".json") else out
    assert main([*line, "--balance", back, "--undo", f"{out}.log_scales.json"]) == 0
    for name, value in tensors_in(folder / back).items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=0 if dtype is torch.bfloat16 else 1e-7)
    leftovers = [path.name for path in folder.rglob(".*")]
    assert leftovers == []


def test_the_rest_of_the_files_is_kept(folder: Path) -> None:
    state = net().state_dict()
    save_sharded(folder, state, False)
    save_training_state(folder, state, False)
    save_safetensors(folder, state, False)
    for given, out in (("parts", "out"), ("w.pt", "out.pt"), ("w.safetensors", "out.safetensors")):
        assert main(["model.py", "--weights", given, "--balance", out]) == 0
    index = (folder / "parts" / "model.safetensors.index.json").read_text()
    assert (folder / "out" / "model.safetensors.index.json").read_text() == index
    assert (folder / "out" / "config.json").read_text() == "{}"
    for file in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        with safetensors.safe_open(folder / "out" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "of": file}
            assert {json.loads(index)["weight_map"][name] for name in opened.keys()} == {file}  # noqa: SIM118
    with safetensors.safe_open(folder / "out.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "epoch": "7"}
    content = torch.load(folder / "out.pt", weights_only=True)
    assert (content["epoch"], content["optimizer"]) == (3, {"lr": 0.1})
    kept = json.loads((folder / "out.safetensors.log_scales.json").read_text())
    assert len(kept["log_scales"]) == 18 and kept["options"]["p"] == 2.0 and kept["weights"] == "w.safetensors"


def test_tied_tensors_of_a_state_dict_stay_one_tensor(folder: Path) -> None:
    save_state_dict(folder, net(True).state_dict(), True)
    assert main(["model.py:Net(True)", "--weights", "w.pt", "--balance", "out.pt"]) == 0
    after = torch.load(folder / "out.pt", weights_only=True)
    assert after["second.weight"].data_ptr() == after["third.weight"].data_ptr()


def test_log_scales_are_taken_back_under_the_options_that_they_were_found_with(folder: Path) -> None:
    before = net().state_dict()
    save_state_dict(folder, before, False)
    assert main(["model.py", "--weights", "w.pt", "--balance", "out.pt", "--p", "inf", "--exclude", "third", "--c", "1"]) == 0
    assert main(["model.py", "--weights", "out.pt", "--balance", "back.pt", "--undo", "out.pt.log_scales.json"]) == 0
    for name, value in tensors_in(folder / "back.pt").items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what is refused


class Attack:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


def make_bad_files(folder: Path) -> None:
    """Writes files of weights that cannot be used, each in its own way."""
    state = net().state_dict()
    torch.save(state, folder / "w.pt")
    save_sharded(folder, state, False)
    (folder / "w.safetensors").write_bytes(b"\x00" * 64)
    (folder / "junk.pt").write_bytes(b"junk")
    (folder / "empty.pt").write_bytes(b"")
    with open(folder / "code.pt", "wb") as file:
        pickle.dump({"a": Attack()}, file)
    torch.save({"a": Attack()}, folder / "zip_code.pt")
    torch.save(nn.Sequential(nn.Linear(4, 3)), folder / "whole.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, folder / "nothing.pt")
    torch.save({**state, "head.weight": torch.zeros(5, 6)}, folder / "shape.pt")
    torch.save({**state, "head.weight": torch.zeros(3, 6, dtype=torch.int8)}, folder / "kind.pt")
    torch.save({k: v for k, v in state.items() if k != "head.bias"}, folder / "missing.pt")
    torch.save({**state, "more": torch.zeros(1)}, folder / "more.pt")
    torch.save({k: v.clone() for k, v in state.items()}, folder / "untied.pt")
    (folder / "no.index.json").write_text('{"weight_map": []}')
    (folder / "away.index.json").write_text('{"weight_map": {"a": "../w.safetensors"}}')
    (folder / "gone.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    other = {"log_scales": [0.5] * 18, "fingerprint": "x", "options": {"p": 2.0}}  # as many as the model has
    (folder / "other.log_scales.json").write_text(json.dumps(other))
    (folder / "fewer.log_scales.json").write_text(json.dumps({**other, "log_scales": [0.5]}))
    (folder / "nan.log_scales.json").write_text('{"log_scales": [NaN], "fingerprint": "x", "options": {"p": 2.0}}')
    (folder / "there.pt").write_text("mine")
    (folder / "logged.pt.log_scales.json").write_text("mine")
    (folder / "empty").mkdir()


BAD = [
    ("--weights absent.pt", "no such file: absent.pt"),
    ("--weights w.safetensors", "cannot be read as safetensors"),
    ("--weights junk.pt", "cannot be read as a state dict"),
    ("--weights empty.pt", "cannot be read as a state dict"),
    ("--weights code.pt", "is a pickle with code in it, which is not run: save model.state_dict"),
    ("--weights zip_code.pt", "is a pickle with code in it, which is not run: save model.state_dict"),
    ("--weights whole.pt", "is a pickle with code in it, which is not run: save model.state_dict"),
    ("--weights list.pt", "holds a list, no state dict"),
    ("--weights nothing.pt", "holds no state dict: its keys are epoch, lr"),
    ("--weights shape.pt", r"head.weight is float\[5, 6\] in the file and float\[3, 6\] in the model"),
    ("--weights kind.pt", r"head.weight is integer\[3, 6\] in the file"),
    ("--weights missing.pt", r"1 missing \(head.bias\)"),
    ("--weights more.pt", r"1 unexpected \(more\)"),
    ("--weights no.index.json", "is no index of weights"),
    ("--weights away.index.json", "its files are not beside it"),
    ("--weights gone.index.json", "names gone.safetensors, which is not beside it"),
    ("--weights empty", "is a folder without weights"),
    ("--balance out.pt", "name it with --weights FILE"),
    ("--weights w.pt --balance there.pt", "there.pt exists: .*--force"),
    ("--weights w.pt --balance logged.pt", "logged.pt.log_scales.json exists: .*--force"),
    ("--weights w.pt --balance w.pt", "w.pt exists: .*--force"),
    ("--weights w.pt --balance empty", "empty is a folder: name the file"),
    ("--weights w.pt --balance out.safetensors", "must not end in .safetensors"),
    ("--weights w.pt --balance nowhere/out.pt", "there is no folder nowhere"),
    ("--weights parts --balance there.pt", "must be a folder"),
    ("--weights parts --balance out.safetensors", "must be a folder"),
    ("--weights parts --balance nowhere/out", "there is no folder nowhere"),
    ("--weights parts --balance parts", "exists: .*--force"),
    ("--weights w.pt --balance out.pt --undo absent.json", "no such file: absent.json"),
    ("--weights w.pt --balance out.pt --undo no.index.json", "holds no log-scales"),
    ("--weights w.pt --balance out.pt --undo nan.log_scales.json", "is not finite"),
    ("--weights w.pt --balance out.pt --undo other.log_scales.json", "of another model"),
    ("--weights w.pt --balance out.pt --undo fewer.log_scales.json", "of another model"),
    ("--weights w.pt --undo other.log_scales.json", "--undo: name the file to write, with --balance OUT"),
    ("--compare w.pt absent.pt", "no such file: absent.pt"),
    ("--compare w.pt shape.pt", "shape.pt does not fit the model"),
    ("--compare w.pt w.pt --balance out.pt", "--compare: not together with --balance"),
    ("--compare w.pt", "--compare"),
    ("--dot there.pt", "there.pt exists: .*--force"),
    ("--dot nowhere/a.dot", "there is no folder nowhere"),
    ("--dot empty", "is a folder: name a file"),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "model.py").write_text(MODEL)
    make_bad_files(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    found = {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    return {name: value for name, value in found.items() if "__pycache__" not in name}


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_files_are_one_line_with_exit_code_2_and_nothing_is_written(
    bad_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    monkeypatch.chdir(bad_files)
    before = contents(bad_files)
    try:
        code = main(["model.py", *line.split()])
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    told = capsys.readouterr()
    assert code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
    assert re.search(message, told.err), told.err
    assert contents(bad_files) == before


def test_tensors_that_are_tied_in_the_model_may_not_differ_in_the_file(bad_files: Path) -> None:
    model = net(True)
    weights = model.second.weight.clone()
    with pytest.raises(CheckpointError, match=r"second.weight and third.weight are one tensor in the model and differ"):
        fit(model, read_checkpoint(str(bad_files / "untied.pt")))
    assert torch.equal(model.second.weight, weights)


def test_force_replaces_what_is_there(folder: Path) -> None:
    before = net().state_dict()
    save_state_dict(folder, before, False)
    assert main(["model.py", "--weights", "w.pt", "--balance", "w.pt", "--force"]) == 0
    assert norm_of(tensors_in(folder / "w.pt")) < norm_of(before) * 0.99
    assert main(["model.py", "--weights", "w.pt", "--balance", "w.pt", "--force", "--undo", "w.pt.log_scales.json"]) == 0
    assert norm_of(tensors_in(folder / "w.pt")) == pytest.approx(norm_of(before))


# ---------------------------------------------------------------- interrupted


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Makes a function fail at its k-th call."""

    def plant(name: str, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        owner, _, leaf = name.rpartition(".")
        home = {"os": os, "torch": torch, "write": write}[owner]
        true, calls = getattr(home, leaf), [0]

        def failing(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise error("planted")
            return true(*arguments, **keywords)

        monkeypatch.setattr(home, leaf, failing)

    yield plant


PLACES = [("torch.save", 1), ("os.fsync", 1), ("os.fsync", 2), ("os.replace", 1), ("os.replace", 2)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("function", "at"), PLACES)
def test_an_interrupted_write_leaves_everything_as_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str], interrupted: Any, function: str, at: int, there: bool, error: Any
) -> None:
    save_state_dict(folder, net().state_dict(), False)
    for name in ("out.pt", "out.pt.log_scales.json") if there else ():
        (folder / name).write_text("mine")
    before = contents(folder)
    interrupted(function, at, error)
    code = main(["model.py", "--weights", "w.pt", "--balance", "out.pt", "--force"])
    assert code == (130 if error is KeyboardInterrupt else 2) and capsys.readouterr().err.count("\n") == 1
    assert contents(folder) == before


def test_a_folder_that_was_made_for_an_interrupted_write_goes_again(folder: Path, interrupted: Any) -> None:
    save_sharded(folder, net().state_dict(), False)
    before = contents(folder)
    interrupted("os.replace", 2)  # the folder takes its place in one rename, the log-scales in another
    assert main(["model.py", "--weights", "parts", "--balance", "out"]) == 130
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["os.replace", "os.rename"])
def test_a_folder_of_shards_is_replaced_as_a_whole_and_keeps_what_else_it_holds(
    folder: Path, interrupted: Any, name: str
) -> None:
    save_sharded(folder, net().state_dict(), False)
    (folder / "out").mkdir()
    for old in ("w-00001-of-00002.safetensors", "notes.txt"):
        (folder / "out" / old).write_text("mine")
    (folder / "out" / "more").mkdir()
    (folder / "out" / "more" / "inner").write_text("mine")
    before = contents(folder)
    command = ["model.py", "--weights", "parts", "--balance", "out", "--force"]
    interrupted(name, 1)
    assert main(command) == 130
    assert contents(folder) == before
    assert main(command) == 0
    assert (folder / "out" / "notes.txt").read_text() == (folder / "out" / "more" / "inner").read_text() == "mine"
    made = {path.name for path in (folder / "parts").iterdir()}
    assert made <= {path.name for path in (folder / "out").iterdir()}
    assert not any(path.name.startswith(".") for path in folder.iterdir())


def test_whole_files_put_back_what_they_have_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(builtins.ZeroDivisionError), WholeFiles() as whole:
        whole.beside(tmp_path / "a").write_text("new")
        raise ZeroDivisionError
    assert contents(tmp_path) == {str(tmp_path / "a"): b"old"}
    with WholeFiles() as whole:
        whole.beside(tmp_path / "a").write_text("new")
    assert contents(tmp_path) == {str(tmp_path / "a"): b"new"}
    with pytest.raises(CheckpointError, match="exists"):
        refuse_existing([tmp_path / "a"], force=False)
    refuse_existing([tmp_path / "a", tmp_path / "b"], force=True)


# ---------------------------------------------------------------- compare


def test_two_checkpoints_that_differ_by_a_rescaling_are_the_same_in_canonical_form(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_safetensors(folder, net().state_dict(), False)
    torch.save(net(seed=5).state_dict(), folder / "other.pt")
    assert main(["model.py", "--weights", "w.safetensors", "--balance", "out.safetensors"]) == 0
    capsys.readouterr()
    assert main(["model.py", "--compare", "w.safetensors", "out.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["compare"]
    assert found["distance"] > 0.1 and found["canonical_distance"] < 1e-6
    assert main(["model.py", "--compare", "w.safetensors", "other.pt"]) == 0
    told = capsys.readouterr().out
    assert "in canonical form" in told and "permutations and signs of channels remain" in told
    assert float(re.findall(r"in canonical form +([\d.e+-]+)", told)[0]) > 0.1


def test_a_plain_distance_is_that_of_all_parameters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = net(), net(seed=5)
    torch.save(one.state_dict(), folder / "a.pt")
    torch.save(other.state_dict(), folder / "b.pt")
    assert main(["model.py", "--compare", "a.pt", "b.pt", "--json"]) == 0
    flat = [torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()]) for model in (one, other)]
    expected = float((flat[0] - flat[1]).norm() / flat[0].norm())
    assert json.loads(capsys.readouterr().out)["compare"]["distance"] == pytest.approx(expected)


# ---------------------------------------------------------------- weights of other models


def test_weights_are_those_of_the_file_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state_dict(folder, net().state_dict(), False)
    assert main(["model.py", "--weights", "w.pt", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["norm"] == pytest.approx(float(fxenorm.analyze(net(), torch.ones(3, 4)).norm()))
    assert answer["weights"] == "weights of w.pt"
    assert main(["model.py", "--weights", "w.pt"]) == 0
    assert capsys.readouterr().out.startswith("model.py: Net, weights of w.pt\n")


@pytest.mark.parametrize("target", ["torchvision:squeezenet1_1", "timm:resnet10t"])
def test_random_weights_are_called_so(folder: Path, capsys: pytest.CaptureFixture[str], target: str) -> None:
    pytest.importorskip(target.partition(":")[0])
    assert main([target, "--modes", "eval", "--input", "2x3x32x32"]) == 0
    assert ", random weights\n" in capsys.readouterr().out


def test_a_folder_of_transformers_with_its_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30}
    config = transformers.LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True, dtype="bfloat16", **sizes)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.save_pretrained(folder / "llama", max_shard_size="6KB")
    capsys.readouterr()
    assert main(["hf:llama", "--balance", "balanced", "--modes", "eval"]) == 0
    assert "weights of llama" in capsys.readouterr().out
    assert len(list((folder / "llama").glob("*.safetensors"))) > 1
    assert {path.name for path in (folder / "llama").iterdir()} == {path.name for path in (folder / "balanced").iterdir()}
    again = transformers.LlamaForCausalLM.from_pretrained(folder / "balanced", local_files_only=True, dtype="auto").eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        one, other = (made(tokens, use_cache=False).logits for made in (model, again))
    assert torch.equal(one, other) and again.dtype is torch.bfloat16
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    # Piece by piece, by two processes, and in memory as --verify asks for: the same files; and all of it taken back.
    assert main(["hf:llama", "--balance", "shared", "--modes", "eval", "--jobs", "2"]) == 0
    assert main(["hf:balanced", "--balance", "undone", "--modes", "eval", "--undo", "balanced.log_scales.json"]) == 0
    for path in (folder / "llama").glob("*.safetensors"):
        assert (folder / "shared" / path.name).read_bytes() == (folder / "balanced" / path.name).read_bytes()
        old, undone = (safetensors.load_file(folder / name / path.name) for name in ("llama", "undone"))
        assert all(torch.equal(old[name], undone[name]) for name in old)
    assert main(["hf:llama", "--balance", "shared", "--modes", "eval"]) == 2
    assert "shared is there already" in capsys.readouterr().err


def test_inputs_of_the_file_take_the_type_of_the_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state_dict(folder, net().to(torch.bfloat16).state_dict(), False)
    assert main(["model.py", "--weights", "w.pt", "--verify"]) == 0
    assert "verified: outputs unchanged" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_read_and_strict_json_has_no_nan(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = net().state_dict()
    state["second.weight"][0, 0] = float("nan")
    save_state_dict(folder, state, False)
    torch.save(net().state_dict(), folder / "other.pt")
    assert main(["model.py", "--weights", "w.pt", "--compare", "other.pt", "w.pt", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert answer["compare"]["distance"] is None and answer["held"] and answer["totals"]["norm"] is None


RECURRENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.r, self.c = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(self.r(self.a(x).relu())[0])

def shapes():
    with torch.device("meta"):
        return Net()
"""


@pytest.mark.parametrize("name", ["Net", "shapes"])
def test_weights_reach_modules_that_keep_their_own_list_of_them(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    namespace: dict[str, Any] = {"__name__": "recurrent"}
    exec(RECURRENT, namespace)
    (folder / "recurrent.py").write_text(RECURRENT)
    models = [namespace["Net"](), namespace["Net"]()]
    torch.save(models[0].state_dict(), folder / "w.pt")
    assert main([f"recurrent.py:{name}", "--weights", "w.pt", "--input", "2x3x4", "--balance", "out.pt", "--verify"]) == 0
    models[1].load_state_dict(torch.load(folder / "out.pt", weights_only=True))
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(models[1](x), models[0](x))
    assert not torch.equal(models[0].a.weight, models[1].a.weight)
