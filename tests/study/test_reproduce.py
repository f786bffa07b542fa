"""tools/reproduce.py: the released command lines, the protocol, the records, the tables."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from study import cli, running
from study.cells import core, default, star
from study.configuration import Configuration, StudyError
from study.methods import METHODS, PlanStep, register
from study.presets import PRESETS
from study.protocol import GRID, Cell, Tuning, missing, rates_of, tuning_of
from study.records import Records, Result
from study.report.conclusions import conclusions
from study.report.plots import plot_all
from study.report.statistics import paired
from study.report.summary import noise, sections
from study.report.table import markdown
from study.running import Machine, finish

from ..helpers import load_tool
from .made_up import small, small_task, write_binary_cifar

TASK = small_task()
QUIET = Console(quiet=True)
MACHINE = Machine(Path())
LINEAR = "python main.py --dataset cifar10 --model-type linear --n-layers 15"
CONV = "python main.py --dataset cifar10 --model-type conv"
RELEASED = (
    f"{LINEAR} --enorm 0 --epochs 60 --lr 0.1 --weight-decay 1e-3 --momentum 0 --n-iter 5",
    f"{LINEAR} --enorm 1.2 --epochs 60 --lr 0.1 --weight-decay 1e-3 --momentum 0 --n-iter 5",
    f"{CONV} --enorm 0 --epochs 128  --lr 0.05 --weight-decay 1e-3 --momentum 0.9 --n-iter 5",
    f"{CONV} --enorm 1.1 --epochs 128 --lr 0.05 --weight-decay 1e-3 --momentum 0.9 --n-iter 5",
)


@pytest.fixture(autouse=True)
def made_up_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on the data set "small" get made-up images."""
    real = running.load_task
    monkeypatch.setattr(running, "load_task", lambda name, *rest: TASK if name == "small" else real(name, *rest))


def cell_of(*methods: str, **changes: Any) -> Cell:
    """A cell of seconds."""
    base = small(**{"steps": 8, "depth": 3, "data": TASK.fingerprint, **changes})
    return Cell(base, tuple(METHODS[name] for name in methods or ("plain", "plan.step")), (50, 51), (0, 1, 2), (0.01, 0.02))


# ---------------------------------------------------------------- the released command lines


