"""`balance_checkpoint`: the same function, a smaller norm, the same files, whatever interrupts it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.checkpoint import balance_checkpoint as entry
from fxenorm.checkpoint.components import components, restricted
from fxenorm.errors import CheckpointError, OptionError
from tests.checkpoint.models import Blocks

safetensors = pytest.importorskip("safetensors.torch")


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4)
    )


def unbalanced(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Multiplies each row of each weight by a factor of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= torch.exp(1.5 * torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1)))
    return model.to(dtype).eval()


def save_sharded(model: nn.Module, folder: Path, shards: int = 3) -> None:
    """Saves a model without its aliases over several files with an index, metadata and a further file."""
    folder.mkdir()
    state = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    state.update({name: tensor.clone() for name, tensor in model.named_buffers()})
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensor for place, (name, tensor) in enumerate(state.items()) if place % shards == number}
        safetensors.save_file(part, folder / file, {"format": "pt", "made by": "a test"})
        where.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "tokenizer.json").write_text("{}")


def loaded(model: nn.Module, folder: Path) -> nn.Module:
    """Loads the files of a folder, or one file, into a model."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(safetensors.load_file(file))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"head.weight"}
    return model.eval()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """A sharded checkpoint of bfloat16 blocks."""
    save_sharded(unbalanced(Blocks(), torch.bfloat16), tmp_path / "source")
    return tmp_path / "source"


def test_sharded_bfloat16_gives_the_same_bits_of_outputs(blocks: Path) -> None:
    target = blocks.parent / "target"
    result = fxenorm.balance_checkpoint(blocks, target, Blocks(), check="all")
    old, new = (loaded(Blocks().to(torch.bfloat16), folder) for folder in (blocks, target))
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(old(tokens), new(tokens))
    assert result.norm_after < 0.9 * result.norm_before and result.components == 3
    assert result.checked is not None and result.checked.modules == ("layers.0", "layers.1", "layers.2")
    assert "outputs unchanged" in str(result)
    assert {path.name for path in target.iterdir()} == {path.name for path in blocks.iterdir()}
    for file in blocks.glob("*.safetensors"):
        length = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.read_bytes()[:length] == (target / file.name).read_bytes()[:length]  # names, order and metadata
    assert {path.name for path in blocks.parent.iterdir()} == {"source", "target", "target.log_scales.json"}


@pytest.mark.parametrize("options", [{}, {"p": 1.0, "c": 1.3}, {"p": math.inf}, {"balance_last": False, "c": "adaptive"}])
def test_components_one_by_one_are_the_whole(blocks: Path, options: dict[str, object]) -> None:
    # In float64 rounding hides nothing; powers of two are of 16-bit weights.
    model = unbalanced(Blocks(tied=False), torch.float64)
    source = blocks.parent / "wide"
    save_sharded(model, source)
    fxenorm.balance_checkpoint(source, blocks.parent / "target", Blocks(tied=False), **options)
    new = loaded(Blocks(tied=False).double(), blocks.parent / "target")
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(new(tokens), model(tokens), rtol=1e-10, atol=1e-12)
    fxenorm.analyze(model, **options).balance()
    for (name, one), other in zip(model.named_parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-12, msg=name)


def test_one_file_with_folded_norms_and_undone_by_the_log_scales(tmp_path: Path) -> None:
    model = unbalanced(convolutional(), torch.float64)
    model[1].running_var.uniform_(0.1, 9.0)
    source, target = tmp_path / "model.safetensors", tmp_path / "balanced.safetensors"
    safetensors.save_file(model.state_dict(), source)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.device("meta"):
        meta = convolutional().double()
    fxenorm.balance_checkpoint(source, target, meta, example_inputs=x, batchnorm="folded")
    new = loaded(convolutional().double(), target)
    torch.testing.assert_close(new(x), model(x), rtol=1e-10, atol=1e-12)
    kept = json.loads((tmp_path / "balanced.safetensors.log_scales.json").read_text())
    plan = fxenorm.analyze(new, x, batchnorm="folded")
    assert plan.fingerprint == kept["fingerprint"] and float(plan.imbalance()) < 1e-5
    plan.rescale(-torch.tensor(kept["log_scales"], dtype=torch.float64))
    for one, other in zip(model.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=0)


def test_a_tied_tensor_may_be_stored_twice(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.again = nn.Linear(6, 6, bias=False)
            self.again.weight = self.middle.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.middle(self.first(x).relu()).relu()
            return self.last(self.again(x).relu())

    model = unbalanced(Tied(), torch.float64)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, source)
    fxenorm.balance_checkpoint(source, target, model)
    state = safetensors.load_file(target)
    assert torch.equal(state["again.weight"], state["middle.weight"])
    assert not torch.equal(state["middle.weight"], model.middle.weight)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(loaded(Tied().double(), target)(x), model(x), rtol=1e-10, atol=1e-12)


