"""Cells of a grid over an image, as places: the same cells in pictures of every size."""

from __future__ import annotations

from lensplug.errors import LensplugError
from lensplug.interventions.places import Region
from lensplug.validation.arguments import at_least, checked

MOST = 4096
"""Maximum number of regions."""


@checked
def grid_regions(rows: int, columns: int, *, image: int = 0) -> dict[str, Region]:
    """Regions of an image, row by row.

    paths = {name: (cell, "last") for name, cell in grid_regions(3, 3).items()}
    flow = analysis.information_flow(lens, inputs, "Red", paths=paths)

    Args:
        rows: How many rows of cells, at least 1.
        columns: How many columns.
        image: Which image of each example.

    Returns:
        "row 0, column 0" -> the cell, in shares of the picture's size. A patch belongs to every cell that it touches.

    Raises:
        LensplugError: If there are no rows or columns, or too many.
    """
    at_least(1, rows=rows, columns=columns)
    if rows * columns > MOST:
        raise LensplugError(
            f"{rows} rows and {columns} columns make {rows * columns} regions, expected at most {MOST}."
        )
    return {
        f"row {row}, column {column}": Region(
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows), image=image, relative=True
        )
        for row in range(rows)
        for column in range(columns)
    }
