"""What leaves forward is held, whatever carries it out; `outputs` names what counts; caches of Transformers are left out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.analysis.options import Options
from fxenorm.errors import OptionError
from fxenorm.trace.reachable import Search

from ..helpers import draw_log_scales
from ..output_cases import FEATURES, HIDDEN, IN, LEFT, NOT_LEFT, NUMBERS, OUT, RETURNED, UNSEARCHABLE, Leaving, generator

pytestmark = pytest.mark.filterwarnings("ignore")


def leaving(case: Callable[..., Any], by_value: bool = False) -> Leaving:
    """A model from whose forward `case` is returned."""
    return Leaving(lambda model, f, y, into: case(model, f, y), by_value)


def features(model: Leaving, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.a(x).relu()


def check_held(model: Leaving, plan: Any, x: Tensor) -> None:
    """The hidden channels are free, the features stay, and `verify` sees nothing."""
    assert plan.num_scales == HIDDEN and plan.exact and set(plan.modes) == {"eval", "train"}
    before = features(model, x)
    plan.rescale(draw_log_scales(plan))
    assert torch.equal(features(model, x), before)


def too_free(model: Leaving, x: Tensor) -> Any:
    """The plan of a model of the same parameters from which only the output leaves, on `model`: a wrong one."""
    return fxenorm.analyze(Leaving(lambda *_: None), x).bind(model)


IN_A_REAL_RUN = ["dict.values", "map", "generator expression", "slots", "closure", "future", "attribute of a module", "coroutine"]


@pytest.mark.parametrize(("name", "by_value"), [(name, False) for name in RETURNED] + [(name, True) for name in IN_A_REAL_RUN])
def test_what_is_returned_in_any_object_is_held(name: str, by_value: bool) -> None:
    model, x = leaving(RETURNED[name], by_value), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    assert plan.tracer == ("make_fx" if by_value else "export")
    check_held(model, plan, x)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_that_python_returns_is_held(name: str) -> None:
    model, x = leaving(NUMBERS[name]), torch.randn(5, IN)
    check_held(model, fxenorm.analyze(model, x), x)


@pytest.mark.parametrize("by_value", [False, True], ids=["export", "real run"])
def test_a_generator_that_runs_a_part_of_the_model_is_followed(by_value: bool) -> None:
    model, x = leaving(lambda model, f, y: generator(model, f), by_value), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales == FEATURES + HIDDEN and "extra.weight" in plan.exponents and plan.exact
    assert plan.verify() and not too_free(model, x).verify(x)


@pytest.mark.parametrize("name", ["dict.values", "closure", "slots", "future", "bound method"])
def test_verify_sees_what_is_returned_in_any_object(name: str) -> None:
    model, x = leaving(RETURNED[name]), torch.randn(5, IN)
    assert fxenorm.analyze(model, x).verify() and not too_free(model, x).verify(x)


@pytest.mark.parametrize("name", ["item", "tolist", "numpy", "format string", "numbers in a list in a dict"])
def test_verify_sees_values_that_python_returns(name: str) -> None:
    model, x = leaving(NUMBERS[name]), torch.randn(5, IN)
    assert fxenorm.analyze(model, x).verify() and not too_free(model, x).verify(x)


@pytest.mark.parametrize("name", LEFT)
def test_what_forward_leaves_in_attributes_and_arguments_is_held_unless_outputs_says_otherwise(name: str) -> None:
    leave, path = LEFT[name]
    model, x = Leaving(leave), torch.randn(5, IN)
    inputs = (x, []) if "passed" in name else (x,)
    plan = fxenorm.analyze(model, inputs)
    vars(model.helper).clear()
    check_held(model, plan, x)
    assert plan.verify(inputs)
    # Along a real run a number is no output of the graph: its tensor is held where its value reached Python.
    read = name in ("number", "float") and plan.tracer == "make_fx"
    assert read or path in {use.path for use in plan.symmetry.outputs if use.held}
    only = fxenorm.analyze(model, inputs, outputs="output")
    vars(model.helper).clear()
    # The next call may read a buffer, and what lies in a container; a value that a real run gave to Python may have decided its
    # path.
    kept = read or name in ("buffer", "list", "dict", "list of the class")
    assert only.num_scales == (HIDDEN if kept else FEATURES + HIDDEN)
    assert only.verify(inputs) and "self" not in {use.path.split(".")[0] for use in only.symmetry.outputs if use.held}
    alone = fxenorm.analyze(model, inputs, outputs=path)
    vars(model.helper).clear()
    assert alone.exact and alone.verify(inputs)


def test_verify_sees_what_is_left_in_attributes() -> None:
    model, x = Leaving(LEFT["attribute"][0]), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    stored = plan.to_dict()
    stored["symmetry"]["outputs"] = [["output", True, 0, ""]]
    assert too_free(model, x).verify(x), "what a plan does not know of it cannot compare"
    data = too_free(model, x).to_dict()
    data["symmetry"]["outputs"].append(["self.aux", True, 0, ""])
    assert not fxenorm.Plan.from_dict(data, model).verify(x)


@pytest.mark.parametrize("name", NOT_LEFT)
def test_what_is_no_output_costs_nothing(name: str) -> None:
    model, x = Leaving(NOT_LEFT[name]), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales == FEATURES + HIDDEN and plan.exact and plan.verify()


def test_weights_that_are_made_before_each_call_are_no_outputs() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(IN, FEATURES)), nn.ReLU(), nn.Linear(FEATURES, OUT))
    assert fxenorm.analyze(model, torch.randn(5, IN)).num_scales == 2 * FEATURES  # v, and the norm's own


def test_running_statistics_are_no_outputs() -> None:
    model = nn.Sequential(nn.Linear(IN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
    plan = fxenorm.analyze(model, torch.randn(5, IN))
    assert plan.num_scales == HIDDEN and {use.path for use in plan.symmetry.outputs} == {"output"}


def test_a_value_that_python_only_looks_at_is_held() -> None:
    model, x = leaving(lambda model, f, y: print(f"mean {f.mean().item()}", end="")), torch.randn(5, IN)
    check_held(model, fxenorm.analyze(model, x), x)


def test_what_is_written_into_an_input_is_held() -> None:
    def write(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
        into.copy_(f.detach())

    model, x = Leaving(write), torch.randn(5, IN)
    inputs = (x, torch.zeros(5, FEATURES))
    plan = fxenorm.analyze(model, inputs)
    check_held(model, plan, x)
    assert plan.verify(inputs) and not too_free(model, x).verify(inputs)


@pytest.mark.parametrize("name", UNSEARCHABLE)
def test_what_cannot_be_searched_is_said(name: str) -> None:
    model, x = leaving(UNSEARCHABLE[name]), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    assert not plan.exact and any("'1" in reason and "cannot be searched" in reason for reason in plan.inexact_reasons)
    assert fxenorm.analyze(model, x, outputs="0").exact, "nobody asked for it"


def test_a_tensor_of_another_thread_is_not_taken_for_a_constant() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def beside(model: Leaving, f: Tensor, y: Tensor) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: f * 2)

    plan = fxenorm.analyze(leaving(beside), torch.randn(5, IN))
    assert plan.num_scales == HIDDEN or not plan.exact


def test_a_returned_part_of_the_model_is_held() -> None:
    model, x = leaving(lambda model, f, y: model.b), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x)
    before = model.b.weight.detach().clone()
    plan.rescale(draw_log_scales(plan))
    assert torch.equal(model.b.weight, before)


class Nested(nn.Module):
    """Two heads and the features, in a dict, a list and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(IN, FEATURES), nn.Linear(FEATURES, OUT), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        f = self.a(x).relu()
        aux = torch.nn.functional.gelu(self.c(f))
        return {"logits": self.b(f), "aux": [aux, (f, aux.shape[0])]}


