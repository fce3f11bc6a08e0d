"""Every figure that a result has is drawn without a script, with its words."""

from __future__ import annotations

import base64

import pytest
from support.results import every_result

pytest.importorskip("matplotlib")

from lensplug import views
from lensplug.views.static.parts import shown


@pytest.fixture(scope="module")
def results():
    return every_result()


def test_every_result_is_drawn(results):
    for name, result in results.items():
        figure = views.draw(result)
        pictures = [picture for part in shown(figure, 860) for picture in part.pictures]
        assert pictures, name
        for _, alternative, (address, _) in pictures:
            kind, _, packed = address.partition(";base64,")
            assert kind in ("data:image/svg+xml", "data:image/webp", "data:image/png"), name
            assert len(base64.b64decode(packed)) > 1000 and alternative, name