def test_a_tied_tensor_that_is_stored_once_is_checked_under_its_other_name(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.again = nn.Linear(6, 6, bias=False)
            self.again.weight = self.middle.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.again(self.middle(self.first(x).relu()).relu()).relu())

    model = unbalanced(nn.Sequential(nn.GELU(), Inner()), torch.float64)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "1.again.weight"}
    safetensors.save_file(state, source)
    result = fxenorm.balance_checkpoint(source, target, model, check="all")
    assert result.checked is not None and result.checked.modules == ("1",) and not result.checked.changed
    assert not torch.equal(safetensors.load_file(target)["1.middle.weight"], state["1.middle.weight"])


class Killed(BaseException):
    """Stands for a signal."""


def killed_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Has a run end at its first, second, ... write of a tensor, in the middle of it."""
    files = entry.TensorFiles
    real = files.write
    for last in range(1, 12, 3):
        count = 0

        def write(self: object, name: str, tensor: torch.Tensor, folder: Path, last: int = last) -> None:
            nonlocal count
            count += 1
            if count == last:
                real(self, name, torch.full_like(tensor, 7.0), folder)
                raise Killed
            real(self, name, tensor, folder)

        monkeypatch.setattr(files, "write", write)
        yield last
        monkeypatch.setattr(files, "write", real)


def test_a_killed_run_ends_with_the_same_bytes(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = blocks.parent
    fxenorm.balance_checkpoint(blocks, folder / "whole", Blocks())
    for last in killed_runs(monkeypatch):
        target = folder / f"target{last}"
        with pytest.raises(Killed):
            fxenorm.balance_checkpoint(blocks, target, Blocks())
        assert not target.exists()
        journal = folder / f"target{last}.partial.journal"
        finished = len(journal.read_text().splitlines())
        with journal.open("a") as file:
            file.write('{"index": 2, "log_sc')  # cut off by the kill
        monkeypatch.undo()
        seen = []
        real = entry.balance_part
        monkeypatch.setattr(entry, "balance_part", lambda part, seen=seen, real=real: seen.append(part) or real(part))
        fxenorm.balance_checkpoint(blocks, target, Blocks())
        monkeypatch.undo()
        assert digests(target) == digests(folder / "whole")
        assert len(seen) == 3 - (finished - 2)  # two lines come before the components
        assert not journal.exists() and not (folder / f"target{last}.partial").exists()


def test_processes_that_share_the_components_give_the_same_bytes(blocks: Path) -> None:
    fxenorm.balance_checkpoint(blocks, blocks.parent / "one", Blocks())
    fxenorm.balance_checkpoint(blocks, blocks.parent / "two", Blocks(), jobs=2)
    assert digests(blocks.parent / "one") == digests(blocks.parent / "two")


def test_processes_of_torch_distributed_share_the_components_and_give_the_same_bytes(blocks: Path) -> None:
    folder = blocks.parent
    one = fxenorm.balance_checkpoint(blocks, folder / "one", Blocks())
    command = [sys.executable, "-m", "tests.checkpoint.shared_worker", str(folder)]
    home = Path(fxenorm.__file__).parents[1]
    runs = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home)
        for rank in range(2)
    ]
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    first, second = (json.loads((folder / f"told{rank}.json").read_text()) for rank in range(2))
    assert sorted(first["own"] + second["own"]) == [0, 1, 2] and first["own"] and second["own"]
    assert digests(folder / "two") == digests(folder / "again") == digests(folder / "one")
    assert first["log_scales"] == second["log_scales"] == one.log_scales.tolist()
    assert first["norm"] == second["norm"] == one.norm_after
    assert second["error"] == "RuntimeError: planted" and "another process (rank 1) met an error" in first["error"]
    assert not first["there"] and not second["there"]
    # What the first process had finished is not done again, by whomever.
    assert sorted(first["rest"] + second["rest"]) == sorted({0, 1, 2} - set(first["own"]))
    assert "is there already" in first["second"] and "another process (rank 0)" in second["second"]
    assert not [path.name for path in folder.iterdir() if "partial" in path.name or path.name.startswith(".")]


def test_a_component_is_read_without_the_others(tmp_path: Path) -> None:
    """The memory that the call needs beside torch is a small part of the checkpoint."""
    command = [sys.executable, "-m", "tests.large_checkpoint", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(fxenorm.__file__).parents[1])
    assert run.returncode == 0, run.stderr
    found = re.fullmatch(r"(\d+) of (\d+) MB\n", run.stdout)
    assert found is not None, run.stdout
    assert int(found[2]) >= 200 and 3 * int(found[1]) <= int(found[2])


def test_changed_outputs_are_found_and_nothing_is_put_in_place(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = entry.TensorFiles.write

    def write(self: object, name: str, tensor: torch.Tensor, folder: Path) -> None:
        real(self, name, tensor * 2 if name == "layers.1.up.weight" else tensor, folder)

    monkeypatch.setattr(entry.TensorFiles, "write", write)
    with pytest.raises(CheckpointError, match=r"outputs changed on random inputs: layers\.1 by"):
        fxenorm.balance_checkpoint(blocks, blocks.parent / "target", Blocks(), check="all")
    assert not (blocks.parent / "target").exists()
    assert fxenorm.balance_checkpoint(blocks, blocks.parent / "target", Blocks(), check="none").checked is None


def test_a_target_is_replaced_only_when_that_is_asked_for(blocks: Path) -> None:
    target = blocks.parent / "target"
    target.mkdir()
    (target / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match="is there already"):
        fxenorm.balance_checkpoint(blocks, target, Blocks())
    assert [path.name for path in target.iterdir()] == ["mine"]
    fxenorm.balance_checkpoint(blocks, target, Blocks(), overwrite=True)
    assert {path.name for path in target.iterdir()} == {path.name for path in blocks.iterdir()}


def test_components_cover_every_variable_once() -> None:
    plan = fxenorm.analyze(Blocks(tied=False))
    analysis = plan.rescaler.analysis
    parts = components(analysis)
    assert sorted(variable for part in parts for variable in part.tolist()) == list(range(plan.num_scales))
    for part in parts:
        inner = restricted(analysis, part)
        assert inner.symmetry.num_scales == part.size and sum(len(group.variables) for group in inner.groups) == part.size
        weights = {item.parameter: item.log_weight for item in analysis.counted.tensors}
        assert {item.parameter: item.log_weight for item in inner.counted.tensors}.items() <= weights.items()


def bad(folder: Path, name: str) -> Path:
    """Returns a checkpoint with a fault."""
    path = folder / "bad.safetensors"
    state = {key: tensor.clone() for key, tensor in Blocks(tied=False).named_parameters()}
    if name == "missing":
        del state["layers.1.up.weight"]
    elif name == "shape":
        state["layers.1.up.weight"] = torch.zeros(3, 3)
    elif name == "integers":
        state["layers.1.up.weight"] = state["layers.1.up.weight"].to(torch.int8)
    safetensors.save_file(state, path)
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "header":
        path.write_bytes(b"\xff" * 64)
    elif name == "json":
        path.write_bytes((5).to_bytes(8, "little") + b"{]   ")
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"does not belong to the model: layers\.1\.up\.weight is missing"),
        ("shape", r"layers\.1\.up\.weight has shape \(3, 3\) instead of \(12, 8\)"),
        ("integers", r"stored as I8, which cannot be rescaled"),
        ("cut", r"is damaged"),
        ("header", r"is no safetensors file"),
        ("json", r"its header cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        fxenorm.balance_checkpoint(bad(tmp_path, fault), tmp_path / "target.safetensors", Blocks(tied=False))
    assert not (tmp_path / "target.safetensors").exists()


def test_bad_arguments_say_what_to_do(blocks: Path) -> None:
    folder, target = blocks.parent, blocks.parent / "target"
    empty = folder / "empty"
    empty.mkdir()
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (CheckpointError, "no such file or folder", {"source": folder / "nothing"}),
        (CheckpointError, r"holds no \.safetensors file", {"source": empty}),
        (CheckpointError, "is the source", {"target": blocks}),
        (CheckpointError, "within the source", {"target": blocks / "inner"}),
        (CheckpointError, "no such folder", {"target": folder / "none" / "target"}),
        (CheckpointError, r"no config\.json", {"model_or_config": None}),
        (CheckpointError, "expected a module, a configuration", {"model_or_config": 3}),
        (OptionError, "jobs=0", {"jobs": 0}),
        (OptionError, "check='some'", {"check": "some"}),
        (OptionError, "process_group=3", {"process_group": 3}),
        (OptionError, "p=0", {"p": 0}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            fxenorm.balance_checkpoint(**{"source": blocks, "target": target, "model_or_config": Blocks(), **arguments})
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "source"]


def test_a_journal_of_other_options_is_not_gone_on_with(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(killed_runs(monkeypatch))
    with pytest.raises(Killed):
        fxenorm.balance_checkpoint(blocks, blocks.parent / "target", Blocks())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="left of a run with another source, model or other options"):
        fxenorm.balance_checkpoint(blocks, blocks.parent / "target", Blocks(), p=1.0)


def test_a_configuration_of_transformers_is_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=32
    )
    model = unbalanced(transformers.LlamaForCausalLM(config), torch.bfloat16)
    model.save_pretrained(tmp_path / "source", max_shard_size="4KB")
    result = fxenorm.balance_checkpoint(tmp_path / "source", tmp_path / "target")
    assert result.components == 5  # two a layer, and the last norm with the head
    new = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.bfloat16)
    tokens = torch.arange(18).reshape(2, 9)
    with torch.no_grad():
        assert torch.equal(new(tokens).logits, model(tokens).logits)
    assert result.norm_after < result.norm_before
