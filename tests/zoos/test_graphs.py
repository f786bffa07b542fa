"""Models of torch_geometric: sound, complete by the oracle, and analysed without example inputs."""

from __future__ import annotations

import warnings

import pytest

import fxenorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch_geometric", reason="pip install fxenorm[graph]", exc_type=ImportError)

from ..graph_models import JUMPS, MODELS, build, claimed_and_true, inputs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", MODELS)
def test_graph_models_are_sound_and_complete(name: str) -> None:
    model = build(name).double()
    plan = fxenorm.analyze(model, inputs())
    assert plan.num_scales > 0 and plan.exact
    found = plan.verify(inputs(1))
    assert found and set(found.differences) == {"eval", "train"}, str(found)
    if name not in JUMPS:
        claimed, true = claimed_and_true(name, plan.symmetry)
        assert claimed == true


@pytest.mark.parametrize("name", ["gcn", "gat", "sage", "gin", "edge-cnn", "res-gated"])
def test_graph_models_need_no_example_inputs(name: str) -> None:
    model = build(name)
    plan = fxenorm.analyze(model)
    assert plan.num_scales == fxenorm.analyze(model.double(), inputs()).num_scales
    assert plan.verify()