@pytest.mark.parametrize("line", RELEASED)
def test_released_command_line_trains_and_tests(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On made-up CIFAR-10; options after the line cut epochs, runs, batch and width, as a user would."""
    write_binary_cifar(tmp_path / "data")
    arguments = shlex.split(line)[2:]
    shorter = f"--epochs 2 --n-iter 2 -b 16 -j 1 --width {16 if 'linear' in line else 1 / 32}"
    results = tmp_path / "results.jsonl"
    extra = ["--data-path", str(tmp_path / "data"), *shlex.split(shorter), "--results", str(results)]
    assert load_tool("reproduce").main([*arguments, *extra]) == 0
    printed = capsys.readouterr().out
    assert "2 runs trained now" in printed and ("ENorm, c=1." in printed or "ENorm off" in printed)
    kept = [json.loads(text) for text in results.read_text().splitlines()]
    assert len(kept) == 2
    for record in kept:
        assert record["configuration"]["purpose"] == "released" and not record["configuration"]["bias"]
        assert 0 <= record["result"]["score"] <= 100 and record["result"]["curve_steps"][-1] == 2 * (82 // 16)


@pytest.mark.parametrize("line", RELEASED)
def test_released_command_lines_mean_what_they_say(line: str) -> None:
    (cell,) = cli.cells_of(cli.parse(shlex.split(line)[2:]), "none")
    base, (method,) = cell.base, cell.methods
    linear = "linear" in line
    assert (base.experiment, base.epochs, cell.rate) == (("mlp", 60, 0.1) if linear else ("conv", 128, 0.05))
    assert (base.momentum, base.weight_decay, base.batch, len(cell.reporting)) == (0.0 if linear else 0.9, 1e-3, 256, 5)
    assert base.width == (500 if linear else 1) and method.norm == "batchnorm" and base.schedule == "linear"
    wanted = float(line.split("--enorm ")[1].split()[0])
    assert isinstance(method, PlanStep) == (wanted > 0)
    if isinstance(method, PlanStep):
        assert method.c == wanted and method.state == ("keep" if linear else "reexpress")
        assert dict(method.options) == {"batchnorm": "skip", "biases": "skip", "balance_last": False, "solver": "jacobi"}


def test_presets_are_these_lines_and_give_way_to_what_is_written() -> None:
    for preset, line in zip(("mlp-off", "mlp", "conv-off", "conv"), RELEASED, strict=True):
        asked = cli.cells_of(cli.parse(["--preset", f"released-{preset}"]), "none")
        assert asked == cli.cells_of(cli.parse(shlex.split(line)[2:]), "none")
    assert cli.cells_of(cli.parse(["--preset", "paper-mlp", "--epochs", "3"]), "none")[0].base.epochs == 3
    assert set(PRESETS) >= {"paper-mlp", "paper-conv"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "say which experiment"),
        ("conv --model-type linear", "is mlp, not conv"),
        ("mlp --enorm 1.2", "--enorm goes with --lr"),
        ("mlp --lr 0.1 --enorm 1 --methods plain", "give one"),
        ("mlp --study --lr 0.1", "--lr has no place"),
        ("conv --study", "fixed set of arms"),
        ("mlp --lr 0.1 -b 8 16", "take one value"),
        ("mlp --n-iter 0", "at least 1"),
        ("mlp --lr nan", "finite number"),
    ],
)
def test_bad_command_lines_are_refused(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(shlex.split(line))
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_missing_data_end_with_a_message_and_a_list_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mlp", "--dataset", "cifar10", "--data-path", str(tmp_path)]) == 1
    assert "no CIFAR-10 in" in capsys.readouterr().err
    assert cli.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("plan.step, c adaptive", "autoencoder", "channels", "paper-conv"))


# ---------------------------------------------------------------- the protocol


def fake(cell: Cell, records: Records, score: Any) -> None:
    """Finishes a cell with results that a function of the configuration makes up."""
    while stacks := missing(cell, records):
        for stack in stacks:
            records.add(stack, [made_up_result(score(one)) for one in stack])


def made_up_result(score: float) -> Result:
    """A result with a score."""
    return {"diverged": False, "score": score, "loss": 1.0, "train_loss": 1.0, "steps": 5}


def peak(rate: float) -> Any:
    """Scores that fall with the distance from a rate."""
    return lambda one: 90.0 - 10 * abs(one.rate - rate) / rate + 0.1 * (one.seed % 2)


def test_the_grid_has_six_rates_whose_neighbours_are_close() -> None:
    assert len(GRID) >= 6 and all(high / low <= 2.5 + 1e-9 for low, high in pairwise(GRID))


def test_a_best_rate_inside_needs_no_other_rates() -> None:
    cell, records = dataclasses.replace(cell_of(), grid=GRID), Records(None)
    fake(cell, records, peak(0.01))
    assert rates_of(cell, records) == (list(GRID), [])
    for method in cell.methods:
        tuning = tuning_of(cell, method, GRID, records)
        assert tuning is not None and tuning.best == 0.01


def test_a_best_rate_at_the_edge_of_one_arm_extends_the_grid_for_all() -> None:
    cell, records = dataclasses.replace(cell_of(), grid=GRID), Records(None)
    fake(cell, records, lambda one: peak(0.2 if one.method.name == "plain" else 0.01)(one))
    rates, _ = rates_of(cell, records)
    assert rates == [*GRID, 0.1, 0.2, 0.5]
    assert all(records.has(cell.tuned(method, rates)) for method in cell.methods)


def test_a_rate_at_a_cliff_does_not_win() -> None:
    assert Tuning((0.01, 0.02, 0.05), (94.0, 95.0, 40.0), (0.5, 4.0, 30.0), (0, 0, 2)).best == 0.01


def test_usable_rates_are_those_near_the_best_without_a_gap() -> None:
    tuning = Tuning((1.0, 2.0, 5.0, 10.0, 20.0), (94.5, 90.0, 94.2, 95.0, 93.9), (0.0,) * 5, (0,) * 5)
    assert tuning.usable(1.0) == (5.0, 10.0)


def test_seeds_of_tuning_and_reporting_differ_and_test_images_are_seen_at_the_chosen_rate_alone() -> None:
    for cell in [*core("digits", "x"), *star("digits", "x")]:
        assert set(cell.tuning).isdisjoint(cell.reporting) and len(cell.tuning) >= 4 and len(cell.reporting) >= 5
    cell, records = cell_of(), Records(None)
    seen: list[Configuration] = []
    while stacks := missing(cell, records):
        for stack in stacks:
            seen += stack
            records.add(stack, [made_up_result(peak(0.01)(one)) for one in stack])
    tested = [one for one in seen if one.purpose == "report"]
    assert {one.rate for one in tested} == {0.01} and len(tested) == 2 * 3
    assert all(one.purpose == "tune" for one in seen if one.seed in cell.tuning)


def test_the_core_is_what_was_asked_for_and_the_star_changes_one_thing() -> None:
    cells = core("digits", "x")
    assert {(c.base.depth, c.base.batch, c.base.start) for c in cells} == {
        (depth, batch, start) for depth in (5, 15, 30) for batch in (8, 64) for start in ("he", "layers", "channels")
    }
    assert all(
        [method.name for method in c.methods] == ["plain", "BatchNorm", "plan.step", "balanced once", "AdamW"] for c in cells
    )
    around = [cell for cell in star("digits", "x") if cell.base.experiment == "mlp"]
    centre = around[0].base
    for cell in around[1:]:
        fields = [field.name for field in dataclasses.fields(centre) if field.name not in ("method", "rate", "seed")]
        assert sum(getattr(cell.base, name) != getattr(centre, name) for name in fields) == 1, cell.title
    assert set(METHODS) == {method.name for cell in star("digits", "x") for method in cell.methods}


# ---------------------------------------------------------------- records


def table_of(cell: Cell, path: Path) -> str:
    """The Markdown table of what a file holds."""
    return markdown(sections([cell], Records(path)))


def test_a_killed_run_resumes_and_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of()
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    total = finish([cell], Records(whole), MACHINE, QUIET)
    assert total >= 2 * (4 + 3)

    class KilledError(Exception):
        """Stands for a signal."""

    real, count = running.do_stack, [0]

    def dies(*arguments: Any) -> list[Result]:
        count[0] += 1
        if count[0] == 3:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(running, "do_stack", dies)
    with pytest.raises(KilledError):
        finish([cell], Records(killed), MACHINE, QUIET)
    monkeypatch.setattr(running, "do_stack", real)
    with killed.open("a") as file:
        file.write(killed.read_text().splitlines()[0][:60])  # a kill in the middle of a write
    done = finish([cell], Records(killed), MACHINE, QUIET)
    assert done == total - 8, "the two stacks that were finished were not repeated"
    assert table_of(cell, killed) == table_of(cell, whole) != ""


def test_a_finished_table_is_printed_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the extra demo brings it")
    line = ["mlp", "--n-layers", "3", "--width", "8", "--steps", "4", "--n-iter", "2", "--tuning-seeds", "2"]
    line += ["--methods", "plain", "AdamW", "--results", str(tmp_path / "r.jsonl"), "--markdown", str(tmp_path / "t.md")]
    assert cli.main(line) == 0
    first, text = capsys.readouterr().out, (tmp_path / "t.md").read_text()
    monkeypatch.setattr(running, "do_stack", lambda *arguments: pytest.fail("trained again"))
    assert cli.main(line) == 0
    again = capsys.readouterr().out
    assert re.search(r"\b0 runs trained now", again) and not re.search(r"\b0 runs trained now", first)
    assert re.sub(r"\d+ runs trained", "", first) == re.sub(r"\d+ runs trained", "", again)
    assert (tmp_path / "t.md").read_text() == text and "| he | AdamW |" in text


def test_a_missing_part_of_a_stack_repeats_the_whole_stack(tmp_path: Path) -> None:
    cell, path = cell_of("plain"), tmp_path / "r.jsonl"
    finish([cell], Records(path), MACHINE, QUIET)
    before = table_of(cell, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    assert finish([cell], Records(path), MACHINE, QUIET) == 4
    assert table_of(cell, path) == before


def test_jobs_give_what_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is handed all runs and its results are kept; what a process does is tested above."""

    class Pool:
        """Runs at once what a pool would run in processes."""

        def __init__(self, jobs: int, mp_context: Any) -> None:
            assert jobs == 2 and mp_context.get_start_method() == "spawn"

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *arguments: object) -> None:
            """Nothing to close."""

        def submit(self, function: Any, *arguments: Any) -> Any:
            from concurrent.futures import Future

            future: Any = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(running, "ProcessPoolExecutor", Pool)
    cell = cell_of()
    finish([cell], Records(tmp_path / "two.jsonl"), dataclasses.replace(MACHINE, jobs=2), QUIET)
    finish([cell], Records(tmp_path / "one.jsonl"), MACHINE, QUIET)
    assert table_of(cell, tmp_path / "two.jsonl") == table_of(cell, tmp_path / "one.jsonl")


