"""`plan.history` keeps norm and imbalance over time; pictures of it and of a balance show them; who has no matplotlib is told."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import BindError, FxenormError, MissingLibraryError, OptionError, RescaleError
from fxenorm.rescale.measures import history

from ..helpers import generator
from ..symmetry.test_structures import analysed

INPUTS = torch.randn(8, 4, generator=generator(1))


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(INPUTS).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"p": math.inf}, {"p": 1.0, "c": 1.3}, {"biases": "count"}])
@pytest.mark.parametrize("frozen", [False, True])
def test_records_are_norm_and_imbalance_at_their_time(options: dict[str, Any], frozen: bool) -> None:
    model = network()
    model[0].requires_grad_(not frozen)
    plan = fxenorm.analyze(model, INPUTS, **options)
    assert len(plan.history) == 0 and plan.history.rows() == ()
    expected = []
    for step in (None, 7, torch.tensor(9), None):
        plan.history.record(step)
        expected.append((float(plan.norm()), float(plan.imbalance())))
        plan.step(state="keep")
    rows = plan.history.rows()
    assert [row.step for row in rows] == [0, 7, 9, 10] and all(type(row.step) is int for row in rows)
    torch.testing.assert_close([row[1:] for row in rows], expected, rtol=1e-12, atol=1e-12)
    assert len(str(plan.history).splitlines()) == 4 and repr(plan.history) == "<fxenorm.History: 4 records>"
    plan.history.clear()
    plan.history.record()
    assert [row.step for row in plan.history.rows()] == [0]


def test_records_are_no_views_of_the_weights_and_keep_no_graph() -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    plan.history.record()
    assert not any(value.requires_grad for _, *values in plan.history for value in values)
    before = plan.history.rows()
    with torch.no_grad():
        plan.model[0].weight.mul_(3)
    assert plan.history.rows() == before


@pytest.mark.parametrize("step", ["1", 1.0, True, torch.ones(2, dtype=torch.int64), torch.tensor(1.5)])
def test_a_step_that_is_no_number_of_one_is_refused(step: Any) -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    with pytest.raises(OptionError, match="step="):
        plan.history.record(step)
    assert len(plan.history) == 0


@pytest.mark.parametrize(
    ("record", "every", "due"), [(1, 1, [1, 2, 3, 4, 5]), (2, 1, [2, 4]), (3, 4, [3]), (9, 1, []), (None, 1, [])]
)
def test_attach_records_each_kth_step_after_its_rescaling(record: int | None, every: int, due: list[int]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan, norms = fxenorm.analyze(model, INPUTS), []
    handle = plan.attach(optimizer, every=every, record=record)
    optimizer.register_step_post_hook(lambda *_: norms.append(float(plan.norm())))
    train(model, optimizer, 5)
    assert [row.step for row in plan.history.rows()] == due
    assert [row.norm for row in plan.history.rows()] == pytest.approx([norms[step - 1] for step in due], rel=1e-12)
    assert set(handle.state_dict()) == {"fingerprint", "steps", "stepped", "idle", "counts_on_device", "options"}
    handle.remove()
    train(model, optimizer, 2)
    assert len(plan.history) == len(due)


def test_records_go_on_counting_where_a_checkpoint_ended() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = fxenorm.analyze(model, INPUTS)
    older = {"fingerprint": plan.fingerprint, "steps": 3, "stepped": []}  # as versions without a history wrote it
    plan.attach(optimizer, record=2).load_state_dict(older)
    train(model, optimizer, 3)
    assert [row.step for row in plan.history.rows()] == [4, 6]


def test_steps_that_a_scaler_skips_are_not_counted_by_records() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    plan = fxenorm.analyze(model, INPUTS)
    plan.attach(optimizer, record=1)
    for found in (0.0, 1.0, 0.0):
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.grad_scale = torch.tensor(1.0)  # type: ignore[attr-defined]
        train(model, optimizer, 1)
    first, skipped, last = plan.history.rows()
    assert (first.step, skipped.step, last.step) == (1, 1, 2) and skipped[1:] == first[1:] != last[1:]


@pytest.mark.parametrize("record", [0, -1, 1.5, "2", True])
def test_a_wrong_period_is_refused_before_anything_is_hooked(record: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="record="):
        fxenorm.analyze(model, INPUTS).attach(optimizer, record=record)
    assert not optimizer._optimizer_step_post_hooks


def test_a_copied_or_pickled_plan_takes_its_history_along_and_a_bound_one_begins_anew() -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    plan.history.record()
    for made in (copy.deepcopy(plan), copy.copy(plan), pickle.loads(pickle.dumps(plan))):
        assert made.history.rows() == plan.history.rows()
        made.model[0].weight.data *= 2 if made.model is not plan.model else 1
        made.history.record()
        assert len(made.history) == 2 and len(plan.history) == 1
        assert made.history.rows()[1].norm == pytest.approx(float(made.norm()))
    assert len(plan.bind(network()).history) == 0


def test_a_plan_that_was_pickled_before_there_was_a_history_is_loaded() -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    function, arguments, state = plan.__reduce__()
    del state["history"]
    older = function(*arguments)
    older.__setstate__(state)
    assert len(older.history) == 0
    older.history.record()


def test_recording_meets_errors_as_norm_does() -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    plan.model[0].weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(BindError):
        plan.history.record()
    assert len(plan.history) == 0


def test_recording_asks_for_the_sums_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    read: list[str] = []
    own = history.Weights.gather
    monkeypatch.setattr(history.Weights, "gather", lambda self: read.append("") or own(self))
    plan.history.record()
    assert len(read) == 1


# ---------------------------------------------------------------- ranges and pictures


def channel_norms(layer: nn.Linear, p: float) -> torch.Tensor:
    reads_alone = layer.out_features == 2  # what the last layer writes is fixed
    found = layer.weight.detach().norm(p, dim=0 if reads_alone else 1)
    return found[found > 0]


@pytest.mark.parametrize("options", [{}, {"p": math.inf}, {"p": 0.5, "c": 1.7}, {"biases": "count"}, {"solver": "gauss-seidel"}])
def test_ranges_of_a_balance_are_those_of_the_weights(options: dict[str, Any]) -> None:
    model = network(torch.float64)
    nn.init.zeros_(model[0].weight[2])
    plan = fxenorm.analyze(model, INPUTS.double(), **options)

    def ranges() -> dict[str, tuple[float, float]]:
        norms = {name: channel_norms(model[int(name)], plan.options.p) for name in ("0", "2", "4")}
        return {name: (float(values.min()), float(values.max())) for name, values in norms.items()}

    before, result = ranges(), plan.balance()
    both = (before, ranges())
    for found, expected in zip((result.channel_ranges_before, result.channel_ranges_after), both, strict=True):
        assert found.keys() == expected.keys()
        torch.testing.assert_close(dict(found), expected, rtol=1e-9, atol=0)
    widest = [max(high / low for low, high in found.values()) for found in both]
    assert f"  widest layer  {widest[0]:.4g} -> {widest[1]:.4g}\n" in f"{result}\n"


@pytest.mark.parametrize("name", ["residual", "depthwise", "attention"])
def test_a_balance_is_drawn(name: str) -> None:
    pytest.importorskip("matplotlib")
    plan = analysed(name)[1]
    result = plan.balance()
    figure = result.plot()
    left = figure.axes[0]
    assert [list(line.get_ydata()) for line in left.lines] == [
        list(result.layer_norms_before.values()),
        list(result.layer_norms_after.values()),
    ]
    assert len(figure.axes) == 2 and png(figure).startswith(b"\x89PNG") and figure._repr_png_().startswith(b"\x89PNG")
    for one in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert one.channel_ranges_after == result.channel_ranges_after and len(one.plot().axes) == 2
    older = copy.copy(result)
    for field in ("channel_ranges_before", "channel_ranges_after"):
        object.__setattr__(older, field, {})
    assert len(older.plot().axes) == 1 and "widest" not in str(older)


def png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def test_a_history_is_drawn_in_a_figure_of_its_own_or_a_given_one() -> None:
    module = pytest.importorskip("matplotlib.figure")
    plan = fxenorm.analyze(network(), INPUTS)
    with pytest.raises(OptionError, match=r"history\.record"):
        plan.history.plot()
    for step in (0, 5, 10):
        plan.history.record(step)
        plan.step(state="keep")
    given = module.Figure()
    parts = given.subfigures(2, 1)
    for figure in (plan.history.plot(), plan.history.plot(given), plan.history.plot(parts[1])):
        norm, imbalance = figure.axes[:2]
        assert list(norm.lines[0].get_xdata()) == [0, 5, 10]
        assert list(norm.lines[0].get_ydata()) == [row.norm for row in plan.history.rows()]
        assert list(imbalance.lines[0].get_ydata()) == [row.imbalance for row in plan.history.rows()]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()  # nobody has to close it


def test_there_is_nothing_to_draw_where_nothing_is_counted() -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.ReLU()), INPUTS)
    with pytest.warns(fxenorm.FxenormWarning):
        result = plan.balance()
    with pytest.raises(RescaleError, match="nothing to draw"):
        result.plot()


def test_who_has_no_matplotlib_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    plan.history.record()
    result = plan.balance()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    for draw in (plan.history.plot, result.plot):
        with pytest.raises(MissingLibraryError, match=r"fxenorm\[plot\]") as caught:
            draw()
        assert isinstance(caught.value, (FxenormError, ImportError))
    plan.history.record()
    assert len(str(plan.history).splitlines()) == 2 and str(result)
