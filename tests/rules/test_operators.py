"""Soundness, operator by operator: whatever stands between two layers, the scales that are claimed keep the function.

One row is one function of an activation (or of two); the rule table is not consulted. A missing law costs scales and passes
here; a wrong one changes the output and fails. What must be found is in `zoo`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxenorm

from ..helpers import TOLERANCE, generator, outputs, randomise, soundness_error
from ..zoo import Net

SHAPE = (3, 6, 8)
"""Batch, channels, positions of every activation: three sizes, and six channels that also split into groups."""


def written_view(h: Tensor) -> Tensor:
    """Writes through two views of a copy."""
    h = h.clone()
    h[:, :2].mul_(3.0)
    h[:, 3] += 1
    return h


def zeroed_view(h: Tensor) -> Tensor:
    """Writes zeros, then scales across the channels' border."""
    h = h.clone()
    h[:, :2] = 0
    h.view(3, 48)[:, 5:9] *= 2
    return h


def swapped(h: Tensor) -> Tensor:
    """index_put of two channels."""
    h = h.clone()
    h[:, [0, 2]] = h[:, [2, 0]]
    return h


def written_part(parts: Callable[[Tensor], Sequence[Tensor]], write: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Writes into the first of several views that one call made."""

    def function(h: Tensor) -> Tensor:
        h = h.clone()
        write(parts(h)[0])
        return h

    return function


def slice_set(a: Tensor, b: Tensor) -> Tensor:
    """Channels of one become channels of the other."""
    a = a.clone()
    a[:, 1:3] = b[:, :2]
    return a


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    # degree 1, other degrees, none
    "relu": F.relu,
    "leaky": lambda h: F.leaky_relu(h, 0.3),
    "rrelu": lambda h: F.rrelu(h, 0.1, 0.1),
    "abs": torch.abs,
    "neg": torch.neg,
    "half": lambda h: h * 0.5,
    "third": lambda h: h / 3.0,
    "one_minus": lambda h: 1 - h,
    "reciprocal": torch.reciprocal,
    "two_over": lambda h: 2.0 / h,
    "over_shifted": lambda h: 1 / (h.abs() + 0.1),
    "square": torch.square,
    "power_2": lambda h: h**2,
    "power_3": lambda h: h**3,
    "power_half": lambda h: h.abs() ** 0.5,
    "power_minus": lambda h: h.abs() ** -1,
    "two_to_the": lambda h: 2.0 ** h.clamp(-2, 2),
    "sqrt": lambda h: h.abs().sqrt(),
    "rsqrt": lambda h: h.abs().rsqrt(),
    "signed_square": lambda h: h * h.abs(),
    "exp": lambda h: h.clamp(-3, 3).exp(),
    "log": lambda h: (h.abs() + 0.5).log(),
    "sign": torch.sign,
    "times_sign": lambda h: h * torch.sign(h),
    "round": torch.round,
    "floor": torch.floor,
    "fraction": torch.frac,
    "remainder": lambda h: h % 1.0,
    "to_integer": lambda h: h.to(torch.int64).to(h.dtype),
    "softsign": F.softsign,
    "mish": F.mish,
    "celu": F.celu,
    "selu": F.selu,
    "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink,
    "hardshrink": lambda h: F.hardshrink(h, 0.1),
    "swish": lambda h: h * torch.sigmoid(h),
    "glu": lambda h: torch.cat([F.glu(h, 1)] * 2, 1),
    "nan_to_num": torch.nan_to_num,
    "detach": lambda h: h.detach() * 2,
    # limits
    "clamp_0": lambda h: h.clamp(min=0),
    "clamp_01": lambda h: h.clamp(0, 1),
    "clamp_max_0": lambda h: h.clamp(max=0.0),
    "clamp_min_-1": lambda h: h.clamp(min=-1),
    "threshold_0": lambda h: F.threshold(h, 0.0, 0.0),
    "threshold_0_1": lambda h: F.threshold(h, 0.0, 1.0),
    "threshold_.1": lambda h: F.threshold(h, 0.1, 0.0),
    "minimum_0": lambda h: torch.minimum(h, torch.zeros_like(h)),
    "maximum_1": lambda h: torch.maximum(h, torch.ones_like(h)),
    "fmax": lambda h: torch.fmax(h, -h),
    "heaviside": lambda h: h * torch.heaviside(h, torch.zeros((), dtype=h.dtype)),
    # comparisons and masks
    "where_0": lambda h: torch.where(h > 0, h, 0.2 * h),
    "where_half": lambda h: torch.where(h > 0.5, h, 0.2 * h),
    "where_else_1": lambda h: torch.where(h > 0, h, 1.0),
    "where_else_0": lambda h: torch.where(h > 0, h, 0.0),
    "mask": lambda h: h * (h > 0),
    "mask_half": lambda h: h * (h > 0.5),
    "fill_0": lambda h: h.masked_fill(h < 0, 0.0),
    "fill_1": lambda h: h.masked_fill(h < 0, 1.0),
    "fill_inf": lambda h: h.masked_fill(h < 0, -torch.inf).softmax(2),
    "against_neighbour_position": lambda h: h * (h >= h.roll(1, 2)),
    "against_neighbour_channel": lambda h: h * (h > h.roll(1, 1)),
    "equal_to_largest": lambda h: h * (h == h.amax(2, keepdim=True)),
    "above_mean": lambda h: h * (h > h.mean(2, keepdim=True)),
    "argmax": lambda h: h * h.argmax(1, keepdim=True),
    "argmax_of_all": lambda h: h * h.argmax(),
    "bucketize": lambda h: h * torch.bucketize(h, torch.tensor([0.0, 1.0]).to(h)),
    "count": lambda h: h * (h > 0).sum(2, keepdim=True),
    "one_hot": lambda h: h * F.one_hot(h.argmax(1), 6).transpose(1, 2),
    # order and running sums
    "cumsum_channels": lambda h: h.cumsum(1),
    "cumsum_positions": lambda h: h.cumsum(2),
    "cumprod": lambda h: h.cumprod(2),
    "cummax_positions": lambda h: h.cummax(2)[0],
    "cummax_channels": lambda h: h.cummax(1)[0],
    "logcumsumexp": lambda h: torch.logcumsumexp(h, 2),
    "sort_channels": lambda h: h.sort(1)[0],
    "sort_positions": lambda h: h.sort(2)[0],
    "topk_channels": lambda h: h.topk(6, 1)[0],
    "topk_positions": lambda h: h.topk(8, 2)[0],
    "median": lambda h: h - h.median(2, keepdim=True)[0],
    "quantile": lambda h: h - h.quantile(0.5, 2, keepdim=True),
    "difference": lambda h: torch.cat([h[:, :, :1], h.diff(dim=2)], 2),
    # reductions and norms without parameters
    "minus_mean_channels": lambda h: h - h.mean(1, keepdim=True),
    "minus_mean_positions": lambda h: h - h.mean(2, keepdim=True),
    "minus_mean_batch": lambda h: h - h.mean(0, keepdim=True),
    "over_max_channels": lambda h: h / h.abs().amax(1, keepdim=True),
    "over_max_positions": lambda h: h / h.abs().amax(2, keepdim=True),
    "over_range": lambda h: (h - h.amin(2, keepdim=True)) / (h.amax(2, keepdim=True) - h.amin(2, keepdim=True)),
    "over_std": lambda h: h / h.std(2, keepdim=True),
    "times_std_channels": lambda h: h * h.std(1, keepdim=True),
    "times_var": lambda h: h * h.var(2, keepdim=True),
    "over_norm": lambda h: h / h.norm(),
    "over_1_norm": lambda h: h / h.norm(p=1, dim=2, keepdim=True),
    "normalize_positions": lambda h: F.normalize(h, dim=2),
    "normalize_channels": lambda h: F.normalize(h, dim=1),
    "times_product": lambda h: h * h.prod(1, keepdim=True),
    "cosine_similarity": lambda h: h * F.cosine_similarity(h, h.roll(1, 2), dim=2).unsqueeze(2),
    "softmax_channels": lambda h: h.softmax(1),
    "softmax_positions": lambda h: h.softmax(2),
    "log_softmax": lambda h: h.log_softmax(2),
    "minus_logsumexp": lambda h: h - h.logsumexp(2, keepdim=True),
    "batch_norm": lambda h: F.batch_norm(h, torch.zeros(6).to(h), torch.ones(6).to(h)),
    "layer_norm": lambda h: F.layer_norm(h, (8,)),
    "instance_norm": F.instance_norm,
    "group_norm": lambda h: F.group_norm(h, 2),
    # windows
    "max_pool": lambda h: F.max_pool1d(h, 3, 1, 1),
    "avg_pool": lambda h: F.avg_pool1d(h, 3, 1, 1),
    "max_pool_channels": lambda h: F.max_pool1d(h.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "avg_pool_channels": lambda h: F.avg_pool1d(h.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "adaptive_avg": lambda h: F.adaptive_avg_pool1d(h, 4).repeat(1, 1, 2),
    "adaptive_max": lambda h: F.adaptive_max_pool1d(h, 8),
    "interpolate_linear": lambda h: F.interpolate(h, size=16, mode="linear")[:, :, ::2],
    "interpolate_nearest": lambda h: F.interpolate(h, size=4).repeat(1, 1, 2),
    "pad_zero": lambda h: F.pad(h, (1, 1))[:, :, :8],
    "pad_reflect": lambda h: F.pad(h, (1, 1), mode="reflect")[:, :, 1:9],
    "pad_replicate": lambda h: F.pad(h, (2, 0), mode="replicate")[:, :, :8],
    "pad_one": lambda h: F.pad(h, (1, 0), value=1.0)[:, :, :8],
    "pad_channels": lambda h: F.pad(h, (0, 0, 1, 0))[:, :6],
    "unfold": lambda h: F.pad(h, (2, 0)).unfold(2, 3, 1).sum(-1),
    # entries that move
    "flip_channels": lambda h: h.flip(1),
    "flip_positions": lambda h: h.flip(2),
    "roll_channels": lambda h: h.roll(1, 1),
    "roll_flat": lambda h: h.roll(3),
    "triangle": lambda h: h.triu(),
    "reinterpreted": lambda h: h.reshape(3, 8, 6).transpose(1, 2),
    "strided": lambda h: h.contiguous().as_strided(SHAPE, (48, 1, 6)),
    "shuffled": lambda h: h.view(3, 2, 3, 8).transpose(1, 2).reshape(SHAPE),
    "permuted": lambda h: h[:, [1, 0, 3, 2, 5, 4]],
    "duplicated": lambda h: h[:, [0, 0, 1, 1, 2, 2]],
    "permuted_batch": lambda h: h[[2, 0, 1]],
    "boolean_index": lambda h: h[:, torch.tensor([True] * 6)],
    "index_select": lambda h: h.index_select(1, torch.tensor([5, 4, 3, 2, 1, 0])),
    "take_along": lambda h: torch.take_along_dim(h, torch.zeros(SHAPE, dtype=torch.long), 1),
    "gather_by_order": lambda h: h.gather(2, h.argsort(2)),
    "gather_channels_by_order": lambda h: h.gather(1, h.argsort(1)),
    "first_channel": lambda h: h[:, :1].expand(SHAPE),
    "chunks": lambda h: torch.cat(h.chunk(2, 1)[::-1], 1),
    "splits": lambda h: torch.cat(h.split([3, 5], 2)[::-1], 2),
    "stacked": lambda h: torch.stack([h[:, i] for i in range(6)], 1),
    "unbound": lambda h: torch.stack(h.unbind(2)[::-1], 2),
    "tiled": lambda h: h.tile(1, 1, 2)[:, :, ::2],
    "repeated": lambda h: h.repeat_interleave(2, 1)[:, :6],
    "pixels": lambda h: F.pixel_unshuffle(F.pixel_shuffle(h.reshape(3, 4, 3, 4), 2), 2).reshape(SHAPE),
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(1, torch.tensor([0, 1, 0, 1, 2, 2]).view(1, 6, 1).expand(SHAPE), h),
    "index_add": lambda h: torch.zeros_like(h).index_add(1, torch.tensor([5, 4, 3, 2, 1, 0]), h),
    "diagonal": lambda h: h * h.diagonal(dim1=1, dim2=2).sum(),
    "fourier": lambda h: torch.fft.irfft(torch.fft.rfft(h), n=8),
    # written in place
    "add_1_": lambda h: h.clone().add_(1),
    "written_view": written_view,
    "zeroed_view": zeroed_view,
    "written_chunk": written_part(lambda h: h.chunk(2, 1), lambda v: v.fill_(1.0)),
    "written_split": written_part(lambda h: h.split([2, 4], 1), torch.square_),
    "written_unbound": written_part(lambda h: h.unbind(1), lambda v: v.fill_(1.0)),
    "written_tensor_split": written_part(lambda h: h.tensor_split(3, 2), torch.square_),
    "written_transposed": written_part(lambda h: h.permute(1, 0, 2), lambda v: v.fill_(1.0)),
    "written_diagonal": written_part(lambda h: [h.diagonal(dim1=1, dim2=2)], torch.square_),
    "index_put": swapped,
    "copied": lambda h: torch.empty_like(h).copy_(h),
    "ones_plus": lambda h: torch.ones_like(h) + h,
    "zeros_plus": lambda h: torch.zeros_like(h) + h,
    # products with itself
    "gram_channels": lambda h: (h @ h.transpose(1, 2)) @ h,
    "gram_positions": lambda h: h @ (h.transpose(1, 2) @ h),
    "attention": lambda h: F.scaled_dot_product_attention(h, h, h),
    "attention_positions": lambda h: F.scaled_dot_product_attention(*[h.transpose(1, 2)] * 3).transpose(1, 2),
    "mixed_softmax": lambda h: torch.bmm(h.softmax(1) @ h.transpose(1, 2), h),
    "distances": lambda h: torch.cdist(h, h) @ h,
    "addcmul": lambda h: torch.addcmul(h, h, h),
    "lerp_with_neighbour": lambda h: torch.lerp(h, h.roll(1, 2), 0.3),
}

TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "div_shifted": lambda a, b: a / (b.abs() + 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where_sign": lambda a, b: torch.where(a > 0, a, b),
    "where_larger": lambda a, b: torch.where(a > b, a, b),
    "where_larger_else_0": lambda a, b: torch.where(a > b, a, 0.0),
    "where_sign_of_other": lambda a, b: a.masked_fill(b > 0, 0.0),
    "half_channels": lambda a, b: torch.cat([a[:, :3], b[:, 3:]], 1),
    "half_positions": lambda a, b: torch.cat([a[:, :, :3], b[:, :, 3:]], 2),
    "attention_by_hand": lambda a, b: (a @ b.transpose(1, 2)).softmax(2) @ a,
    "two_matrix_products": lambda a, b: a @ (b.transpose(1, 2) @ a),
    "attention": lambda a, b: F.scaled_dot_product_attention(a, b, a),
    "attention_values": lambda a, b: F.scaled_dot_product_attention(a, a, b),
    "einsum": lambda a, b: torch.einsum("ncl,nkl,nkm->ncm", a, b, a),
    "outer_sum": lambda a, b: torch.einsum("ncl,nkl->nckl", a, b).sum(2),
    "outer_mean": lambda a, b: torch.einsum("ncl,nkl->nckl", a, b).mean(1),
    "addcmul": lambda a, b: torch.addcmul(a, b, a),
    "baddbmm": lambda a, b: torch.baddbmm(a, b @ b.transpose(1, 2), a),
    "lerp": lambda a, b: torch.lerp(a, b, 0.5),
    "lerp_gated": lambda a, b: torch.lerp(a, b, a.sigmoid()),
    "sigmoid_gate": lambda a, b: a * b.sigmoid(),
    "relu_gate": lambda a, b: a * b.mean(2, keepdim=True).relu(),
    "pooled_gate": lambda a, b: a * b.mean(1, keepdim=True),
    "power": lambda a, b: a.abs() ** b.sigmoid(),
    "copied_over": lambda a, b: a.clone().copy_(b),
    "slice_set": slice_set,
    "added_in_place": lambda a, b: a.clone().add_(b),
    "stack_mean": lambda a, b: torch.stack([a, b]).mean(0),
    "stack_max": lambda a, b: torch.stack([a, b]).max(0)[0],
    "hypotenuse": torch.hypot,
    "gather_by_other": lambda a, b: a.gather(2, b.argsort(2)),
    "less_than": lambda a, b: a * (a < b),
    "remainder": torch.remainder,
    "heaviside": lambda a, b: torch.heaviside(F.relu(a), b),
    "copysign": torch.copysign,
    "clamped_by_other": lambda a, b: torch.clamp(a, min=b),
    "distance": lambda a, b: a * F.pairwise_distance(a, b).unsqueeze(2),
    "scattered": lambda a, b: a.scatter(1, torch.tensor([0, 1, 0, 1, 2, 2]).view(1, 6, 1).expand(SHAPE), b),
    "index_put": lambda a, b: a.index_put((torch.arange(3)[:, None], torch.tensor([[5, 4]])), b[:, :2]),
    "masked_scatter": lambda a, b: a.masked_scatter(b > 0, b),
    "computed_kernel": lambda a, b: F.conv1d(a, b[:1, :, :3].transpose(0, 1), padding=1, groups=6),
    "computed_affine": lambda a, b: F.layer_norm(a, (8,), b[0, 0], b[0, 1]),
    "computed_slopes": lambda a, b: F.prelu(a, b[0, :, 0]),
    "computed_places": lambda a, b: F.grid_sample(
        a.unsqueeze(2), b[:, :2].transpose(1, 2).unsqueeze(1), align_corners=False
    ).squeeze(2),
}

INPUTS = (torch.randn(3, 4, 8, dtype=torch.float64, generator=generator(0)),)


def check(model: nn.Module, seed: int = 1) -> None:
    """Analyses the network and rescales it at random."""
    model = randomise(model.double(), seed=seed)
    if not all(output.isfinite().all() and output.abs().max() > 1e-8 for output in outputs(model, INPUTS)):
        return  # a drawn composition without an output to compare
    plan = fxenorm.analyze(model, INPUTS, modes="eval")
    assert soundness_error(model, plan, INPUTS, seed=seed) <= TOLERANCE, str(plan)


@pytest.mark.parametrize("name", ONE)
def test_function_of_one_activation(name: str) -> None:
    check(Net(lambda m, x: m.head(ONE[name](m.stem(x))), stem=nn.Conv1d(4, 6, 1), head=nn.Conv1d(6, 5, 1)))


@pytest.mark.parametrize("name", ONE)
def test_function_of_one_activation_read_along_positions(name: str) -> None:
    check(Net(lambda m, x: m.head(ONE[name](m.stem(x))), stem=nn.Conv1d(4, 6, 1, bias=False), head=nn.Linear(8, 5, bias=False)))


@pytest.mark.parametrize("name", TWO)
def test_function_of_two_activations(name: str) -> None:
    layers = {"a": nn.Conv1d(4, 6, 1), "b": nn.Conv1d(4, 6, 1, bias=False), "head": nn.Conv1d(6, 5, 1)}
    check(Net(lambda m, x: m.head(TWO[name](m.a(x), m.b(x))), **layers))


@settings(max_examples=40, phases=[Phase.generate])
@given(
    first=st.sampled_from(sorted(ONE)),
    second=st.sampled_from(sorted(ONE)),
    both=st.sampled_from(sorted(TWO)),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_compositions(first: str, second: str, both: str, bias: bool, seed: int) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        a = ONE[first](m.a(x))
        return m.head(TWO[both](m.mix(a), ONE[second](a)))

    check(Net(forward, a=nn.Conv1d(4, 6, 1), mix=nn.Conv1d(6, 6, 1, bias=bias), head=nn.Conv1d(6, 5, 1, bias=bias)), seed)


def test_control_a_wrong_claim_is_seen() -> None:
    """GELU treated as homogeneous on purpose."""
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.GELU(), nn.Conv1d(6, 5, 1))
    randomise(model.double())
    plan = fxenorm.analyze(model, INPUTS, modes="eval", approximate=("gelu",))
    assert plan.num_scales == 6 and not plan.exact
    assert soundness_error(model, plan, INPUTS) > 1e-3