def test_damaged_records_and_changed_data_are_told(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": "a", "result": {}}\nnonsense\n')
    with pytest.raises(StudyError, match="line 2"):
        Records(path)
    with pytest.raises(StudyError, match="have changed"):
        finish([cell_of(data="other")], Records(None), MACHINE, QUIET)


def test_keys_tell_configurations_apart_and_defaults_do_not_count() -> None:
    one = small()
    changes: Sequence[dict[str, Any]] = [
        {"seed": 4},
        {"rate": 0.1},
        {"start": "layers"},
        {"method": METHODS["AdamW"]},
        {"data": "b"},
    ]
    keys = {one.key, *(one.but(**change).key for change in changes)}
    assert len(keys) == 1 + len(changes)
    steps = [PlanStep("x"), PlanStep("x", c=1.2), PlanStep("x", state="keep"), PlanStep("x", every=2)]
    assert len({one.but(method=method).key for method in steps}) == len(steps)
    assert "variant" not in one.to_dict() and "every" not in PlanStep("x").to_dict()


def test_arms_of_two_meanings_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="there is a method 'plain' already"):
        register(METHODS["plain"])


# ---------------------------------------------------------------- tables, conclusions, plots


def test_paired_differences_are_students() -> None:
    """Five differences 1, 2, 3, 4, 5: mean 3, deviation sqrt(2.5), and 2.776 is Student's 97.5 % point of 4 degrees."""
    found = paired([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert found is not None and found.mean == pytest.approx(3) and found.leaves_out_zero
    assert found.half == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-5)
    noisy = paired([1.0, -1.0, 1.0], [0.0, 0.0, 0.0])
    assert noisy is not None and not noisy.leaves_out_zero
    assert paired([1.0, None], [1.0, 2.0]) is None


def finished(score: Any) -> list[Any]:
    """The sections of a made-up study of three depths and three starts."""
    records, cells = Records(None), []
    for depth in (5, 15, 30):
        for start in ("he", "layers", "channels"):
            cell = cell_of("plain", "plan.step", "balanced once", depth=depth, start=start)
            fake(cell, records, lambda one: score(one) + peak(0.01)(one) + 0.01 * (one.seed % 3))
            cells.append(cell)
    return sections(cells, records)


def test_the_noise_is_the_spread_of_one_network_trained_three_times() -> None:
    found = finished(lambda one: {"he": 0.0, "layers": 1.5, "channels": 0.5}[one.start] * ("once" in one.method.name))
    assert len(found) == 3 and all(len(rows) == 9 for rows in found)
    assert noise(found[0]) == pytest.approx(1.5)
    assert markdown(found).count("A/A: one network, 3 times") == 3


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((2, 2, 0), "better (at depths 5, 15) ["),
        ((2, 2, -2), "better (at depths 5, 15), but worse at 30 ["),
        ((2, 0, 0), "no conclusion"),
        ((2, 0, -2), "no conclusion"),
        ((-2, 0, -2), "worse (at depths 5, 30) ["),
    ],
)
def test_a_conclusion_needs_two_of_three_depths(gains: tuple[int, ...], verdict: str) -> None:
    by_depth = dict(zip((5, 15, 30), gains, strict=True))
    lines = conclusions(finished(lambda one: by_depth[one.depth] * (one.method.name == "plan.step") * (1 + 0.1 * (one.seed % 2))))
    (line,) = (line for line in lines if line.startswith("start he") and "plan.step against" in line)
    assert verdict in line
    (other,) = (line for line in lines if line.startswith("start he") and "balanced once against" in line)
    assert "no conclusion" in other


