"""Many processes, through ``torchrun`` on CPUs: DistributedDataParallel, fully_shard, tensor parallelism, checkpoints.

One launch a world size runs all checks (starting up is what costs) and writes what it measured; here it is judged.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxenorm
from fxenorm.analysis.attained.channel_fields import ChannelFields
from fxenorm.analysis.attained.exponent_rows import exponent_rows
from fxenorm.analysis.attained.missing_equations import missing_equations
from tests.distributed_models import Residual, batch, build

ROOT = Path(__file__).resolve().parents[2]
WORLDS = (1, 2, 4)


class Findings:
    """What the processes of one world measured.

    Args:
        size: how many there were.
        ranks: by process, by check, by what was measured.
    """

    def __init__(self, size: int, ranks: list[dict[str, dict[str, Any]]]) -> None:
        self.size, self._ranks = size, ranks

    def of(self, check: str) -> list[dict[str, Any]]:
        """By process, the findings of a check; fails with its traceback where it failed."""
        errors = [found["error"] for rank in self._ranks for found in rank.values() if "error" in found]
        assert not errors, errors[0]
        return [rank[check] for rank in self._ranks]

    def one(self, check: str, ending: str) -> dict[str, Any]:
        """What a check measured under names with an ending, where all processes have to agree; by the rest of the name."""
        chosen = [{name: value for name, value in found.items() if name.endswith(ending)} for found in self.of(check)]
        assert chosen[0], f"nothing in {check} ends with {ending!r}"
        assert all(found == chosen[0] for found in chosen)
        return {name.removesuffix(ending).strip(): value for name, value in chosen[0].items()}

    def worst(self, check: str, ending: str) -> float:
        """The largest of some numbers over all processes."""
        found = [value for rank in self.of(check) for name, value in rank.items() if name.endswith(ending)]
        assert found, f"nothing in {check} ends with {ending!r}"
        return max(max(value) if isinstance(value, list) else value for value in found)


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Lets one pytest process at a time in; one that dies inside lets the next in."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def launch(size: int, folder: Path) -> None:
    """Runs all checks on `size` processes; their findings, or what they printed, go to the folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [*command, "-m", "tests.distributed_worker", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    (folder / f"world {size} output").write_text(finished.stdout + finished.stderr, encoding="utf-8")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all worlds, which the processes of pytest-xdist share; a later world reads checkpoints of earlier ones."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributed"
    shared.mkdir(exist_ok=True)
    with only_one(shared / "lock"):
        for size in WORLDS:
            if not (shared / f"world {size} output").exists():
                launch(size, shared)
    return shared


@pytest.fixture(params=WORLDS, ids=[f"{size} processes" for size in WORLDS])
def findings(request: pytest.FixtureRequest, folder: Path) -> Findings:
    """What one world measured."""
    paths = [folder / f"world {request.param} rank {rank}.json" for rank in range(request.param)]
    missing = [path.name for path in paths if not path.exists()]
    assert not missing, f"{missing} not written:\n" + (folder / f"world {request.param} output").read_text(encoding="utf-8")
    return Findings(request.param, [json.loads(path.read_text(encoding="utf-8")) for path in paths])


@pytest.mark.parametrize("model", ["convolutions", "transformer"])
def test_twenty_steps_equal_those_of_one_process(findings: Findings, model: str) -> None:
    """SGD with momentum by attach, AdamW by step; weights, statistics and optimizer state."""
    assert findings.worst(model, "distance") <= 1e-6
    assert min(value for found in findings.of(model) for name, value in found.items() if name.endswith("moved")) > 1e-2
    assert findings.one(model, "bits").keys() == {"SGD ddp", "SGD fsdp", "AdamW ddp", "AdamW fsdp"}


def test_replicas_stay_bit_identical_though_their_batches_differ(findings: Findings) -> None:
    findings.one("different_batches", "weights")
    findings.one("different_batches", "balanced")
    # Else there is nothing to agree upon.
    statistics = {found["folded statistics"] for found in findings.of("different_batches")}
    assert len(statistics) == findings.size
    # Before they write, replicas agree; running statistics have to be told beside.
    agreement = ["allreduce_.default"]
    assert findings.one("different_batches", "collectives") == {
        "affine": agreement if findings.size > 1 else [],
        "folded": [*agreement, "broadcast_.default"] if findings.size > 1 else [],
    }
    for found in findings.of("different_batches"):
        assert len(found["warned"]) == (findings.size > 1)
        assert all("plan.bind with that wrapper" in message for message in found["warned"])


def test_a_sharded_model_is_analysed_as_the_whole_and_left_alone(findings: Findings) -> None:
    for kind in ("ConvNet", "Transformer"):
        for found in findings.of("analysis"):
            assert found[f"{kind} collectives"] == []
            assert found[f"{kind} same"] and found[f"{kind} left alone"]
    assert all(found["synced"] for found in findings.of("analysis"))
    assert all("unsharded model" in found["verify"] for found in findings.of("analysis"))


def test_fingerprints_are_the_same_on_every_process_and_in_every_world(folder: Path) -> None:
    paths = [folder / f"world {size} rank {rank}.json" for size in WORLDS for rank in range(size)]
    found = [json.loads(path.read_text(encoding="utf-8"))["analysis"] for path in paths]
    assert len({one["ConvNet fingerprint"] for one in found}) == 1
    assert len({one["Transformer fingerprint"] for one in found}) == 1


def test_balance_of_shards_is_that_of_the_whole(findings: Findings) -> None:
    for ending in ("log_scales", "layer norms", "weights", "undone", "reports", "outputs"):
        assert findings.worst("balance", ending) <= 1e-8, ending
    assert all(findings.one("balance", "held").values())
    assert all(findings.one("balance", "converged").values())
    assert len(findings.one("balance", "bits")) == 5


def test_objectives_of_shards_are_those_of_the_whole(findings: Findings) -> None:
    for ending in ("log_scales", "weights", "undone", "reports"):
        assert findings.worst("objectives", ending) <= 1e-6, ending
    assert all(findings.one("objectives", "held").values())
    assert all(findings.one("objectives", "converged").values())
    assert len(findings.one("objectives", "bits")) == 6
    assert min(findings.one("objectives", "moved").values()) > 1e-2
    for found in findings.of("boxes_and_functions_of_objectives"):
        assert found["vertex"] == 0 and found["function"] <= 1e-9
        assert ("give it adds = True" in found["silent"]) == (findings.size > 1)


def test_terms_of_observations_are_those_of_the_whole(findings: Findings) -> None:
    """Predicted noise, alone and in a sum, and ranges; under fully_shard and tensor parallelism."""
    for ending in ("log_scales", "weights", "predicted"):
        assert findings.worst("observations", ending) <= 1e-9, ending
    assert all(findings.one("observations", "converged").values())
    assert len(findings.one("observations", "bits")) == 5
    assert min(findings.one("observations", "moved").values()) > 1e-2
    for rank, found in enumerate(findings.of("observations")):
        for name in ("shards", "tensor parallel"):
            assert found[f"{name} stale"].startswith("StaleError"), found
            last = rank == findings.size - 1
            assert found[f"{name} wrong"].startswith("OptionError" if last else "AgreementError")


def test_what_is_held_does_not_depend_on_where_its_weights_lie(findings: Findings) -> None:
    for found in findings.of("dead_and_pruned"):
        kinds = {item.split(", ", 1)[1].split(":")[0] for item in found["held"]}
        assert kinds == {"dead", "not attained"}
        assert found["same"] and found["log_scales"] <= 1e-9 and found["weights"] <= 1e-9
    findings.one("dead_and_pruned", "bits")


def test_one_collective_a_cycle(findings: Findings) -> None:
    reduce, gather = "allreduce_.default", "_allgather_base_.default"
    counted = "{'batchnorm': 'folded', 'biases': 'count'}"
    assert findings.one("cycles", "collectives") == {
        "ConvNet {} x 1": [reduce],
        "ConvNet {} x 3": [reduce] * 3,
        "ConvNet {'p': inf} x 1": [reduce],
        "ConvNet {'p': 12.0} x 2": [gather] * 2,
        f"ConvNet {counted} x 1": [reduce],
        # A cycle that is cut to whole octaves is safe without a look at the norm.
        "ConvNet {'scales': 'pow2'} x 2": [reduce] * 2,
        # One a group, and one before for what else has to be known.
        "ConvNet {'solver': 'gauss-seidel'} x 1": [reduce] * (1 + findings.of("cycles")[0]["groups"]),
        "Upsampling {} x 1": [reduce],
        # BatchNorms that are cut otherwise than the layer in front of them are put together once.
        f"Upsampling {counted} x 2": [reduce] * 3,
    }
    assert findings.worst("cycles", "distance") <= 1e-9
    assert findings.worst("cycles", "gradients") <= 1e-9


def test_steps_that_a_scaler_skips_do_not_count(findings: Findings) -> None:
    for found in findings.of("scaler"):
        for fused in (False, True):
            assert found[f"fused {fused} skipped"] == [False, False, True, False]
            assert found[f"fused {fused} steps"] == 3


def test_copies_follow(findings: Findings) -> None:
    assert findings.worst("tracked", "distance") <= 1e-9
    assert all("shard both" in found["mixed"] for found in findings.of("tracked"))


def test_rescaling_allocates_less_than_the_shard(findings: Findings) -> None:
    for found in findings.of("memory"):
        assert found["peak"] < found["shard"] + found["vectors"]
        # Nothing as large as a weight is ever put together.
        assert found["largest"] <= max(found["largest part"], found["vectors"])
        assert found["largest part"] * findings.size == found["whole weight"]


def test_meshes(findings: Findings) -> None:
    """Tensor parallelism; on four processes with fully_shard, fully_shard with replicas, and two models of two processes."""
    names = {"tensor parallel", "both", "replicas", "part of the world"} if findings.size == 4 else {"tensor parallel"}
    assert findings.one("meshes", "bits").keys() == names
    assert findings.worst("meshes", "distance") <= 1e-9
    assert findings.worst("meshes", "norm") <= 1e-9
    for name, calls in findings.one("meshes", "collectives").items():
        # A mesh of two axes that is not the whole world has no process group of its own.
        assert calls == ["allreduce_.default"] * (2 if name == "part of the world" else 1)
    assert all(found["fingerprint"] for found in findings.of("meshes"))


def test_gradients_that_are_not_added_up_yet_follow(findings: Findings) -> None:
    assert findings.worst("sequence_parallel", "distance") <= 1e-9
    assert all(found["partial"] for found in findings.of("sequence_parallel"))


def test_errors_are_raised_everywhere_before_anything_is_written(findings: Findings) -> None:
    last = findings.size - 1
    for rank, found in enumerate(findings.of("refusals")):
        assert all("only Shard and Replicate" in message for message in found["partial"])
        assert found["partial unchanged"] and found["unchanged"]
        for name in ("step", "cycles", "balance", "rescale"):
            # The process at fault says what it is; the others that there is one.
            assert ("has shape (2, 2)" if rank == last else "another process") in found[f"one {name}"]
        assert ("'up.bias'" if rank == 0 else "another process") in found["overflow"]
        assert "sums up many entries" in found["adafactor"]
        assert len(found["flat"]) == 3 and all("fully_shard (FSDP2)" in message for message in found["flat"])
        if findings.size > 1:
            assert "disagree" in found["flags"]
            assert "differ from process to process" in found["other scales"]
        if findings.size == 4:
            assert "none contains the others" in found["meshes"]


def test_checkpoints_resume(findings: Findings) -> None:
    """Bit for bit on as many processes as saved; to rounding on more."""
    for found in findings.of("checkpoints"):
        assert found["same bits"]
        assert found["distance"] <= 1e-6
        earlier = [size for size in WORLDS if size <= findings.size]
        assert all(found[f"from {size}"] <= 1e-6 and found[f"steps from {size}"] == 20 for size in earlier)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_held_follows_from_the_rows_of_all_parts(seed: int) -> None:
    """Rows of parts of a model, each with hubs of its own, decide as the rows of the whole do."""
    model = build(Residual)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.2)
    plan = fxenorm.analyze(model, batch(Residual))
    problem = plan.rescaler.open().objective()
    program, matrices = problem.program, problem.matrices
    nothing, channels = np.zeros(plan.num_scales, dtype=bool), ChannelFields(plan.symmetry.channels, program, None)
    expected = missing_equations(exponent_rows(program, matrices).matrix(nothing), nothing, channels)
    parts = [exponent_rows(program.part([number]), [matrix]) for number, matrix in enumerate(matrices)]
    together = parts[0].extended(parts[1:])
    assert expected
    assert sorted(missing_equations(together.matrix(nothing), nothing, channels)) == sorted(expected)
