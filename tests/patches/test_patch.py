"""A patch saves what was there and puts that back, in order, whatever happens."""

import subprocess
import sys
from typing import Any

import pytest
from torch import nn

from lensplug import LensplugError
from lensplug.patches.patch import Patch


class Rename(Patch):
    nests = True

    def __init__(self, target, **changes):
        super().__init__(target)
        self.changes = changes
        self.settled = 0

    def _changes(self):
        return dict(self.changes)

    def _options(self):
        return self.changes

    def _settle(self):
        self.settled += 1


@pytest.fixture
def module():
    module: Any = nn.Sequential(nn.Linear(2, 2))
    module.label = "old"
    return module


def held(module):
    return {**module.__dict__, "_modules": dict(module._modules)}


def test_before_is_after_for_attributes_submodules_and_what_was_absent(module):
    before, child = held(module), module[0]
    with Rename(module, label="new", extra=1, **{"0": nn.ReLU()}) as patch:
        assert (module.label, module.extra, type(module[0])) == ("new", 1, nn.ReLU)
        assert patch.applied and patch.settled == 1
    assert held(module) == before and module[0] is child
    assert not patch.applied and patch.settled == 2


def test_a_method_of_the_class_comes_back(module):
    with Rename(module, forward=lambda x: "patched"):
        assert module(1) == "patched"
    assert "forward" not in module.__dict__


def test_what_a_patch_relies_on_must_be_there(module):
    class Needs(Rename):
        relies_on = ("label", "_gone")

    with pytest.raises(LensplugError, match=r"has internals.*Sequential has no _gone, which .*Needs needs.*pip"):
        Needs(module, label="new")
    module._gone = None
    assert Needs(module, label="new").apply().applied


def test_an_exception_passes_through_and_everything_is_put_back(module):
    before = held(module)
    with pytest.raises(KeyError, match="mine"), Rename(module, label="new"):
        raise KeyError("mine")
    assert held(module) == before


def test_applying_twice_and_removing_twice_change_nothing_more(module):
    patch = Rename(module, label="new").apply()
    assert patch.apply() is patch
    patch.remove()
    patch.remove()
    assert module.label == "old"


def test_nested_patches_come_off_in_reverse_order_only(module):
    first, second = Rename(module, label="first").apply(), Rename(module, label="second").apply()
    with pytest.raises(LensplugError, match="later patch first"):
        first.remove()
    assert module.label == "second"
    second.remove()
    assert module.label == "first"
    first.remove()
    assert module.label == "old"


def test_half_a_change_is_undone(module):
    before = held(module)

    class Breaks(Rename):
        def _settle(self):
            if self.applied and self.settled == 0:
                self.settled = 1
                raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        Breaks(module, label="new", extra=2).apply()
    assert held(module) == before


def test_an_attribute_that_cannot_be_set_undoes_the_others(module):
    class Fixed(nn.Sequential):
        @property
        def fixed(self):
            return 0

    target = Fixed(nn.Linear(2, 2))
    before = held(target)
    patch = Rename(target, label="new", fixed=1)
    with pytest.raises(AttributeError, match="fixed"):
        patch.apply()
    assert held(target) == before and not patch.applied


def test_a_patch_that_refuses_to_begin_changes_nothing(module):
    class Refusing(Rename):
        def _changes(self):
            raise LensplugError("not this one")

    before, patch = held(module), Refusing(module)
    with pytest.raises(LensplugError, match="not this one"), patch:
        pass
    assert held(module) == before and not patch.applied and patch.settled == 0


def test_can_be_applied_again_and_making_one_changes_nothing(module):
    before, patch = held(module), Rename(module, label="new")
    for _ in range(3):
        assert held(module) == before
        with patch:
            assert module.label == "new"


def test_patches_of_different_attributes_come_off_in_any_order(module):
    before = held(module)
    first, second = Rename(module, label="new").apply(), Rename(module, extra=1).apply()
    first.remove()
    assert (module.label, module.extra) == ("old", 1)
    second.remove()
    assert held(module) == before


def test_a_partly_covered_patch_is_refused_whole(module):
    """The attribute that nobody covered stays as it is, too."""
    first, second = Rename(module, extra=1, label="first").apply(), Rename(module, label="second").apply()
    with pytest.raises(LensplugError, match="Rename cannot be removed: Sequential.label was changed"):
        first.remove()
    assert (module.extra, module.label) == (1, "second") and first.applied and second.applied


def test_importing_the_patches_imports_no_transformer_lens():
    """TransformerLens 4 has no HookedTransformer: lensplug must still be importable beside it, and say so."""
    module = "lensplug.patches.hooked_transformer.core"
    code = f"import sys, lensplug.patches as p; print({module!r} in sys.modules, *p.PATCHES)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [
        "False",
        "AttentionRows",
        "BridgeAttentionRows",
        "BridgeCache",
        "BridgeDeepstack",
        "BridgeEmbeddingInput",
        "BridgeMLPInPlace",
        "BridgePadding",
        "BridgeResidMid",
        "BridgeRouting",
        "BridgeUnwatchedBlocks",
        "CheckpointedBlocks",
        "ConfigFix",
        "EmbeddingInput",
        "GatedMLPInPlace",
        "HookNames",
        "LogitDirections",
        "LogitRows",
        "MLPByPositions",
        "PlaceholdersRefused",
        "UnwatchedBlocks",
    ]
    with pytest.raises(ImportError, match="NoSuchPatch"):
        from lensplug.patches import NoSuchPatch  # noqa: F401
