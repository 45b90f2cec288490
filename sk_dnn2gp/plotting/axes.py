"""What all Displays draw on and with: axes, and colours that the colour-blind tell apart."""

from __future__ import annotations

from typing import Any

__all__ = ["BLACK", "BLUE", "GREEN", "ORANGE", "new_axes"]

# Of Okabe and Ito.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"


def new_axes(ax: Any) -> tuple[Any, Any]:
    """The axes given, or new ones; ImportError naming the extra if matplotlib is missing."""
    if ax is not None:
        return ax, ax.figure
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib: install the extra with pip install 'sk_dnn2gp[plot]'."
        ) from error
    figure, ax = plt.subplots()
    return ax, figure
