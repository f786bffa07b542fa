"""Draws a picture as SVG: words are escaped, colours are variables of the page, and every part can be found by its number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from xml.etree import ElementTree as xml

from .layout import Layout, PlacedBox, PlacedFrame, Track, box_words, placed
from .palette import KIND_DASHES, PALETTES
from .picture import Line, Picture

__all__ = ["colour_variables", "shown", "svg_element", "svg_file", "svg_style", "svg_text"]

_ROUND = 6.0
"""Radius of a line's corners, in px."""

_STYLE = """
.fxenorm text { font-family: system-ui, sans-serif; font-size: 10.5px; fill: var(--muted); }
.fxenorm .name { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12px; fill: var(--text); }
.fxenorm .box rect { fill: var(--panel); stroke: var(--edge); }
.fxenorm .frame > rect { fill: none; stroke: var(--rule); }
.fxenorm .copies { font-size: 12px; font-weight: 600; fill: var(--text); }
.fxenorm .line path { fill: none; stroke: currentColor; stroke-width: 1.8; }
.fxenorm .line .ends { fill: currentColor; stroke: none; }
.fxenorm .line text { fill: currentColor; text-anchor: end; }
.fxenorm .line .hit { stroke: transparent; stroke-width: 12; }
"""


def shown(text: str) -> str:
    """Returns a text with signs that are not printable spelt out, so that XML can hold it."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def colour_variables(ground: str) -> str:
    """Returns the colours of a ground, "light" or "dark", as declarations of CSS."""
    return " ".join(f"--{name}: {colour};" for name, colour in PALETTES[ground].items())


def svg_file(picture: Picture, title: str) -> str:
    """Returns a picture as an SVG document by itself, light or dark as the reader's system is.

    Args:
        picture: the boxes and lines.
        title: the name of the model.
    """
    root = svg_element(picture, title, placed(picture))
    style = xml.Element("style")
    rules = [f".{_kind(kind)} {{ color: var(--{kind}); }}" for kind in _kinds(picture.lines)]
    style.text = "\n".join(
        [
            f":root {{ {colour_variables('light')} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {colour_variables('dark')} }} }}",
            *rules,
            _STYLE,
        ]
    )
    ground = xml.Element("rect", {"width": "100%", "height": "100%", "style": "fill: var(--ground)"})
    root.insert(1, style)
    root.insert(2, ground)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def svg_text(picture: Picture, title: str, opens: Collection[int] = ()) -> str:
    """Returns a picture as an SVG element for a page, which brings the style and the colours.

    Args:
        picture: the boxes and lines.
        title: the name of the model.
        opens: the frames that get a button to open them; the page says what it does.
    """
    root = svg_element(picture, title, placed(picture), opens)
    return xml.tostring(root, encoding="unicode", short_empty_elements=False)


def svg_style() -> str:
    """Returns the rules of CSS by which a page shows pictures."""
    kinds = [f".{_kind(kind)} {{ color: var(--{kind}); }}" for kind in _COLOURED]
    return "\n".join([*kinds, _STYLE])


_COLOURED = ("chain", "norm", "branch", "residual", "gate", "attention", "one-sided")


def svg_element(picture: Picture, title: str, layout: Layout, opens: Collection[int] = ()) -> xml.Element:
    """Returns a picture in its places as an SVG element.

    Args:
        picture: the boxes and lines.
        title: the name of the model.
        layout: the places.
        opens: the frames that get a button.
    """
    root = xml.Element(
        "svg",
        {
            "class": "fxenorm",
            "viewBox": f"0 0 {layout.width:.0f} {layout.height:.0f}",
            "width": f"{layout.width:.0f}",
            "height": f"{layout.height:.0f}",
            "role": "group",
            "aria-label": shown(f"Layers and groups of {title}"),
        },
    )
    xml.SubElement(root, "title").text = shown(f"Layers and groups of {title}")
    for frame in layout.frames:
        _add_frame(root, frame, frame.number in opens)
    for track in sorted(layout.tracks, key=lambda track: track.x):
        _add_track(root, track, picture.lines[track.line])
    numbers = {id(box): number for number, box in enumerate(picture.boxes)}
    for box in layout.boxes:
        _add_box(root, box, numbers[id(box.box)], "" if box.box.frame < 0 else picture.frames[box.box.frame].title)
    return root


def _add_frame(root: xml.Element, at: PlacedFrame, opens: bool) -> None:
    """Draws a block: a frame with its title, the number of its copies, and a button where it can be opened."""
    group = xml.SubElement(root, "g", {"class": "frame", "data-frame": str(at.number)})
    _add_rect(group, at.x, at.y, at.width, at.height, 10)
    _add_text(group, at.x + 12, at.y + 17, shown(at.frame.title), "name")
    right = at.x + at.width - 12
    if opens:
        label = f"Open {at.frame.title}, {at.frame.copies} blocks"
        button = xml.SubElement(group, "g", {"class": "open", "data-frame": str(at.number), "aria-label": shown(label)})
        _add_rect(button, right - 34, at.y + 4, 40, 18, 9)
        _add_text(button, right - 14, at.y + 17, "open").set("text-anchor", "middle")
        right -= 40
    if at.frame.copies > 1:
        _add_text(group, right, at.y + 17, f"×{at.frame.copies}", "copies").set("text-anchor", "end")


def _add_box(root: xml.Element, at: PlacedBox, number: int, block: str) -> None:
    """Draws a layer: its name, its channels and what fixes some of them; several layers as a stack."""
    count = len(at.box.layers)
    words = [f"{block} {at.box.name}".strip(), f"{count} layers" if count > 1 else "", box_words(at.box)]
    group = xml.SubElement(
        root, "g", {"class": "box", "data-box": str(number), "aria-label": shown(", ".join(filter(None, words)))}
    )
    if count > 1:
        _add_rect(group, at.x + 3, at.y + 3, at.width, at.height, 7)
    _add_rect(group, at.x, at.y, at.width, at.height, 7)
    middle = at.y + at.height / 2
    _add_text(group, at.x + 12, middle - 3 if box_words(at.box) else middle + 4, shown(at.box.name), "name")
    if count > 1 and at.box.frame < 0:
        _add_text(group, at.x + at.width - 12, middle - 3, f"×{count}", "copies").set("text-anchor", "end")
    if box_words(at.box):
        _add_text(group, at.x + 12, middle + 12, shown(box_words(at.box)))


def _add_track(root: xml.Element, track: Track, line: Line) -> None:
    """Draws the part of a line in one column: its lane, its branches, a dot where it is written, an arrow where it is read."""
    told = f"group {line.groups[0]}" if len(line.groups) == 1 else f"groups {line.groups[0]} to {line.groups[-1]}"
    group = xml.SubElement(
        root,
        "g",
        {
            "class": f"line {_kind(line.kind)}",
            "data-line": str(track.line),
            "aria-label": shown(f"{told}, {line.kind}, {line.channels} channels"),
        },
    )
    path = _path(track)
    dashes = KIND_DASHES.get(line.kind)
    xml.SubElement(group, "path", {"class": "hit", "d": path})
    xml.SubElement(group, "path", {"d": path} | ({"stroke-dasharray": " ".join(f"{d:g}" for d in dashes)} if dashes else {}))
    ends = "".join(
        _dot(port.x, port.y)
        if port.writes
        else f"M{port.x - 7:g} {port.y - 4:g}L{port.x:g} {port.y:g}L{port.x - 7:g} {port.y + 4:g}Z"
        for port in track.ports
    )
    xml.SubElement(group, "path", {"class": "ends", "d": ends})
    if track.ports:
        first = next((port for port in track.ports if port.writes), track.ports[0])
        _add_text(group, first.x - 9, first.y - 4, shown(line.channels))


def _path(track: Track) -> str:
    """Returns a lane with its branches as a path; the corners at its ends are round."""
    parts = [f"M{track.x:g} {track.top:g}L{track.x:g} {track.bottom:g}"] if _is_plain(track) else []
    if not parts:
        first, last = track.ports[0].y == track.top, track.ports[-1].y == track.bottom
        begin = track.top + _ROUND if first else track.top
        end = track.bottom - _ROUND if last else track.bottom
        parts.append(f"M{track.x:g} {begin:g}L{track.x:g} {end:g}")
    for port in track.ports:
        side = 0 if _is_plain(track) else _ROUND * ((port.y == track.top) - (port.y == track.bottom))
        corner = f"M{track.x:g} {port.y + side:g}Q{track.x:g} {port.y:g} {track.x + _ROUND:g} {port.y:g}" if side else ""
        parts.append((corner or f"M{track.x:g} {port.y:g}") + f"L{port.x - (0 if port.writes else 5):g} {port.y:g}")
    return "".join(parts)


def _is_plain(track: Track) -> bool:
    """Whether a lane is too short for round corners."""
    return not track.ports or track.bottom - track.top < 2 * _ROUND


def _dot(x: float, y: float) -> str:
    """Returns a dot on the side of a box as a path."""
    return f"M{x - 3.5:g} {y:g}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z"


def _add_rect(group: xml.Element, x: float, y: float, width: float, height: float, radius: float) -> None:
    """Adds a rectangle with round corners."""
    places = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
    xml.SubElement(group, "rect", {name: f"{value:g}" for name, value in places.items()})


def _add_text(group: xml.Element, x: float, y: float, text: str, kind: str = "") -> xml.Element:
    """Adds words; returns the element."""
    element = xml.SubElement(group, "text", {"x": f"{x:g}", "y": f"{y:g}"} | ({"class": kind} if kind else {}))
    element.text = text
    return element


def _kind(kind: str) -> str:
    """Returns the class of CSS of a kind of group."""
    return f"kind-{kind}"


def _kinds(lines: Sequence[Line]) -> list[str]:
    """Returns the kinds of some lines, each once."""
    return list(dict.fromkeys(line.kind for line in lines))
