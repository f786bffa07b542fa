"""Builds the reference: a page for every public name from its docstring, and tables from the registries.

    python tools/reference.py                 # writes build/reference; open build/reference/index.html
    python tools/reference.py --output DIR    # writes DIR

The pages are made by pdoc, work offline, and are not committed. A docstring that cannot be read is a warning of pdoc's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import networkx  # noqa: E402
import pdoc.doc  # noqa: E402
import pdoc.render  # noqa: E402

import fxenorm  # noqa: E402
from fxenorm.inspect.cli import main as inspect_main  # noqa: E402
from fxenorm.optim.registry import Rule, registered, registered_names  # noqa: E402
from fxenorm.rules.registry import iterate_rules  # noqa: E402

INTERNAL = frozenset({
    "Plan.rescaler", "Tracked.again", "Tracked.tensors", "Tracked.watched", "Tracked.masters",
})  # fmt: skip
"""Members that only this package and its tests use; they have no page."""

ARGUMENTS_OF_ANALYZE = ("model", "example_inputs", "example_kwargs")
"""They are no options."""


# ---------------------------------------------------------------- what there is


def public_names() -> dict[str, Any]:
    """Returns all that `fxenorm.__all__` names, in its order."""
    return {name: getattr(fxenorm, name) for name in fxenorm.__all__}


def public_members(cls: type) -> dict[str, Any]:
    """Returns the methods and properties of a class that users may call, without inherited ones."""
    kinds = (property, classmethod, staticmethod)
    return {
        name: member
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and (isinstance(member, kinds) or inspect.isfunction(member))
        and f"{cls.__name__}.{name}" not in INTERNAL
    }


def first_line(thing: Any) -> str:
    """Returns the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def users_part(module: str) -> str:
    """Returns the docstring of a folder from "For users" or "No rule can" on: before that it speaks to contributors."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    found = re.search(r"^(For users: |(?=No rule can))(?P<rest>.*)\Z", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"tools/reference: the docstring of {module} has no part for users")
    rest = found["rest"]
    return rest if rest.startswith("fxenorm") else rest[0].upper() + rest[1:]


# ---------------------------------------------------------------- pages from tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def options_of_analyze() -> dict[str, tuple[str, str]]:
    """Returns, by option of `analyze`, its default and the text beside it in the docstring."""
    text = inspect.getdoc(fxenorm.analyze) or ""
    arguments = text.partition("Args:\n")[2].partition("\nReturns:")[0]
    told = {
        m["name"]: " ".join(m["text"].split())
        for m in re.finditer(r"^    (?P<name>\w+): (?P<text>.*(?:\n     +.*)*)", arguments, re.M)
    }
    parameters = inspect.signature(fxenorm.analyze).parameters
    missing = [name for name in parameters if name not in ARGUMENTS_OF_ANALYZE and name not in told]
    if missing:
        raise SystemExit(f"tools/reference: the docstring of analyze does not explain {', '.join(missing)}")
    return {name: (repr(one.default), told[name]) for name, one in parameters.items() if name not in ARGUMENTS_OF_ANALYZE}


def options_page() -> str:
    """Returns the table of the options of `analyze`."""
    rows = [(f"`{name}`", f"`{default}`", text) for name, (default, text) in options_of_analyze().items()]
    return f"Options of `fxenorm.analyze`.\n\n{table(('option', 'default', 'meaning'), rows)}"


_OPTIMIZERS = """\
Optimizers whose state follows a rescaling. D is the factor by which an entry of a parameter is multiplied. Subclasses that do
not override `step` use the rule of their parent. For any other class see `register_optimizer`.

