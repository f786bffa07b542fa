"""Complex numbers: one positive factor for both parts of each."""

from __future__ import annotations

from typing import Any

from ..field import ScaleField
from ..field.structure import broadcast, reshape
from .call import Call, Field
from .laws import barrier, move, same_field, zero_field
from .registry import scale_rule


@scale_rule("aten::complex", family="structural")
def complex_rule(call: Call) -> Field:
    """t x + i t y = t (x + i y)."""
    return same_field(call, [call["real"], call["imag"]], call.out_shape)


@scale_rule("aten::view_as_complex", family="structural")
def view_as_complex(call: Call) -> Field:
    """The last axis holds the real and the imaginary part: the field is constant along it."""
    old, new = call.shape("self"), call.out_shape
    last = len(old) - 1

    def forward(f: ScaleField) -> ScaleField:
        return reshape(ScaleField((*old[:last], 1), call.constant(f, [last]).terms), new)

    return move(call, call["self"], new, forward, lambda f: broadcast(reshape(f, (*old[:last], 1)), old))


@scale_rule("aten::view_as_real", family="structural")
def view_as_real(call: Call) -> Field:
    """Both parts carry the number's field, along a new last axis."""
    old, new = call.shape("self"), call.out_shape
    one = (*old, 1)

    def backward(f: ScaleField) -> ScaleField:
        return reshape(ScaleField(one, call.constant(f, [len(old)]).terms), old)

    return move(call, call["self"], new, lambda f: broadcast(reshape(f, one), new), backward)


@scale_rule("aten::polar", family="multiplicative")
def polar(call: Call) -> ScaleField:
    """r (cos a + i sin a): r passes, the angle is held."""
    call.zero(call["angle"])
    return ScaleField(call.out_shape, broadcast(call.field("abs"), call.out_shape).terms)


@scale_rule("aten::angle", family="barrier")
def angle(call: Call) -> Field:
    """angle(t z) = angle(z) for t > 0, but the law is not used: z is held."""
    return barrier(call, "angles are held")  # type: ignore[no-any-return]


@scale_rule("aten::arctan2", "aten::atan2", family="comparison")
def atan2(call: Call) -> Any:
    """The direction of (x, y): atan2(t y, t x) = atan2(y, x), so both carry one field and the result none."""
    same_field(call, [call["self"], call["other"]], call.out_shape)
    return zero_field(call)
