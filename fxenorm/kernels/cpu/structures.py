"""The structures of ``native/tables.h`` as Python fills them, and their comparison with those of the loaded library.

A field in another place would be a write to a wrong address, so no library is used whose structures differ.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["Condensed", "CyclesArguments", "StepArguments", "differences"]


def _fields(kind: Any, names: str) -> Iterator[tuple[str, Any]]:
    """Yields some fields of one type, as `ctypes.Structure` wants them."""
    return ((name, kind) for name in names.split())


class StepArguments(ctypes.Structure):
    """Mirrors `Step` of ``native/tables.h``, field by field."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "matrices reduce_tiles links targets scale_tiles factor_links phases"),
        *_fields(ctypes.c_int64, "phase_count"),
        *_fields(ctypes.c_void_p, "variables held octaves exponents roots powers"),
        *_fields(ctypes.c_int64, "power_count variable_count sum_count scale_tile_count reduce_tile_count"),
        *_fields(ctypes.c_void_p, "work sums power_table narrow_power_table factors narrow_factors done claimed"),
        *_fields(ctypes.c_double, "p limit bound band"),
        *_fields(ctypes.c_int64, "threads factors_first has_float64"),
        *_fields(ctypes.c_void_p, "largest"),
    ]


class Condensed(ctypes.Structure):
    """Mirrors `Condensed` of ``native/tables.h``, field by field."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "source"),
        *_fields(ctypes.c_int64, "dtype width run inner"),
        *_fields(ctypes.c_void_p, "data row_factor"),
        *_fields(ctypes.c_int64, "row_place column_place"),
    ]


class CyclesArguments(ctypes.Structure):
    """Mirrors `Cycles` of ``native/tables.h``, field by field."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "step matrices condensed tiles links factor_links powers"),
        *_fields(ctypes.c_void_p, "stages stage_variables stage_matrices stage_tiles link_ends factor_link_ends"),
        *_fields(ctypes.c_int64, "stage_count"),
        *_fields(ctypes.c_int64, "matrix_count tile_count link_count factor_link_count power_count count"),
        *_fields(ctypes.c_void_p, "work power_table totals factors claimed"),
    ]


_MIRRORS: Mapping[str, type[ctypes.Structure]] = MappingProxyType(
    {"Step": StepArguments, "Condensed": Condensed, "Cycles": CyclesArguments}
)
"""By name of a structure, its mirror."""

_ROWS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "ReduceMatrix": (8, "data rows width dtype row_factor row_sums column_sums column_count first_tile last_tile run"),
        "ReduceTile": (8, "matrix row rows column columns segment row_part column_part share"),
        "Link": (8, "source count slots weight"),
        "ScaleMatrix": (8, "data width dtype row_factor column_factor smallest largest"),
        "ScaleTile": (8, "matrix row rows column columns segment share"),
        "FactorLink": (8, "destination count ids exponent first"),
        "ProductTable": (8, "data rows width stride dtype is_power place first_tile last_tile"),
        "ProductTile": (8, "table row rows part"),
        "Stage": (16, "variables matrices tiles"),
        "Phase": (16, "scale_tiles reduce_tiles matrices links variables factor_links"),
    }
)
"""By name of a structure that is a row of a NumPy table, the bytes of a field and the fields in their order."""


class _Field(ctypes.Structure):
    """Mirrors `Field` of ``native/layout.h``: a structure, or a field of one, where it begins and how long it is."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_int64), ("size", ctypes.c_int64)]


def differences(library: ctypes.CDLL) -> list[str]:
    """Returns, for each field that lies elsewhere in the library than Python puts it, where it lies on both sides.

    Args:
        library: the compiled kernels.
    """
    library.fxenorm_layout.restype = ctypes.POINTER(_Field)
    count = ctypes.c_int64()
    found = library.fxenorm_layout(ctypes.byref(count))
    there = {found[index].name.decode(): (found[index].offset, found[index].size) for index in range(count.value)}
    ours = dict(_places())
    return [
        f"{name} is at {there.get(name, 'no place')} and not at {ours.get(name, 'no place')}"
        for name in sorted({*there, *ours})
        if there.get(name) != ours.get(name)
    ]


def _places() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields each structure and field with its offset and its size in bytes, as Python fills them."""
    for name, mirror in _MIRRORS.items():
        yield name, (0, ctypes.sizeof(mirror))
        for field, *_ in mirror._fields_:
            place = getattr(mirror, field)
            yield f"{name}.{field}", (place.offset, place.size)
    for name, (size, fields) in _ROWS.items():
        yield name, (0, size * len(fields.split()))
        for index, field in enumerate(fields.split()):
            yield f"{name}.{field}", (size * index, size)