@pytest.mark.parametrize(
    ("outputs", "count"),
    [
        (None, 0),
        ("logits", FEATURES),
        (("logits", "aux.0"), FEATURES),
        ("aux.0", FEATURES),
        ("aux.1.*", 0),
        ("aux", 0),  # all that lies below
        ("a*", 0),
        ("*", 0),
    ],
)
def test_only_the_named_outputs_are_held(outputs: Any, count: int) -> None:
    model, x = Nested(), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x, outputs=outputs)
    assert plan.num_scales == count and plan.exact
    assert plan.verify()
    if count:
        free = fxenorm.analyze(model, x, outputs="logits")
        # A plan of other options than its exponents: without its fingerprint, which would tell.
        mixed = {**free.to_dict(), "options": plan.to_dict()["options"], "fingerprint": None}
        sees = not fxenorm.Plan.from_dict(mixed, model).verify(x)
        assert sees == (outputs != "logits"), "verify compares exactly the named outputs"


@pytest.mark.parametrize("outputs", ["output", "0", "out*", "*"])
def test_a_tensor_by_itself_is_called_output_and_0(outputs: str) -> None:
    assert (
        fxenorm.analyze(nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)), outputs=outputs).num_scales
        == HIDDEN
    )


@pytest.mark.parametrize("outputs", ["logit", ("logits", "aux.7"), "self.aux"])
def test_a_pattern_that_names_nothing_lists_the_paths(outputs: Any) -> None:
    with pytest.raises(OptionError, match=r"names nothing that forward returns; it returns 'logits', 'aux.0', 'aux.1.0'"):
        fxenorm.analyze(Nested(), torch.randn(5, IN), outputs=outputs)


