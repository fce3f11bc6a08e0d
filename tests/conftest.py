"""Fixtures of all tests come with the first module that is collected.

So they come where tests are run: the process of pytest-xdist that hands tests out would import PyTorch and
TransformerLens for nothing, and the others wait for it.
"""

from __future__ import annotations

import pytest

OF_HOOKED_TRANSFORMER = {"test_config_fix.py", "test_logit_directions.py"}
"""Tests that cannot even be imported beside TransformerLens 4."""


class _Skipped(pytest.Module):
    def collect(self):
        from support.built import ONLY_HOOKED

        pytest.skip(ONLY_HOOKED, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    parent.config.pluginmanager.import_plugin("support.fixtures")
    from support.built import HOOKED

    if not HOOKED and module_path.name in OF_HOOKED_TRANSFORMER:
        return _Skipped.from_parent(parent, path=module_path)