Promises: *re-expressed*, the state is that of a fresh optimizer that was fed the rescaled gradients from the start; *covariant*,
later updates are D times what they would have been; *by definition*, what the state stands for is rescaled exactly."""

_OPERATORS = """\
Operators that have a scale rule. In-place and out variants have the rule of the operator itself. Every other operator is a
barrier: scales stop there, and the plan says so. `register_rule` adds a rule for your own operator."""


def optimizers_page() -> str:
    """Returns the table of the optimizers that have a rule, and what no rule makes exact."""
    found = {
        f"torch.optim.{cls.__name__}" if cls.__module__.startswith("torch.optim") else _named(cls): rule
        for cls, rule in registered().items()
    }
    rows = [
        (f"`{name}`", *_promise(rule))
        for name, rule in sorted(
            {**found, **registered_names()}.items(), key=lambda item: (not item[0].startswith("torch."), item[0])
        )
    ]
    return f"{_OPTIMIZERS}\n\n{table(('class', 'promise', 'rule'), rows)}\n\n{users_part('fxenorm.optim')}"


def _named(cls: type) -> str:
    """Returns the name of a class with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _promise(rule: Rule) -> tuple[str, str]:
    """Returns the promise of a rule, and the first line of its docstring."""
    return rule.contract, first_line(rule.follows)


def operators_page() -> str:
    """Returns the table of the operators that have a rule, by family and law."""
    laws: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rule in iterate_rules():
        if not rule.own:
            laws[rule.family][first_line(rule.function) or rule.function.__name__].append(rule.operator)
    parts = [_OPERATORS]
    for family in sorted(laws, key=lambda name: (name == "barrier", name)):
        rows = [(law, ", ".join(f"`{name}`" for name in names)) for law, names in laws[family].items()]
        parts.append(f"## {family}\n\n{table(('law', 'operators'), rows)}")
    return "\n\n".join(parts)


