"""What random models are made of: each draw writes one line of a forward, with sizes that coincide on purpose.

A draw gets a `Draft` and returns the right side of an assignment (or several lines). Whether the line runs, and on which sizes,
is found by running it: a line that does not run, or whose values are of no use, is dropped by `tests.random_models`.
"""

from __future__ import annotations

from . import random_layers  # registers its draws
from .random_draft import DRAWS, Draft, draw, simple

__all__ = ["DRAWS", "random_layers"]

# Entry by entry.
for _name, _code in {
    "relu": "{x}.relu()",
    "leaky": "F.leaky_relu({x}, 0.2)",
    "absolute": "{x}.abs()",
    "negative": "-{x}",
    "half": "{x} * 0.5",
    "copied": "{x}.clone()",
    "dropout": "F.dropout({x}, 0.0, self.training)",
}.items():
    simple(_name, _code, complete=True, weight=3 if _name == "relu" else 1)
for _name, _code in {
    "cut": "{x}.detach()",
    "square": "{x}.square()",
    "root": "{x}.abs().sqrt()",
    "cube": "{x} ** 3",
    "signed": "{x}.sign()",
    "positive": "({x} > 0) * {z}",
    "clamped": "{x}.clamp(min=0)",
    "sigmoid": "{x}.sigmoid()",
    "tanh": "{x}.tanh()",
    "gelu": "F.gelu({x})",
    "silu": "F.silu({x})",
    "plus_one": "{x} + 1",
    "capped": "F.relu6({x})",
    "softplus": "F.softplus({x})",
    "inverse": "1 / ({x}.abs() + 0.5)",
    "softmax": "{x}.softmax({d})",
    "log_softmax": "{x}.log_softmax({d})",
    "glu": "F.glu({x}, {d})",
    "normalised": "F.normalize({x}, dim={d})",
    "exponential": "({x} * 0.1).exp()",
    "gated": "{x} * {x}.sigmoid()",
    "reglu": "{x} * {z}.relu()",
    "rounded": "{x}.round()",
}.items():
    simple(_name, _code, weight=0.6)

# Two values.
for _name, _code in {
    "added": "{x} + {z}",
    "subtracted": "{x} - {z}",
    "added_any": "{x} + {o}",
    "multiplied": "{x} * {z}",
    "multiplied_any": "{x} * {o}",
    "larger": "torch.maximum({x}, {z})",
    "chosen": "torch.where({x} > 0, {x}, {z})",
    "mixed": "torch.lerp({x}, {z}, 0.3)",
    "matmul": "{x} @ {o}",
    "matmul_transposed": "{x} @ {o}.mT",
    "self_similar": "{x} @ {x}.mT",
    "divided": "{x} / {z}.abs().sum({d}, keepdim=True)",
    "outer": "{x}.unsqueeze(-1) * {z}.unsqueeze(-2)",
    "distance": "torch.cdist({x}, {z})",
    "blended": "torch.where({x} > {z}, {x}, {z})",
    "addcmul": "torch.addcmul({x}, {z}, {o})",
    "cosine": "F.cosine_similarity({x}, {z}, dim={d})",
}.items():
    simple(_name, _code, complete=_name in ("added", "subtracted", "added_any"))


@draw(weight=5)
def einsum(draft: Draft) -> str:
    """Axes of the same size may share a letter; any letters stay."""
    a, b = draft.value(1, 2, 3, 4), draft.value(1, 2, 3)
    letters = iter("abcdefghij")
    left = [next(letters) for _ in draft.shape(a)]
    right: list[str] = []
    for size in draft.shape(b):
        same = [letter for letter, other in zip(left, draft.shape(a), strict=True) if other == size and letter not in right]
        right.append(draft.choose.choice(same) if same and draft.choose.random() < 0.75 else next(letters))
    every = list(dict.fromkeys(left + right))
    kept = [letter for letter in every if letter == "a" or draft.choose.random() < 0.55]
    if draft.flag():
        draft.choose.shuffle(kept)
    return f'torch.einsum("{"".join(left)},{"".join(right)}->{"".join(kept)}", {a}, {b})'


# Entries that move.


