"""Plots as pictures."""

from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float) -> "Figure":
    """An empty sheet of so many inches, 100 pixels each."""
    from matplotlib.figure import Figure  # takes a second, and few commands plot

    return Figure(figsize=(width, height), layout="constrained")


def rendered(figure: "Figure") -> Image.Image:
    """What is on a sheet."""
    png = BytesIO()
    figure.savefig(png, format="png")
    return Image.open(png)
