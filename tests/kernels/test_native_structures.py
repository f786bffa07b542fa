"""The structures that Python fills for the compiled kernels: a field in another place is found when the library is loaded."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from fxenorm.kernels.cpu import build, compilers, structures

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

MIRRORS = sorted(structures._MIRRORS)
EXPORT = """#include "layout.h"
extern "C" const Field *fxenorm_layout(i64 *count) {
    *count = sizeof(FIELDS) / sizeof(FIELDS[0]);
    return FIELDS;
}
"""


def swapped(name: str, position: int) -> type[ctypes.Structure]:
    """A mirror in which two neighbours have changed places."""
    fields = list(structures._MIRRORS[name]._fields_)
    fields[position : position + 2] = fields[position : position + 2][::-1]
    return type("Swapped", (ctypes.Structure,), {"_fields_": fields})


def layout_of(folder: Path, old: str, new: str) -> ctypes.CDLL:
    """The exported layout of the sources, with one text in the header of the tables replaced; nothing else is compiled."""
    for source in (build._FOLDER / "tables.h", build._FOLDER / "layout.h"):
        shutil.copy(source, folder)
    header = folder / "tables.h"
    text = header.read_text(encoding="utf-8")
    assert text.count(old) == 1
    header.write_text(text.replace(old, new), encoding="utf-8")
    (folder / "export.cpp").write_text(EXPORT, encoding="utf-8")
    (compiler, *_), _ = compilers.find_compilers()
    command = [*compiler, "-std=c++14", "-fPIC", "-shared", "-o", str(folder / "export.so"), str(folder / "export.cpp")]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(folder / "export.so"))


def test_the_library_has_the_structures_that_python_fills() -> None:
    assert structures.differences(build.library()) == []


@pytest.mark.parametrize("name", MIRRORS)
def test_two_fields_of_a_mirror_that_change_places_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [field for field, *_ in structures._MIRRORS[name]._fields_]
    for position in range(len(fields) - 1):
        with monkeypatch.context() as patch:
            patch.setattr(structures, "_MIRRORS", {**structures._MIRRORS, name: swapped(name, position)})
            found = " ".join(structures.differences(build.library()))
        assert f"{name}.{fields[position]} is at" in found and f"{name}.{fields[position + 1]} is at" in found


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("double *work, *sums,", "double *sums, *work,", "Step.sums"),
        ("i64 row_place, column_place;", "i64 column_place, row_place;", "Condensed.row_place"),
        ("power_count, count;", "count, power_count;", "Cycles.count"),
        ("i64 source, count;", "i64 count, source;", "Link.source"),
        ("i64 threads,", "i64 added, threads,", "Step.threads"),
    ],
)
def test_two_fields_of_the_header_that_change_places_are_named(tmp_path: Path, old: str, new: str, name: str) -> None:
    """Of one type, so that neither the size nor the other offsets tell; and a field that only one side knows."""
    assert f"{name} is at" in " ".join(structures.differences(layout_of(tmp_path, old, new)))


def test_a_library_with_other_structures_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "_MIRRORS", {**structures._MIRRORS, "Step": swapped("Step", 0)})
    with pytest.raises(build.BuildError, match=r"structures of the kernels.*Step\.matrices is at"):
        build._declared(build.library())
