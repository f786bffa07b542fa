"""The colours of pictures and pages, for a light and a dark ground; every one is readable on its ground (WCAG AA)."""

from __future__ import annotations

__all__ = ["KIND_DASHES", "PALETTES"]

PALETTES: dict[str, dict[str, str]] = {
    "light": {
        "ground": "#ffffff",
        "panel": "#f5f7fa",
        "text": "#1a2029",
        "muted": "#56606e",
        "rule": "#d5dbe3",
        "edge": "#75808f",
        "accent": "#0a5cb8",
        "focus": "#0a5cb8",
        "found": "#fff0b8",
        "stop": "#a33a1f",
        "before": "#b4530a",
        "after": "#0a5cb8",
        "chain": "#1f6fc4",
        "norm": "#0b7a69",
        "branch": "#7549cf",
        "residual": "#bf4408",
        "gate": "#a01fae",
        "attention": "#bd1a45",
        "one-sided": "#606a78",
    },
    "dark": {
        "ground": "#12161c",
        "panel": "#1a2028",
        "text": "#e7ebf0",
        "muted": "#a6b0bd",
        "rule": "#343d49",
        "edge": "#7d899a",
        "accent": "#7db8ff",
        "focus": "#7db8ff",
        "found": "#4a3f10",
        "stop": "#ff9b80",
        "before": "#ffae66",
        "after": "#7db8ff",
        "chain": "#74b4fb",
        "norm": "#4fd0b4",
        "branch": "#b7a0ff",
        "residual": "#ff9d5c",
        "gate": "#ee92fb",
        "attention": "#ff8ba6",
        "one-sided": "#a6b0bd",
    },
}
"""By ground: "text", "muted", "accent", "stop" are for words, the others for signs and lines."""

KIND_DASHES: dict[str, tuple[float, ...]] = {"attention": (6, 3), "gate": (2, 3), "one-sided": (1, 4)}
"""By kind of group, the strokes and gaps of its line, so that colour is not the only sign; others are solid."""