@draw(complete=True, weight=5)
def reshape(draft: Draft) -> str:
    """Other axes, with sizes that coincide."""
    x = draft.value()
    shape = draft.shape(x)
    lead = f"{x}.shape[0], " if shape[0] == len(draft.tokens) and draft.choose.random() < 0.8 else ""
    total = draft.values[x].numel() // (shape[0] if lead else 1)
    sizes = []
    while total > 1 and len(sizes) < 3:
        divisors = [size for size in (4, 4, 4, 2, 3, 6, 8) if total % size == 0]
        sizes.append(draft.choose.choice(divisors) if divisors else total)
        total //= sizes[-1]
    if total > 1:
        sizes.append(total)
    draft.choose.shuffle(sizes)
    return f"{x}.{draft.choose.choice(['reshape', 'reshape', 'contiguous().view'])}({lead}{', '.join(map(str, sizes))})"


@draw(complete=True, weight=4)
def permute(draft: Draft) -> str:
    x = draft.value(2, 3, 4, 5)
    first = draft.choose.random() < 0.8
    order = [0, *(1 + i for i in draft.permutation(len(draft.shape(x)) - 1))] if first else draft.permutation(len(draft.shape(x)))
    return f"{x}.permute({', '.join(map(str, order))})"


@draw(complete=True)
def split(draft: Draft) -> str:
    x = draft.value()
    axis = draft.axis(x)
    parts = draft.choose.choice([2, 2, 4])
    return f"torch.{draft.choose.choice(['chunk', 'tensor_split'])}({x}, {parts}, {axis})[{draft.choose.choice([0, 1, -1])}]"


for _name, _code in {
    "flatten": "{x}.flatten(1)",
    "flip": "{x}.flip({d})",
    "roll": "{x}.roll(1, {d})",
    "cat": "torch.cat([{x}, {z}], {d})",
    "stack": "torch.stack([{x}, {z}], {d})",
    "select": "{x}.select({d}, {i})",
    "narrow": "{x}.narrow({d}, 0, {half})",
    "every_other": "{x}[..., ::2]",
    "last_but_one": "{x}[:, 1:]",
    "index_select": "{x}.index_select({d}, {index})",
    "unsqueeze": "{x}.unsqueeze({d})",
    "squeeze": "{x}.squeeze()",
    "swap": "{x}.transpose({d}, {e})",
}.items():
    simple(_name, _code, complete=True)
for _name, _code in {
    "indexed": "{x}[:, {index}]",
    "gathered": "{x}.gather({d}, {z}.argsort({d}))",
    "gathered_constant": "{x}.movedim({d}, 0).take_along_dim({index}.reshape([-1] + [1] * ({x}.ndim - 1)), 0)",
    "sorted": "{x}.sort({d}).values",
    "top": "{x}.topk({half}, {d}).values",
    "top_of_other": "{z}.gather({d}, {x}.topk({half}, {d}).indices)",
    "repeated": "{x}.repeat_interleave(2, {d})",
    "tiled": "torch.tile({x}, (2,))",
    "padded": "F.pad({x}, (1, 1))",
    "padded_one": "F.pad({x}, (1, 0), value=1.0)",
    "reflected": "F.pad({x}, (1, 1), mode='reflect')",
    "lower": "{x}.tril()",
    "masked": "{x}.masked_fill({z} > 0, 0.0)",
    "masked_infinite": "{x}.masked_fill(torch.ones({n}, {n}).triu(1).bool(), -torch.inf).softmax(-1)",
    "unfolded": "{x}.unfold({d}, 2, 1)",
    "diagonal": "{x}.diagonal(0, {d}, {e})",
    "diagonal_made": "torch.diag_embed({x})",
    "expanded": "{x}.unsqueeze({d}).expand([-1 if i != {d} % ({x}.ndim + 1) else 4 for i in range({x}.ndim + 1)])",
    "shuffled": "F.channel_shuffle({x}, 2)",
    "pixel_shuffle": "F.pixel_shuffle({x}, 2)",
    "pixel_unshuffle": "F.pixel_unshuffle({x}, 2)",
    "chosen_rows": "{x}[{z}.flatten(1).sum(1) > 0]",
}.items():
    simple(_name, _code, weight=0.7)

# Reductions and pooling.
for _name, _code in {"summed": "{x}.sum({d})", "averaged": "{x}.mean({d})", "sum_kept": "{x}.sum({d}, keepdim=True)"}.items():
    simple(_name, _code, complete=True)