def command_page() -> str:
    """Returns the help text of fxenorm-inspect."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        inspect_main(["--help"])
    text = told.getvalue()
    return f"The command `fxenorm-inspect`, as its `--help` says.\n\n```text\n{text}\n```"


PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("all options of `analyze` with their defaults", options_page),
    "optimizers": ("optimizers whose state follows, and what is not exact", optimizers_page),
    "processes": ("DistributedDataParallel, fully_shard, tensor parallelism", lambda: users_part("fxenorm.distributed")),
    "operators": ("operators that have a scale rule, with the law of each", operators_page),
    "kernels": ("how weights are read and written, compiled kernels, what is slower", lambda: users_part("fxenorm.kernels")),
    "releases": ("what an older PyTorch can not do", lambda: users_part("fxenorm.trace")),
    "fxenorm-inspect": ("the command and its options", command_page),
}
"""By name, a line about the page and its text."""

MODULES = {
    "fxenorm.integrations.lightning": "the callback for Lightning",
    "fxenorm.integrations.transformers": "the callback for the Trainer of Transformers",
    "fxenorm.rules.laws": "the laws of which rules of your own are made",
    "fxenorm.rules.call": "`Call`, which a rule of your own gets",
    "fxenorm.errors": "all errors",
    "fxenorm.objectives": "terms that `Plan.balance` minimises instead of the norm",
    "fxenorm.masses": "masses of terms: gradients, Fisher information, paths",
}
"""Whole modules that have a page."""


def index_page() -> str:
    """Returns the first page: how it works, and a line about every other page."""
    own = [(name, first_line(thing)) for name, thing in public_names().items() if not inspect.ismodule(thing)]
    parts = {"Names in `fxenorm`": own, "Tables": [(name, line) for name, (line, _) in PAGES.items()], "Modules": MODULES.items()}
    tables = [
        f"## {title}\n\n{table(('page', 'content'), [(f'[{name}]({name}.html)', line) for name, line in lines])}"
        for title, lines in parts.items()
    ]
    return "\n\n".join([users_part("fxenorm.plan"), *tables])


# ---------------------------------------------------------------- rendering


def at_home(thing: Any) -> Any:
    """Returns a function that names another module than its own as one that does not: pdoc reads its annotations there."""
    if not inspect.isfunction(thing) or thing.__module__ == thing.__globals__["__name__"]:
        return thing
    made = functools.update_wrapper(FunctionType(thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__), thing)
    made.__module__ = thing.__globals__["__name__"]
    del made.__wrapped__
    return made


def page(name: str, text: str, members: Mapping[str, Any]) -> pdoc.doc.Module:
    """Returns a module that holds nothing but these members, as pdoc sees it."""
    made = ModuleType(name, text)
    made.__dict__.update({key: at_home(thing) for key, thing in members.items()}, __all__=list(members))
    seen = pdoc.doc.Module(made)
    for member in seen.classes:
        for hidden in ["__init__", *member.members]:  # users construct none of these classes
            if hidden == "__init__" or f"{name}.{hidden}" in INTERNAL:
                member.members.pop(hidden, None)
    return seen


def all_pages() -> dict[str, pdoc.doc.Module]:
    """Returns every page by its name; "index" is the first one."""
    found = {"index": page("fxenorm", index_page(), {})}
    found.update((name, page(name, "", {name: thing})) for name, thing in public_names().items() if not inspect.ismodule(thing))
    found.update((name, page(name, text(), {})) for name, (_, text) in PAGES.items())
    found.update((name, pdoc.doc.Module(importlib.import_module(name))) for name in MODULES)
    return found


def targets() -> dict[str, str]:
    """Returns, by name or Class.member, the page and place of it."""
    places: dict[str, str] = {}
    for name, thing in public_names().items():
        places[name] = f"fxenorm.{name}.html" if inspect.ismodule(thing) else f"{name}.html"
        for member in public_members(thing) if inspect.isclass(thing) else ():
            places[f"{name}.{member}"] = f"{name}.html#{name}.{member}"
    places.update((name, f"fxenorm.errors.html#{name}") for name in fxenorm.errors.__all__ if name not in places)
    places.update((f"fxenorm.{name}", place) for name, place in list(places.items()))
    places.update((f"plan.{name}", places[f"Plan.{name}"]) for name in public_members(fxenorm.Plan))
    places.update((name, f"{name}.html") for name in MODULES)
    return places


def linked(html: str, own: str, places: Mapping[str, str]) -> str:
    """Returns a page in which code spans that name something public lead there; a member needs no class on its class's page."""

    def link(match: re.Match[str]) -> str:
        """Returns the span inside a link, where its name is known."""
        name = match["name"].removesuffix("()")
        place = places.get(f"{own}.{name}") or places.get(name)
        return match[0] if place is None else f'<a href="{place}">{match[0]}</a>'

    return re.sub(r"(?<!>)<code>(?P<name>[\w.]+(?:\(\))?)</code>(?!</a>)", link, html)


@contextlib.contextmanager
def subscriptable_graphs() -> Iterator[None]:
    """Lets ``networkx.MultiDiGraph[Any]``, which type checkers ask for, be evaluated."""
    networkx.MultiDiGraph.__class_getitem__ = classmethod(lambda cls, _: cls)
    try:
        yield
    finally:
        del networkx.MultiDiGraph.__class_getitem__


@subscriptable_graphs()
def build(folder: Path) -> list[Path]:
    """Writes all pages into a folder; returns their paths."""
    pdoc.render.configure(docformat="google", show_source=False, search=False, footer_text=f"fxenorm {fxenorm.__version__}")
    folder.mkdir(parents=True, exist_ok=True)
    pages, places, written = all_pages(), targets(), []
    for name, module in pages.items():
        path = folder / f"{name}.html"
        around = {"": pages["index"], name: module}  # two, so that pdoc puts a link to the index on the page
        html = pdoc.render.html_module(module, around).replace("Module Index", "all pages")
        html = re.sub(r'href="(\.\./)+index', 'href="index', html)  # all pages lie in one folder, also those with dots
        path.write_text(linked(html, name, places), encoding="utf-8")
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="tools/reference", description="Builds the reference from the docstrings.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "reference", help="folder for the pages")
    chosen = parser.parse_args(arguments)
    written = build(chosen.output)
    print(f"{len(written)} pages; open {chosen.output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
