"""Two processes that are about to do different things, or of which one meets an error: refused on both, or the same on both.

One launch runs all cases (see `agreement_worker`), for starting up is what costs; here what it found is judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fxenorm
from fxenorm.distributed.agreement import Answer, LateAnswers, Statement
from fxenorm.distributed.ranks import Ranks

from ..agreement_errors import CALLS
from ..agreement_session import KINDS
from ..agreement_ways import OPTIONS, WAYS
from .test_distributed import only_one

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = (0, 1)
OWN_ERROR = {
    "broken_state": "OptimizerError",
    "wrong_cycles": "OptionError: cycles=0",
    "wrong_optimizer": "OptimizerError",
    "out_of_memory": "OutOfMemoryError",
    "interrupted": "KeyboardInterrupt",
    "replaced_weight": "BindError",
}
"""What the second process raises itself, where it has an error."""

Found = dict[str, dict[str, Any]]


def launch(folder: Path) -> None:
    """Both processes; what they print goes to the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = []
    for rank in PROCESSES:
        with (folder / f"output {rank}").open("wb") as output:
            command = [sys.executable, "-m", "tests.agreement_worker", str(folder), str(rank)]
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
    try:
        for process in running:
            process.wait(timeout=280)
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """By process, what it found, by case; the processes of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "agreement"
    folder.mkdir(exist_ok=True)
    with only_one(folder / "lock"):
        if not (folder / "output 1").exists():
            launch(folder)
    paths = [folder / f"rank {rank}.json" for rank in PROCESSES]
    for rank, path in enumerate(paths):
        assert path.exists(), (folder / f"output {rank}").read_text(encoding="utf-8")
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    for found in (first, second):
        for case in found.values():
            assert "error" not in case, case["error"]
    return first, second


def pairs(both: tuple[Found, Found], case: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The findings of a case, by name."""
    assert both[0][case].keys() == both[1][case].keys() and both[0][case]
    for name, first in both[0][case].items():
        yield name, first, both[1][case][name]


def assert_refused(first: dict[str, Any], second: dict[str, Any], own_error: str = "") -> None:
    """Both raise before a write; the error names the process at fault, or both sides of a difference."""
    assert first["unchanged"] and second["unchanged"]
    assert first["said"].startswith("AgreementError: ")
    if own_error:
        assert second["said"].startswith(own_error)
        assert f"rank 1: {own_error}" in first["said"]
    else:
        assert second["said"] == first["said"]
        assert "(rank 0: " in first["said"] and "; rank 1: " in first["said"]
        assert "nothing was rescaled on any of them" in first["said"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*WAYS, *OPTIONS])
def test_a_step_that_differs_is_refused_on_both_processes_and_the_next_one_goes_on(
    both: tuple[Found, Found], kind: str, name: str
) -> None:
    first, second = (found["differences"][f"{kind} {name}"] for found in both)
    assert_refused(first, second, OWN_ERROR.get(name, ""))
    for found in (first, second):
        assert found["goes on"] == "" and found["moved"] and found["alike"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cycles", "the call (rank 0: cycles=1; rank 1: cycles=2)"),
        ("flags", "requires_grad (rank 0: nothing more; rank 1: 0.weight is frozen)"),
        ("c", "the plan (rank 0: c=1.0, fingerprint"),
        ("track", "tracked copies (rank 0: nothing more; rank 1: a copy of 3 tensors"),
        ("other_optimizer", "the optimizers (rank 0: Adam, "),
    ],
)
def test_the_error_says_what_differs_and_nothing_else(both: tuple[Found, Found], name: str, words: str) -> None:
    for kind in KINDS:
        said = both[0]["differences"][f"{kind} {name}"]["said"]
        assert words in said and said.count("disagree") == 1


def test_balance_rescale_and_attach_agree_too(both: tuple[Found, Found]) -> None:
    own = {"wrong log_scales": "RescaleError", "overflow": "RescaleError", "attach wrong": "OptionError"}
    for name, first, second in pairs(both, "other_calls"):
        call = name.split(" ", 1)[1]
        if call == "in the end":
            assert first["said"] == second["said"] == ""
            assert first["alike"] and not first["unchanged"]
            continue
        if call.startswith("read "):
            assert second["said"].startswith("BindError")
            assert first["said"].startswith("AgreementError") and "rank 1" in first["said"]
            continue
        assert_refused(first, second, own.get(call) or OWN_ERROR.get(call.split(" ", 1)[-1], ""))


def test_balance_of_replicas_takes_the_log_scales_of_the_first_process(both: tuple[Found, Found]) -> None:
    for _, first, second in pairs(both, "other_weights"):
        assert first["said"] == second["said"] == "" and first["log_scales"] == second["log_scales"]
        assert first["whole"] and second["whole"] and not first["unchanged"]


def test_what_is_put_together_first_takes_the_agreement_along(both: tuple[Found, Found]) -> None:
    for name, first, second in pairs(both, "folded"):
        case = name.split(" ")[1]
        if case == "well":
            assert first["said"] == second["said"] == "" and not first["unchanged"]
        else:
            assert_refused(first, second, OWN_ERROR.get(case, ""))


def test_a_hook_tells_of_its_errors_and_of_a_frozen_model(both: tuple[Found, Found]) -> None:
    for name, first, second in pairs(both, "hooks"):
        assert_refused(first, second, OWN_ERROR.get(name.split(" ", 1)[1], ""))


