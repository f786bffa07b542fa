"""Mutants of the native sources: one operator, comparison or number changed, as cosmic-ray does for Python."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OPPOSITES = {
    **{"+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "%": ["/"], "+=": ["-="], "-=": ["+="], "*=": ["/="]},
    **{"<": ["<=", ">="], ">": [">=", "<="], "<=": ["<", ">"], ">=": [">", "<"], "==": ["!="], "!=": ["=="]},
    **{"&&": ["||"], "||": ["&&"], "true": ["false"], "false": ["true"], "continue": ["break"], "break": ["continue"]},
}
_SILENT = re.compile(
    r'//[^\n]*|/\*.*?\*/|^[ \t]*#[^\n]*(?:\\\n[^\n]*)*|"(?:\\.|[^"\\\n])*"|template\s*<[^>]*>|static_cast<[^>]*>', re.S | re.M
)
# Operators stand between blanks in these sources (clang-format); pointers and template arguments do not.
_TOKEN = re.compile(
    r"(?<= )(?:\+=|-=|\*=|<=|>=|==|!=|&&|\|\||[-+*/%<>])(?= )"
    r"|\b(?:true|false|continue|break)\b|(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?f?\b"
)


@dataclass(frozen=True)
class NativeMutant:
    """One token of a native source, replaced."""

    start: int
    end: int
    replacement: str

    @property
    def operator(self) -> str:
        """Its kind, for reports."""
        return f"native/{self.replacement}"

    def text(self, source: str) -> str:
        """The mutated source."""
        return source[: self.start] + self.replacement + source[self.end :]


def _replacements(token: str) -> list[str]:
    if token in _OPPOSITES:
        return _OPPOSITES[token]
    suffix = "f" if token.endswith("f") else ""
    number = token.removesuffix("f")
    if number.isdigit():
        return [str(int(number) + 1) + suffix, str(int(number) - 1) + suffix]
    if float(number) == 0:
        return ["1.0" + suffix]
    return [repr(float(number) * 2) + suffix, repr(float(number) / 2) + suffix]


def native_mutants_of(source: str) -> Iterator[NativeMutant]:
    """Yield every mutant of a native source; a few do not compile, see `compiles`."""
    blank = _SILENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
    for found in _TOKEN.finditer(blank):
        for replacement in _replacements(found[0]):
            yield NativeMutant(found.start(), found.end(), replacement)


def compiles(folder: Path, name: str, text: str) -> bool:
    """Whether the sources of `folder` are C++ with `text` in place of the file `name`."""
    with tempfile.TemporaryDirectory(prefix="fxenorm-mutants-") as other:
        for path in folder.iterdir():
            if path.is_file():
                (Path(other) / path.name).write_bytes(path.read_bytes())
        (Path(other) / name).write_text(text, encoding="utf-8")
        (source,) = Path(other).glob("*.cpp")
        command = ["c++", "-std=c++17", "-fsyntax-only", "-w", str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
