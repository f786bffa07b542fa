"""Writes the page: one file that asks nobody for anything, in which names of the user's modules are words and never markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from importlib import resources
from typing import Any

from ...optional import optional_import
from ...picture.palette import KIND_DASHES
from ...picture.svg import colour_variables, shown, svg_style
from ...plan.plan import Plan
from ...quantisation.prediction import Prediction, share_words
from ...version import __version__
from ..glossary import GLOSSARY
from .charts import histogram, layer_chart, library_script
from .content import Content, LayerRow, content_of, imbalance_words, number_words
from .pictures import Pictures, pictures_of

__all__ = ["check_libraries", "page"]

_MOST_ROWS = 5_000
"""Groups in the table at most; ``--json`` has all. A choice."""

_MOST_SENTENCES = 3_000
"""Layers whose sentences stand in the page at most; `Plan.why` tells of all. A choice."""


def check_libraries() -> None:
    """Raises a MissingLibraryError where jinja2 or bokeh is not installed, before anything is worked out."""
    for module in ("jinja2", "bokeh.plotting"):
        optional_import(module, "report", "fxenorm-inspect --html")


def page(plan: Plan, target: str, prediction: Prediction | None = None) -> str:
    """Returns the report on a plan as the text of an HTML page; the model stays as it is.

    Args:
        plan: the plan, bound to the model.
        target: how the user named the model.
        prediction: of the noise of rounding, told in a section of its own; None: there is none.

    Raises:
        MissingLibraryError: jinja2 or bokeh is not installed.
    """
    content = content_of(plan, target, prediction)
    layers = {layer.name: number for number, layer in enumerate(content.layers)}
    groups = {group.name: number for number, group in enumerate(content.groups)}
    pictures = pictures_of(plan.rescaler.analysis, content.title, layers, groups)
    charts = _charts(content)
    scripts = [_checked(text) for text in ([library_script()] if charts else []) + [_part("page.js")]]
    jinja = optional_import("jinja2", "report", "fxenorm-inspect --html")
    markup = optional_import("markupsafe", "report", "fxenorm-inspect --html").Markup
    surroundings = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    surroundings.filters |= {"number": number_words, "imbalance": imbalance_words, "share": share_words, "shown": shown}
    values = {
        "content": content,
        "counted": _counted(content),
        "groups": content.groups[:_MOST_ROWS],
        "whole": pictures.whole,
        "kinds": _kinds(content),
        "words": GLOSSARY,
        "version": __version__,
        "policy": _policy(scripts),
    }
    safe = {
        "data": markup(_json(_data(content, pictures, charts))),
        "pictures": [markup(text) for text in pictures.drawn],
        "style": markup(_style()),
        "scripts": [markup(text) for text in scripts],
    }
    return str(surroundings.from_string(_part("page.html")).render(values | safe))


def _counted(content: Content) -> list[LayerRow]:
    """Returns the layers whose norm is known."""
    return [layer for layer in content.layers if layer.before is not None]


def _charts(content: Content) -> dict[str, Any]:
    """Returns the charts for which there are numbers, by the id of the element that shows each."""
    charts = {}
    if content.before:
        charts["histogram"] = histogram(content.before, content.after, "histogram")
    if _counted(content):
        charts["norms"] = layer_chart(_counted(content), "norms")
    return charts


def _data(content: Content, pictures: Pictures, charts: dict[str, Any]) -> dict[str, Any]:
    """Returns all that the page's script needs, as JSON-compatible data."""
    layers = []
    for number, layer in enumerate(content.layers):
        told = dataclasses.asdict(layer)
        if number >= _MOST_SENTENCES:
            told["sentences"] = [f"plan.why({layer.name!r}) tells of this layer"]
        layers.append(told)
    return {
        "layers": layers,
        "groups": [dataclasses.asdict(group) for group in content.groups],
        "pictures": pictures.parts,
        "charts": charts,
    }


def _json(data: dict[str, Any]) -> str:
    """Returns data as JSON without the signs that could end the element around it; keys stay in order, as Bokeh needs them."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _kinds(content: Content) -> list[tuple[str, str]]:
    """Returns the kinds of groups that occur, each with the dashes of its line."""
    found = dict.fromkeys(group.kind for group in content.groups)
    return [(kind, " ".join(f"{size:g}" for size in KIND_DASHES.get(kind, ()))) for kind in found]


def _style() -> str:
    """Returns the style of the page: its colours on both grounds, that of pictures, its own."""
    light, dark = colour_variables("light"), colour_variables("dark")
    grounds = [
        f":root {{ color-scheme: light; {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-ground=light]) {{ color-scheme: dark; {dark} }} }}",
        f":root[data-ground=dark] {{ color-scheme: dark; {dark} }}",
    ]
    return "\n".join([*grounds, svg_style(), _part("page.css")])


def _part(name: str) -> str:
    """Returns a file that lies beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _checked(script: str) -> str:
    """Returns a script that can stand in a page: it does not hold the sign that would end it."""
    if "</script" in script.lower() or "<!--" in script:
        raise RuntimeError("a script holds the sign that ends it")
    return script


def _policy(scripts: list[str]) -> str:
    """Returns the rules by which the browser runs no script but these, and asks nobody for anything."""
    digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*rules, f"script-src {hashes}"])
