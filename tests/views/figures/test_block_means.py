"""Block means by hand, with last blocks that are smaller."""

import pytest
import torch

from lensplug.views.figures.block_means import block_means, block_size


def test_means_by_hand():
    matrix = torch.arange(15.0).view(3, 5)
    assert block_means(matrix, 2).tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    assert block_means(matrix, 1) is matrix


@pytest.mark.parametrize(("positions", "size"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_as_many_cells_as_allowed_and_no_more(positions, size):
    assert block_size(positions, 10) == size