def test_a_difference_below_the_noise_is_no_finding() -> None:
    def score(one: Configuration) -> float:
        return (3.0 if one.start == "layers" and "once" in one.method.name else 0.0) + 2.0 * (one.method.name == "plan.step")

    assert all("no conclusion" in line for line in conclusions(finished(score)) if "plan.step against" in line)


def test_plots_are_drawn_of_what_is_finished(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra notebooks brings it")
    records, cell = Records(None), cell_of()
    finish([cell], records, MACHINE, QUIET)
    paths = plot_all(sections([cell], records), tmp_path)
    assert [path.name for path in paths] == ["rates.png", "loss.png", "norm.png", "imbalance.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert plot_all([], tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_unfinished_cells_have_no_rows() -> None:
    assert sections([cell_of()], Records(None)) == []


@pytest.mark.parametrize(
    ("experiment", "times"), [("mlp", 3), ("autoencoder", 3), ("conv", 3), ("resnet18", 2), ("transformer", 2)]
)
def test_defaults_have_rows_that_train_one_network_again(experiment: str, times: int) -> None:
    cell, records = default(experiment, "digits", "x"), Records(None)
    fake(cell, records, lambda one: peak(0.01)(one) + 2.0 * (one.method.start == "channels"))
    (rows,) = sections([cell], records)
    assert sum(row.is_the_balanced_network for row in rows) == times
    assert noise(rows) == pytest.approx(2.0)


def test_deep_networks_with_large_c_are_warned_of() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    cli.warn_of_growing_norms([cell_of("plain", "plan.step, c=1.2", depth=30)], console)
    assert "at depth 30 the last layer's norm is to be 198 times" in console.export_text()
    cli.warn_of_growing_norms([cell_of("plain", "plan.step", depth=30), cell_of("plan.step, c=1.2", depth=15)], console)
    assert console.export_text() == ""
