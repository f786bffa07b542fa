"""Lines of random models that have parameters: layers, bare parameters, weights that are computed or used twice."""

from __future__ import annotations

from .random_draft import Draft, draw


@draw(complete=True, weight=14)
def linear(draft: Draft) -> str:
    x = draft.value()
    return f"{draft.make('l', f'nn.Linear({draft.shape(x)[-1]}, {draft.size()}, bias={draft.flag()})')}({x})"


@draw(complete=True, weight=4)
def residual(draft: Draft) -> str:
    x = draft.value()
    size = draft.shape(x)[-1]
    a, b = draft.make("l", f"nn.Linear({size}, {(width := draft.size())})"), draft.make("l", f"nn.Linear({width}, {size})")
    return f"{x} + {b}({a}({x}).relu())"


@draw(complete=True, weight=4)
def pointwise(draft: Draft) -> str:
    x = draft.value(3, 4)
    size, groups = draft.shape(x)[1], draft.choose.choice([1, 1, 2])
    kind = draft.choose.choice(["Conv", "Conv", "ConvTranspose"]) + f"{draft.values[x].ndim - 2}d"
    return f"{draft.make('c', f'nn.{kind}({size}, {groups * draft.size()}, 1, groups={groups}, bias={draft.flag()})')}({x})"


@draw(weight=5)
def conv1d(draft: Draft) -> str:
    x = draft.value(3)
    size = draft.shape(x)[1]
    groups = draft.choose.choice([1, 1, size, 2 if size % 2 == 0 else 1])
    after = groups * draft.choose.choice([1, 2]) if groups > 1 else draft.size()
    kind = draft.choose.choice(["Conv1d", "Conv1d", "ConvTranspose1d"])
    return f"{draft.make('c', f'nn.{kind}({size}, {after}, {draft.choose.choice([1, 2, 3])}, groups={groups})')}({x})"


@draw(weight=5)
def conv2d(draft: Draft) -> str:
    x = draft.value(4)
    size = draft.shape(x)[1]
    groups = draft.choose.choice([1, 1, size, 2 if size % 2 == 0 else 1])
    after = groups * draft.choose.choice([1, 2]) if groups > 1 else draft.size()
    kind, kernel = draft.choose.choice(["Conv2d", "Conv2d", "ConvTranspose2d"]), draft.choose.choice([1, 2, 3])
    rest = f"stride={draft.choose.choice([1, 1, 2])}, padding={kernel // 2}, bias={draft.flag()}, groups={groups}"
    return f"{draft.make('c', f'nn.{kind}({size}, {after}, {kernel}, {rest})')}({x})"


@draw(weight=4)
def shared(draft: Draft) -> str:
    """A layer for the second time, or its weight the other way round."""
    layers = [line.split(" = ") for line in draft.layers if line.startswith(("self.l", "self.c"))]
    name, code = draft.choose.choice(layers)
    x = draft.value()
    if "Linear" in code and draft.flag():
        return f"F.linear({x}, {name}.weight{draft.choose.choice(['', '.t()', '.T.contiguous()'])})"
    return f"{name}({x})"


@draw(complete=True, weight=3)
def gain(draft: Draft) -> str:
    x = draft.value()
    shape = [size if position and draft.flag() else 1 for position, size in enumerate(draft.shape(x))]
    return f"{x} {draft.choose.choice('*+')} {draft.weight(*shape)}"


@draw(weight=3)
def parameter(draft: Draft) -> str:
    return draft.weight(*[draft.size() for _ in range(draft.choose.choice([1, 2, 2, 3]))])


@draw(weight=2)
def made_weight(draft: Draft) -> str:
    """A weight that is computed before it is used."""
    x = draft.value()
    size, after = draft.shape(x)[-1], draft.size()
    w = draft.weight(after, size)
    made = draft.choose.choice(
        [
            f"{w} * {draft.weight(after, 1)}",
            f"{w} / {w}.norm(dim=1, keepdim=True)",
            f"F.normalize({w}, dim=0)",
            f"{w}.relu()",
            f"{w} - {w}.mean(1, keepdim=True)",
            f"torch.cat([{w}, {draft.weight(2, size)}])",
            f"{w}[torch.tensor({draft.permutation(after)})]",
            f"({draft.weight(after, 2)} @ {draft.weight(2, size)})",
            f"{draft.weight(size, after)}.reshape({after}, {size})",
            f"(1 + {w})",
            f"{w}.tril()",
            f"{w}.softmax(1)",
        ]
    )
    return f"F.linear({x}, {made})"


@draw(weight=2)
def embedding(draft: Draft) -> str:
    count, width = draft.size(), draft.size()
    table = draft.make("e", f"nn.Embedding({count}, {width})")
    x = draft.value()
    pick = draft.choose.choice(
        [f"{draft.index(count, 4)}", f"torch.arange({count})", f"(tokens % {count})", f"{x}.argmax({draft.axis(x)}) % {count}"]
    )
    return f"{table}({pick})"


@draw(weight=5)
def norm(draft: Draft) -> str:
    x = draft.value(2, 3, 4)
    shape = draft.shape(x)
    size = shape[1]
    kinds = [f"nn.LayerNorm({shape[-1]}, eps=0.1)", f"nn.LayerNorm({shape[1:]}, eps=0.1)", f"nn.RMSNorm({shape[-1]}, eps=0.1)"]
    kinds += [f"nn.BatchNorm{max(1, len(shape) - 2)}d({size}, eps=0.1, affine={draft.choose.random() < 0.8})"]
    kinds += [f"nn.GroupNorm({2 if size % 2 == 0 else 1}, {size}, eps=0.1)"]
    if len(shape) > 2:
        kinds += [f"nn.InstanceNorm{len(shape) - 2}d({size}, eps=0.1, affine=True)"]
    return f"{draft.make('n', draft.choose.choice(kinds))}({x})"


@draw()
def prelu(draft: Draft) -> str:
    x = draft.value(2, 3, 4)
    return f"{draft.make('p', f'nn.PReLU({draft.choose.choice([1, draft.shape(x)[1]])})')}({x})"


@draw()
def recurrent(draft: Draft) -> str:
    x = draft.value(3)
    code = draft.choose.choice(
        ["RNN({}, 4, nonlinearity='relu', batch_first=True)", "GRU({}, 4, batch_first=True)", "LSTM({}, 4)"]
    )
    return f"{draft.make('r', 'nn.' + code.format(draft.shape(x)[-1]))}({x})[0]"


@draw(weight=2)
def attention(draft: Draft) -> str:
    x = draft.value(3, 4)
    a, b = draft.like(x), draft.like(x)
    return f"F.scaled_dot_product_attention({x}, {a}, {b}, is_causal={draft.flag()})"


@draw()
def multihead(draft: Draft) -> str:
    x = draft.value(3)
    size = draft.shape(x)[-1]
    layer = draft.make("a", f"nn.MultiheadAttention({size}, {2 if size % 2 == 0 else 1}, batch_first={draft.flag()})")
    return f"{layer}({x}, {draft.like(x)}, {draft.like(x)}, need_weights={draft.flag()})[0]"


@draw()
def mode_dependent(draft: Draft) -> str:
    x = draft.value()
    return f"{x}.relu() if self.training else {draft.like(x)}.relu()"
