"""What holds for the grid of any image."""

from __future__ import annotations

import pytest
import torch

from lensplug.geometry import ImageGrid
from lensplug.geometry.image_grid import ViewName


def assert_tiles(grid: ImageGrid, *, without_place: int = 0) -> None:
    """The boxes of each view tile it without gap or overlap, and all but newlines (and so many others) have one."""
    has_box = ~grid.boxes.isnan().any(dim=1)
    assert int((~has_box & ~grid.newline).sum()) == without_place
    assert bool((grid.boxes[has_box] >= 0).all())
    assert bool((grid.boxes[has_box][:, 2:] <= torch.tensor([grid.width, grid.height])).all())
    for view in grid.view.unique():
        boxes = grid.boxes[has_box & (grid.view == view)]
        columns, rows = boxes[:, [0, 2]].unique(dim=0), boxes[:, [1, 3]].unique(dim=0)
        for edges in (columns, rows):
            with_length = edges[edges[:, 0] < edges[:, 1]]
            assert torch.equal(with_length[1:, 0], with_length[:-1, 1])
        with_area = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
        n_columns = int((columns[:, 0] < columns[:, 1]).sum())
        assert len(with_area) == n_columns * int((rows[:, 0] < rows[:, 1]).sum()) == len(with_area.unique(dim=0))


def assert_paints(grid: ImageGrid, view: ViewName) -> None:
    """Painting keeps a constant, spreading keeps the mass."""
    constant = grid.to_pixels(torch.full((len(grid),), 0.7), view=view)
    assert bool(((constant == 0) | ((constant - 0.7).abs() < 1e-6)).all())
    values = torch.rand(len(grid), generator=torch.Generator().manual_seed(0)) ** 8
    of_view = torch.ones_like(grid.newline) if view == "all" else (grid.view == 0) == (view == "base")
    heat = grid.to_pixels(values, view=view, preserve_mass=True)
    assert float(heat.sum()) == pytest.approx(float(values[grid.placed & of_view].sum()), rel=1e-4, abs=1e-9)
    assert float(heat.min()) >= 0
