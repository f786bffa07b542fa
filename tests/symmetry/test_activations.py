"""Where activations carry scales: at module boundaries, and in what layers read and write, measured on the model itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import draw_log_scales, randomise, state_of
from ..zoo import CASES
from ..zoo_base import VECTOR, Case, Net


class Block(nn.Module):
    """Hands out what its own layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.inner(x).relu()
        return h, self.outer(h)


OWN: dict[str, Case] = {
    "names_that_begin_alike": Case(
        lambda: Net(lambda m, x: m.c(m.a(m.ab(x))), ab=nn.Linear(4, 5), a=nn.Linear(5, 6), c=nn.Linear(6, 2)), VECTOR, 5 + 6
    ),
    "handed_out_and_read_inside": Case(
        lambda: Net(
            lambda m, x: m.b((parts := m.block(x))[0]) + m.c(parts[1].relu()), block=Block(), b=nn.Linear(5, 2), c=nn.Linear(6, 2)
        ),
        VECTOR,
        5 + 6,
    ),
    "unread_output": Case(
        lambda: Net(lambda m, x: (h := m.a(x), m.b(m.r(h)))[1], a=nn.Linear(4, 5), r=nn.ReLU(), b=nn.Linear(5, 2)), VECTOR, 5
    ),
}
NAMES = [
    "mlp", "nested", "conv2d", "conv_grouped", "flatten", "prelu", "max_pool", "square", "batch_norm", "layer_norm", "residual",
    "concat", "channel_shuffle_module", "product", "halves_of_other_powers", "mean_over_channels", "divided_by_its_norm", *OWN,
]  # fmt: skip


def activations(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[tuple[str, str], list[Tensor]]:
    """(module, "input" or "output") -> what went in or out at each call, where that is one tensor."""
    found: dict[tuple[str, str], list[Tensor]] = {}

    def note(module: str, direction: str, value: object) -> None:
        if isinstance(value, Tensor):
            found.setdefault((module, direction), []).append(value.detach().clone())

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda m, given, name=name: note(name, "input", given[0])))
            handles.append(module.register_forward_hook(lambda m, given, out, name=name: note(name, "output", out)))
    with torch.no_grad():
        model.eval()(*inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_activations_move_as_their_sites_say_and_the_others_not_at_all(name: str) -> None:
    case = OWN[name] if name in OWN else CASES[name]
    inputs = case.inputs()
    model = randomise(case.build().double(), seed=3)
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == case.num_scales
    log_scales = torch.cat([draw_log_scales(plan), torch.zeros(1, dtype=torch.float64)])
    saved, before = state_of(model), activations(model, inputs)
    plan.rescale(log_scales[:-1])
    after = activations(model, inputs)
    model.load_state_dict(saved)
    seen = set()
    for (module, direction), values in before.items():
        sites = [site for site in plan.symmetry.sites if (site.module, site.direction) == (module, direction)]
        if not sites and next(model.get_submodule(module).children(), None) is not None:
            continue  # a container's ends are told as those of the modules in it
        seen.update(map(id, sites))
        for call, expected in enumerate(values):
            for site in sites:
                if site.call == call:
                    factor = (site.coefficient * log_scales[torch.from_numpy(site.variables.copy())]).exp()
                    expected = expected * factor.reshape([-1 if axis == site.axis else 1 for axis in range(expected.ndim)])
            where = f"{module} {direction} of call {call}"
            torch.testing.assert_close(after[module, direction][call], expected, rtol=1e-9, atol=1e-9, msg=where)
    missing = [site.module for site in plan.symmetry.sites if id(site) not in seen and site.module not in ("", "block")]
    assert not missing, f"no tensor goes in or out there: {missing}"
    listed = {id(site) for group in plan.groups for site in group.sites}
    assert all(id(site) in listed for site in plan.symmetry.sites if (site.variables >= 0).any())


def test_what_a_module_hands_out_is_a_site_though_it_reads_it_too() -> None:
    case = OWN["handed_out_and_read_inside"]
    sites = fxenorm.analyze(case.build().double(), case.inputs()).symmetry.sites
    assert {len(site.variables) for site in sites if (site.module, site.direction) == ("block", "output")} == {5}


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("mlp", [5, 7]),
        ("residual", [6, 7, 5]),  # the stream is read last
        ("flatten", [5 * 4 * 5, 7]),  # as the linear layer reads it, and as the convolution writes it
        ("layer_norm", [6]),
        ("two_heads", [5]),
    ],
)
def test_channels_are_what_layers_read_and_write_each_at_its_last_place(name: str, widths: list[int]) -> None:
    case = CASES[name]
    symmetry = fxenorm.analyze(case.build().double(), case.inputs()).symmetry
    found = [max(ids.shape) for ((_, ids),) in symmetry.channels]
    assert [width for width in found if width in widths] == widths
    assert {int(k) for terms in symmetry.channels for _, ids in terms for k in ids.ravel()} - {-1} == set(
        range(symmetry.num_scales)
    )


def _a_product_between_layers(m: Net, x: torch.Tensor) -> torch.Tensor:
    return m.c((m.a(x) * m.b(x)).square().abs())


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3), nn.Linear(3, 4)), [[(1, [0, 1])], [(1, [2, 3, 4])]]),
        (
            Net(_a_product_between_layers, a=nn.Linear(4, 2), b=nn.Linear(4, 2), c=nn.Linear(2, 3)),
            [[(1, [0, 1])], [(1, [2, 3])], [(2, [0, 1]), (2, [2, 3])]],
        ),
    ],
    ids=["layer after layer", "a product that no layer reads or writes"],
)
def test_nothing_between_the_layers_is_a_channel(model: nn.Module, channels: list[list[tuple[int, list[int]]]]) -> None:
    symmetry = fxenorm.analyze(model, torch.randn(3, 4)).symmetry
    assert [sorted((c, ids.ravel().tolist()) for c, ids in terms) for terms in symmetry.channels] == channels