for _name, _code in {
    "largest": "{x}.amax({d})",
    "max_value": "{x}.max({d}).values",
    "length": "{x}.norm(dim={d}, keepdim=True)",
    "deviation": "{x}.std({d})",
    "log_sum_exp": "{x}.logsumexp({d})",
    "cumulated": "{x}.cumsum({d})",
    "product": "{x}.prod({d})",
    "centred": "{x} - {x}.mean({d}, keepdim=True)",
    "standardised": "({x} - {x}.mean({d}, keepdim=True)) / ({x}.var({d}, keepdim=True) + 0.1).sqrt()",
    "relative": "{x} / ({x}.abs().amax({d}, keepdim=True) + 1e-30)",
    "median": "{x}.median({d}).values",
    "differences": "{x}.diff(dim={d})",
    "fourier": "torch.fft.rfft({x}, dim={d}).abs()",
    "fourier_back": "torch.fft.irfft(torch.fft.rfft({x}, dim={d}), n={n}, dim={d})",
}.items():
    simple(_name, _code, weight=0.7)
for _name, _code in {
    "max_pool1d": "F.max_pool1d({x}, 2)",
    "avg_pool1d": "F.avg_pool1d({x}, 2)",
    "adaptive1d": "F.adaptive_avg_pool1d({x}, 2)",
    "interpolated1d": "F.interpolate({x}, scale_factor=2)",
}.items():
    simple(_name, _code, weight=0.5, ndims=(3,))
for _name, _code in {
    "max_pool2d": "F.max_pool2d({x}, 2)",
    "avg_pool2d": "F.avg_pool2d({x}, 2, ceil_mode=True)",
    "adaptive2d": "F.adaptive_max_pool2d({x}, (2, 1))",
    "interpolated2d": "F.interpolate({x}, scale_factor=2.0, mode='bilinear')",
    "columns": "F.unfold({x}, 2)",
}.items():
    simple(_name, _code, weight=0.5, ndims=(4,))

# Writes into fresh memory.
for _name, _code in {
    "written": "{y} = torch.zeros_like({x})\n{y}[..., :2] = {x}[..., :2]",
    "written_whole": "{y} = torch.empty_like({x})\n{y}.copy_({z})",
    "overwritten": "{y} = {x}.clone()\n{y}[:, 0] = {z}[:, 0]",
    "written_one": "{y} = {x}.clone()\n{y}[..., -1] = 1.0",
    "written_zero": "{y} = {x}.clone()\n{y}[..., -1] = 0.0",
    "added_in_place": "{y} = {x}.clone()\n{y} += {z}",
    "multiplied_in_place": "{y} = {x}.clone()\n{y}.mul_({z})",
    "relu_in_place": "{y} = {x}.clone().relu_()",
    "view_written": "{y} = {x}.clone()\n{y}.transpose({d}, {e}).select({d}, {i}).add_({z}.select({d}, {i}))",
    "loop_written": "{y} = torch.zeros({x}.shape)\nfor i in range({half}):\n    {y}[:, i] = {x}[:, i] + {z}[:, -1 - i]",
    "indexed_written": "{y} = torch.zeros({x}.shape)\n{y}[:, {index}] += 1 * {x}[:, {index}]",
    "boolean_written": "{y} = {x}.clone()\n{y}[{z} > 0] = 0.0",
    "scattered": "{y} = torch.zeros_like({x}).scatter({d}, {z}.argsort({d}), {x})",
    "scatter_added": "{y} = torch.zeros_like({x}).scatter_add({d}, {z}.argsort({d}), {x})",
    "index_added": "{y} = torch.zeros_like({x}).index_add({d}, torch.arange({n}).flip(0), {x})",
    "index_copied": "{y} = {x}.index_copy({d}, torch.tensor([0]), {z}.narrow({d}, {i}, 1))",
    "reduced": "{y} = torch.zeros_like({x}).scatter_reduce({d}, {z}.argsort({d}), {x}, 'amax')",
    "rolled_state": "{y} = {x}.clone()\n{y}[:, 1:] = {y}[:, :-1].clone()",
}.items():
    simple(_name, _code, weight=0.8)
