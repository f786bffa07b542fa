"""The house: who may import whom, who reads whose private members, and how long a piece of code may be."""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[2] / "fxenorm"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# Each line imports only from itself and from the lines above it.
LAYERS = """
    version errors collection optional bits
    distributed
    trace field
    rules
    symmetry
    kernels solve optim
    analysis
    weights
    observe
    objectives masses
    text
    picture
    rescale
    verify
    quantisation
    plan
    checkpoint
    fxenorm
    inspect integrations
"""
LAYER_OF = {name: number for number, line in enumerate(LAYERS.split("\n")) for name in line.split()}
ON_ERRORS_ALONE = ("solve", "optim", "kernels", "distributed")
EXECUTORS = ("cpu", "gpu", "reference")


def module_of(path: Path) -> str:
    """Returns the dotted name of a file: fxenorm.plan.plan."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in TREES}


def imports_of(path: Path, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of every import from the package: inside functions and for type checking too."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if target.split(".")[0] == "fxenorm":
                yield from ((target, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "fxenorm")


def graph() -> nx.DiGraph:
    """Returns files as nodes, imports as edges."""
    found = nx.DiGraph()
    for path, tree in TREES.items():
        for target, name in imports_of(path, tree):
            file = f"{target}.{name}" if f"{target}.{name}" in FILES else target
            if file != module_of(path):
                found.add_edge(module_of(path), file)
    return found


def room(module: str) -> str:
    """Returns the folder, or the file at the top: "kernels" of fxenorm.kernels.cpu.build."""
    return module.split(".")[1] if "." in module else module


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert [sorted(part) for part in nx.strongly_connected_components(graph()) if len(part) > 1] == []


def test_imports_only_go_down() -> None:
    wrong = [(a, b) for a, b in graph().edges if LAYER_OF[room(b)] > LAYER_OF[room(a)]]
    assert wrong == []


@pytest.mark.parametrize("folder", ON_ERRORS_ALONE)
def test_what_knows_nothing_of_models_imports_errors_alone(folder: str) -> None:
    wrong = [(a, b) for a, b in graph().edges if room(a) == folder and room(b) not in (folder, "errors", "collection", "version")]
    assert wrong == []


def test_no_executor_is_named_outside_the_folder_of_kernels() -> None:
    """But for what every executor falls back on: the sums and the curvature that define the objective."""
    wrong = [
        (module_of(path), target, name)
        for path, tree in TREES.items()
        if room(module_of(path)) != "kernels"
        for target, name in imports_of(path, tree)
        if target.startswith(("fxenorm.kernels.cpu", "fxenorm.kernels.gpu", "fxenorm.kernels.triton"))
        or (name.endswith("Backend") and name != "Backend")
    ]
    assert wrong == []


# ---------------------------------------------------------------- private members


def private_reads(path: Path, tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yields reads of a private member that some class of the package defines, of something else than self or cls."""
    here = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
    here |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    here |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    foreign = own - here
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in foreign and not is_self(node.value):
            yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {ast.unparse(node)}"


def is_self(node: ast.AST) -> bool:
    """Whether a name is that of the object or class itself."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_nobody_reads_a_private_member_of_another_files_class() -> None:
    own = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_self(node.value) and re.fullmatch(r"_[a-z]\w*", node.attr)
    }
    # Torch, ctypes and named tuples have members of these names too.
    own -= {"_modules", "_parameters", "_buffers", "_version", "_graph", "_values", "_root", "_name", "_fields"}
    places = {**TREES, **{path: ast.parse(path.read_text()) for path in (PACKAGE.parent / "tools").rglob("*.py")}}
    assert [read for path, tree in places.items() for read in private_reads(path, tree, own)] == []


# ---------------------------------------------------------------- sizes


def code_lines(path: Path) -> set[int]:
    """Returns the numbers of the lines of a file that hold code: no docstring, no comment, no blank line."""
    text = path.read_text()
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in kinds:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def functions() -> Iterator[tuple[str, ast.FunctionDef, int]]:
    """Yields (where, function, its lines of code)."""
    for path, tree in TREES.items():
        lines = code_lines(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                size = sum(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node, size


FUNCTIONS = list(functions())
# Their arguments are their contract: what users type, or the memory of a kernel on a GPU.
FREE = ("plan/analyze.py", "kernels/gpu/kernels.py")


def is_free(where: str) -> bool:
    """Whether a function may be as long as it is."""
    return where.startswith(FREE) or where.endswith((" build_parser", " _parser", " attach"))


def test_no_function_is_longer_than_a_page() -> None:
    assert [(where, size) for where, _, size in FUNCTIONS if size > 40 and not is_free(where)] == []


def test_constructors_only_keep_what_they_are_given() -> None:
    assert [(where, size) for where, node, size in FUNCTIONS if node.name == "__init__" and size > 25] == []


def test_no_function_takes_more_than_eight_arguments() -> None:
    def count(node: ast.FunctionDef) -> int:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len(given) - bool(given and given[0].arg in ("self", "cls"))

    typed = ("plan/plan.py", " balance")  # by users, as the arguments of analyze and attach are
    many = [(where, count(node)) for where, node, _ in FUNCTIONS if count(node) > 8 and not is_free(where)]
    assert [one for one in many if not (one[0].startswith(typed[0]) and one[0].endswith(typed[1]))] == []


def test_most_functions_are_small() -> None:
    sizes = sorted(size for _, _, size in FUNCTIONS)
    assert statistics.median(sizes) <= 7 and sizes[int(len(sizes) * 0.9)] <= 23


def test_files_and_folders_are_small() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in TREES}
    allowed = ("plan/plan.py", "symmetry/walk/walk.py")
    assert [(name, size) for name, size in long.items() if size > 360 and not name.endswith(allowed)] == []
    folders: dict[Path, int] = {}
    for path in TREES:
        folders[path.parent] = folders.get(path.parent, 0) + 1
    wide = {folder.name: count for folder, count in folders.items() if count > 12 and folder.name not in ("rules", "trace")}
    assert wide == {} and folders[PACKAGE / "plan"] <= 5


# ---------------------------------------------------------------- sentences


def top_level(tree: ast.Module) -> list[ast.AST]:
    """Returns a module, its public classes and functions, and the public methods of these."""

    def public(nodes: list[ast.stmt]) -> list[ast.ClassDef | ast.FunctionDef]:
        return [node for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")]

    parts = public(tree.body)
    return [tree, *parts, *(inner for part in parts if isinstance(part, ast.ClassDef) for inner in public(part.body))]


def test_public_docstrings_say_more_than_a_few_words_and_none_leans_on_what() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in top_level(tree):
            text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
            if 0 < len(text.split()) < 6 or re.match(r"What\b", text):
                wrong.append(f"{path.relative_to(PACKAGE)} {getattr(node, 'name', 'module')}: {text}")
    assert wrong == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in TREES if path.parent != PACKAGE}), ids=lambda path: path.name)
def test_each_folder_says_what_comes_in_what_goes_out_and_what_it_imports(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert all(re.search(word, text) for word in (r"\bIn\b", r"\b[Oo]ut\b", r"\b[Ii]mports"))
