"""Has figures show themselves in a notebook, whether or not it has imported pyplot."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["shows_itself"]


def shows_itself(figure: Any, dpi: float) -> Any:
    """Gives a figure of matplotlib the method that notebooks ask for a picture.

    Without pyplot, which would keep every figure until somebody closes it, a notebook knows no figures.

    Args:
        figure: the figure.
        dpi: resolution of the picture, px an inch.

    Returns:
        The figure.
    """

    def png() -> bytes:
        """Returns the picture as PNG."""
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=dpi)
        return stream.getvalue()

    figure._repr_png_ = png
    return figure