@pytest.mark.parametrize("kind", ["ddp eager", "ddp compiled", "fsdp eager"])
@pytest.mark.parametrize("call", CALLS)
def test_an_error_at_any_write_of_one_process_leaves_equal_models(both: tuple[Found, Found], kind: str, call: str) -> None:
    first, second = (found["injected"][f"{kind} {call}"] for found in both)
    assert not first["broken"] and not second["broken"]
    if kind == "ddp compiled" and call in ("step", "hook"):
        assert second["writes"] == 0  # one call of the kernels, which raises nothing
        return
    assert second["writes"] >= (1 if kind == "ddp compiled" else 2) and second["said"] == ["Stop"]
    # balance and rescale tell at once, a step at the next one.
    assert first["said"] == (["AgreementError"] if call in ("balance", "rescale") else [""])


def test_a_process_that_does_not_come_to_its_writes_makes_up_for_them(both: tuple[Found, Found]) -> None:
    for name, first, second in pairs(both, "before_the_writes"):
        assert first["said"] == "" and second["said"] == "OutOfMemoryError: none left"
        if name.endswith("written since"):
            assert second["again"].startswith("RescaleError") and "0.weight" in second["again"]
            assert first["again"].startswith("AgreementError") and "rank 1" in first["again"]
        else:
            assert first["same"] and second["same"] and first["alike"]


def test_an_error_between_two_collectives_leaves_nobody_waiting(both: tuple[Found, Found]) -> None:
    for name, first, second in pairs(both, "in_the_middle"):
        assert second["said"] == "OutOfMemoryError: none left"
        assert first["said"].startswith("AgreementError" if name == "balance" else "")
        assert first["whole"] and second["whole"]


def test_one_small_collective_a_step_or_fewer(both: tuple[Found, Found]) -> None:
    one = ["allreduce_.default"]
    for found in both:
        counted = found["collectives"]
        assert counted["ddp 1"] == counted["fsdp 1"] == counted["fsdp 3"] == [one] * 6
        assert counted["ddp 3"] == [[], [], one] * 2
        assert all(value for name, value in counted.items() if name.endswith("alike"))


def test_between_agreements_an_error_is_told_at_the_next_one(both: tuple[Found, Found]) -> None:
    first, second = (found["missed"]["said"] for found in both)
    assert first[:2] == ["", ""] and first[2].startswith("AgreementError") and "agree_every" in first[2]
    assert second[0] == "" and second[1].startswith("OptimizerError") and second[2].startswith("RescaleError")


def test_replicas_use_the_compiled_kernels_from_the_step_on_at_which_all_have_them(both: tuple[Found, Found]) -> None:
    for found in both:
        late = found["executors"]["late"]
        assert late["alike"] and late["names"] == ["eager"] * 30 + ["compiled"] * 20


def test_replicas_of_which_one_has_no_compiler_stay_bit_identical(both: tuple[Found, Found]) -> None:
    first, second = (found["executors"]["never"] for found in both)
    assert first["alike"] and first["name"] == second["name"] == "eager"
    assert len(first["warned"]) == 1 and "rank 1" in first["warned"][0]
    assert len(second["warned"]) == 1 and "no compiler is here" in second["warned"][0]


class Device:
    """In the place of a device's module: its work is done when that is said."""

    def __init__(self) -> None:
        self.done = False
        self.Event = lambda: self

    def record(self) -> None:
        """Nothing to do."""

    def query(self) -> bool:
        """Whether the work is done."""
        return self.done


def test_on_a_device_an_answer_is_raised_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    device, ranks = Device(), Ranks([], [(0, 2)], [4, 7], 4, torch.device("cpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: device)
    like = torch.zeros((), dtype=torch.float64, device="cpu")
    one, other = (Statement({"call": ("step", f"cycles={count}")}) for count in (1, 2))
    failed = Statement(error=ValueError())
    for statements, words in (
        ((one, one), None),
        ((one, other), r"disagree about the call \(rank 4; rank 7\)"),
        ((one, failed), r"another process could not take part.*rank 7"),
    ):
        answer, late = Answer(torch.stack([statement.notes(like) for statement in statements])), LateAnswers()
        assert bool(answer.goes_on) == (words is None)
        device.done = False
        late.note(answer, ranks)
        late.raise_known()
        device.done = True
        if words is None:
            late.raise_known()
            continue
        with pytest.raises(fxenorm.errors.AgreementError, match=words):
            late.raise_known()
        late.raise_known()  # once


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_a_step_that_is_gated_on_the_device_moves_where_all_agree(backend: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    plan = fxenorm.analyze(model, torch.ones(2, 4), backend=backend)  # type: ignore[arg-type]
    plan.step()
    prepared = plan.rescaler.last_step.prepared
    assert prepared is not None
    with torch.no_grad():
        model[0].weight *= 3
    before = model[0].weight.detach().clone()
    prepared.run(1, torch.tensor(False))
    assert torch.equal(before, model[0].weight)
    prepared.run(1, torch.tensor(True))
    assert not torch.equal(before, model[0].weight)


def test_the_error_is_one_of_rescaling() -> None:
    assert issubclass(fxenorm.errors.AgreementError, fxenorm.errors.RescaleError)