@pytest.mark.parametrize("outputs", [(), 3, ["logits", 1], b"logits"])
def test_outputs_are_patterns(outputs: Any) -> None:
    with pytest.raises(OptionError, match="outputs="):
        fxenorm.analyze(Nested(), torch.randn(5, IN), outputs=outputs)


def test_each_mode_needs_an_output_that_is_held() -> None:
    class Heads(Nested):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return found if self.training else found["logits"]

    model, x = Heads(), torch.randn(5, IN)
    with pytest.raises(OptionError, match=r"in eval mode none of 'logits'.*returns 'output'"):
        fxenorm.analyze(model, x, outputs="logits")
    plan = fxenorm.analyze(model, x, outputs=["logits", "output"])
    assert plan.num_scales == FEATURES and plan.verify()


def test_the_printed_plan_names_the_outputs_that_hold() -> None:
    text = str(fxenorm.analyze(Nested(), torch.randn(5, IN)))
    # The features hold their channels; both heads then hold what is left of theirs.
    assert f"fixed by the model's outputs: {OUT + FEATURES} channels (logits {OUT}, aux {FEATURES})" in text
    assert "outputs='logits'" in text
    text = str(fxenorm.analyze(Nested(), torch.randn(5, IN), outputs="logits"))
    assert "not held, not named in outputs=: aux" in text and "outputs=('logits',)" in text
    assert "channels\n" in str(fxenorm.analyze(nn.Linear(3, 2))) + "\n" and "(output" not in str(fxenorm.analyze(nn.Linear(3, 2)))


def test_a_stored_plan_keeps_its_outputs_and_an_old_one_still_loads() -> None:
    model, x = Nested(), torch.randn(5, IN)
    plan = fxenorm.analyze(model, x, outputs=["logits"])
    again = fxenorm.Plan.from_dict(json.loads(json.dumps(plan.to_dict())), model)
    assert again.options == plan.options and again.symmetry.outputs == plan.symmetry.outputs
    assert again.fingerprint == plan.fingerprint != fxenorm.analyze(model, x, outputs=["logits", "aux.0"]).fingerprint
    assert again.verify(x) and str(again) == str(plan)
    old = fxenorm.analyze(model, x).to_dict()
    del old["options"]["outputs"], old["symmetry"]["outputs"]
    loaded = fxenorm.Plan.from_dict(old, model)
    assert loaded.options == Options() and loaded.fingerprint == fxenorm.analyze(model, x).fingerprint and loaded.verify(x)


def llama() -> Any:
    """A language model of one layer, which returns its cache."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


NORMS, GATE, VALUES, ROTARY_PAIRS = 3 * 32, 64, 2 * 8, 2 * 8 // 2
"""Scales of a layer: three norms, the gate's linear branch, the values of two heads, the rotated pairs of their keys."""


