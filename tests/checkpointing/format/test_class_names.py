from __future__ import annotations

import gc
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from fitkit import CheckpointError
from fitkit.checkpointing.format.class_names import class_name, resolve_class

REMEDY = "pass model_class="


class Outer:
    class Inner(nn.Module):
        pass


class Plain:
    pass


def find(name, kind=nn.Module):
    return resolve_class(name, kind, REMEDY)


@pytest.mark.parametrize("cls", [nn.Linear, nn.TransformerEncoderLayer, Outer.Inner])
def test_a_name_is_found_again(cls):
    assert find(class_name(cls)) is cls


def test_other_kinds_of_parts():
    assert find(class_name(torch.optim.AdamW), torch.optim.Optimizer) is torch.optim.AdamW
    scheduler = torch.optim.lr_scheduler.StepLR
    assert find(class_name(scheduler), torch.optim.lr_scheduler.LRScheduler) is scheduler


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module that could be imported and would leave a trace."""
    (tmp_path / "trap_package.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w').write('imported')\n"
        "import torch\nclass Net(torch.nn.Module): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "trace"


@pytest.mark.parametrize("name", ["trap_package:Net", "trap_package.sub:Net", "antigravity:Net"])
def test_nothing_is_imported(package, name):
    with pytest.raises(CheckpointError, match=r"is not imported; .*Import it first, or pass model"):
        find(name)
    assert not package.exists()
    assert "antigravity" not in sys.modules


@pytest.fixture
def trap(monkeypatch):
    """A module full of traps; ``trap.sprung`` lists those that went off."""
    sprung: list[str] = []

    class Meta(type):
        @property
        def __dict__(cls):
            sprung.append("metaclass __dict__")
            return {}

        def __getattr__(cls, name):
            sprung.append(f"metaclass {name}")
            return nn.Linear

        def __subclasscheck__(cls, other):
            sprung.append("subclasscheck")
            return True

    class Lazy(types.ModuleType):
        @property
        def __dict__(self):
            sprung.append("module __dict__")
            return {}

        def __getattr__(self, name):
            sprung.append(f"module class {name}")
            return nn.Linear

    class Property:
        @property
        def Net(self):  # noqa: N802
            sprung.append("property")
            return nn.Linear

        @property
        def __dict__(self):
            sprung.append("instance __dict__")
            return {"Net": nn.Linear}

        @property
        def __class__(self):
            sprung.append("instance __class__")
            return type

    class Holder(metaclass=Meta):
        @property
        def net(self):
            sprung.append("property of class")

    class Descriptor:
        def __get__(self, instance, owner):
            sprung.append("descriptor")
            return nn.Linear

    class WithDescriptor(nn.Module):
        Net = Descriptor()

    module = Lazy("trap_module")
    vars(types.ModuleType)["__dict__"].__get__(module).update(
        __getattr__=lambda name: sprung.append(f"module {name}"),
        Holder=Holder,
        holder=Property(),
        WithDescriptor=WithDescriptor,
    )
    monkeypatch.setitem(sys.modules, "trap_module", module)
    return sprung


@pytest.mark.parametrize(
    "qualname",
    ["Net", "Holder", "Holder.Net", "Holder.net", "holder", "holder.Net", "WithDescriptor.Net"],
)
def test_no_attribute_access_runs_code(trap, qualname):
    with pytest.raises(CheckpointError):
        find(f"trap_module:{qualname}")
    assert trap == []


def test_a_class_in_a_lazy_module_is_found_without_waking_it(trap):
    assert find("trap_module:WithDescriptor").__name__ == "WithDescriptor"
    assert trap == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("os:system", nn.Module),
        ("builtins:eval", nn.Module),
        ("torch:load", nn.Module),
        ("torch.nn.modules.linear:Linear.forward", nn.Module),
        ("torch.nn.modules.linear:Missing", nn.Module),
        ("torch:nn.Missing", nn.Module),
    ],
)
def test_what_is_no_class_is_not_had(name, kind):
    with pytest.raises(CheckpointError, match=r"does not have.*pass model_class="):
        find(name, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("subprocess:Popen", nn.Module),
        ("torch.optim.adam:Adam", nn.Module),
        ("torch.nn.modules.linear:Linear", torch.optim.Optimizer),
        ("builtins:type", nn.Module),
        ("builtins:object", nn.Module),
    ],
)
def test_the_wrong_kind_is_refused(name, kind):
    assert subprocess.Popen
    with pytest.raises(CheckpointError, match=f"where a {kind.__name__} is needed"):
        find(name, kind)


def test_a_virtual_subclass_is_no_module():
    assert class_name(Plain).endswith(":Plain")
    with pytest.raises(CheckpointError, match="is needed"):
        find(class_name(Plain))


@pytest.mark.parametrize(
    "name", ["", ":", "torch", "torch:", ":Linear", None, 3, "torch:..", "a:b:c"]
)
def test_names_that_are_none(name):
    with pytest.raises(CheckpointError):
        find(name)


def test_a_class_made_in_a_function_is_found_while_it_lives():
    def make():
        class Local(nn.Module):
            pass

        return Local

    first = make()
    name = class_name(first)
    assert "<locals>" in name
    assert find(name) is first
    second = make()  # the cell of a notebook was run again
    assert find(name) is second
    with pytest.raises(CheckpointError, match="is not defined yet"):
        find(name, torch.optim.Optimizer)
    del first, second
    gc.collect()
    with pytest.raises(CheckpointError, match="is not defined yet"):
        find(name)


def test_a_class_of_code_that_belongs_to_no_module_is_found():
    space = {}
    exec("import torch\nclass Net(torch.nn.Module):\n    pass", space)
    assert find(class_name(space["Net"])) is space["Net"]


def test_the_main_module_is_the_running_program(monkeypatch):
    class Net(nn.Module):
        pass

    monkeypatch.setattr(sys.modules["__main__"], "MainNet", Net, raising=False)
    assert find("__main__:MainNet") is Net


def test_a_submodule_reached_through_its_parent_is_not_a_way_around():
    """``torch:nn.Linear`` names a class by another path: it is what the program has."""
    assert find("torch:nn.Linear") is nn.Linear