def test_a_cache_of_transformers_is_left_out_by_default_and_the_plan_says_so() -> None:
    model = llama()
    ids = torch.randint(0, 128, (2, 6))
    whole = NORMS + GATE + VALUES + ROTARY_PAIRS
    plan = fxenorm.analyze(model)
    assert plan.num_scales == whole == fxenorm.analyze(model, ids, example_kwargs={"use_cache": False}).num_scales
    assert "(logits 128)" in str(plan) and "not held: past_key_values, a cache that is fed back" in str(plan)
    assert plan.verify(ids)
    assert fxenorm.analyze(model, ids, example_kwargs={"return_dict": False}).num_scales == whole
    held = fxenorm.analyze(model, ids, outputs="*")
    assert held.num_scales == NORMS + GATE and "(logits 128, past_key_values 24)" in str(held) and held.verify()
    for patterns in (["logits", "past_key_values.*"], ["logits", "past_key_values"]):
        assert fxenorm.analyze(model, ids, outputs=patterns).num_scales == NORMS + GATE
    # Held keys hold their channels; held values theirs.
    assert fxenorm.analyze(model, ids, outputs=["logits", "past_key_values.*.keys"]).num_scales == NORMS + GATE + VALUES
    assert fxenorm.analyze(model, ids, outputs="logits").num_scales == whole


def test_other_caches_are_left_out_on_request() -> None:
    class Cached(Nested):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            f = self.a(x).relu()
            return self.b(f), {"cache": f}

    model, x = Cached(), torch.randn(5, IN)
    assert fxenorm.analyze(model, x).num_scales == 0
    assert fxenorm.analyze(model, x, outputs="0").num_scales == FEATURES


def test_where_only_a_cache_is_returned_it_is_held() -> None:
    transformers = pytest.importorskip("transformers")

    class Encoder(Nested):
        def forward(self, x: Tensor) -> Any:
            cache = transformers.DynamicCache()
            f = self.a(x).relu()[:, None, None]
            cache.update(f, f, 0)
            return cache

    assert fxenorm.analyze(Encoder(), torch.randn(5, IN)).num_scales == 0


def test_inspector_callback_and_analyze_have_one_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from fxenorm.inspect.cli import main

    file = tmp_path / "language.py"
    file.write_text(
        "import torch\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "model = LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1,\n"
        "    num_attention_heads=4, num_key_value_heads=2))\nexample_inputs = torch.randint(0, 128, (2, 6))\n"
    )
    counts = {}
    for outputs in ((), ("--outputs", "logits", "--outputs", "past_key_values.*")):
        assert main([str(file), "--json", *outputs]) == 0
        answer = json.loads(capsys.readouterr().out)
        counts[bool(outputs)] = answer["totals"]["free_channels"]
        held = {use["path"].split(".")[0] for use in answer["outputs"] if use["held"]}
        assert held == ({"logits", "past_key_values"} if outputs else {"logits"})
    assert counts == {False: NORMS + GATE + VALUES + ROTARY_PAIRS, True: NORMS + GATE}
    assert main([str(file), "--outputs", "nothing"]) == 2 and "names nothing" in capsys.readouterr().err
    assert main([str(file)]) == 0
    assert "not held: past_key_values" in " ".join(capsys.readouterr().out.split())


def test_the_callback_of_transformers_finds_the_scales_that_analyze_finds(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from fxenorm.integrations.transformers import FxenormCallback

    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 128, (8, 6))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    model, callback = llama(), FxenormCallback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    assert callback.plan.num_scales == fxenorm.analyze(model).num_scales == NORMS + GATE + VALUES + ROTARY_PAIRS


@pytest.mark.parametrize(("count", "kinds"), [(3, ["tensor"] * 3), (4, ["tensor"] * 3 + ["unsearched"])])
def test_what_is_returned_is_searched_up_to_a_number_of_objects(
    count: int, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are allowed are looked at, with the list that holds them; of one more it is said that it was not."""
    monkeypatch.setattr("fxenorm.trace.reachable._MOST_OBJECTS", 4)
    leaves = list(Search(runs_lazy_code=False).leaves("", [torch.zeros(()) for _ in range(count)]))
    assert [leaf.kind for leaf in leaves] == kinds and all(
        ("more than 4" in leaf.reason) == (leaf.kind == "unsearched") for leaf in leaves
    )
