"""The source of a model: what is collected, and what can be rebuilt from it."""

from __future__ import annotations

import gc
import importlib
import linecache
import subprocess
import sys
import textwrap
import types

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, NNHandler
from fitkit.checkpointing.model_source.collect import collect_source, is_user_module

ZOO = {
    "zoo/__init__.py": """
        '''A package.'''
        from .blocks import Block as Block
        loaded = print("imported")
    """,
    "zoo/acts.py": """
        import torch
        squash = lambda x: torch.tanh(x) * _gain()
        def _gain(): return 0.5
        def unused(): return nothing_there
    """,
    "zoo/blocks.py": """
        from __future__ import annotations
        import functools, math
        from dataclasses import dataclass
        from typing import TYPE_CHECKING
        from torch.nn import *
        from torch import nn
        from . import acts
        if TYPE_CHECKING:
            from torch import Tensor

        WIDTH = 3
        SCALES = [1.0, 2.0]
        SCALES += [3.0]
        data = open("/a file that is not here") if WIDTH == 4 else None

        @dataclass
        class Config:
            width: int = WIDTH
            scale: float = math.sqrt(4)

        def doubled(cls):
            @functools.wraps(cls, updated=())
            class Doubled(cls):
                def forward(self, x):
                    return 2 * super().forward(x)
            return Doubled

        class Unused:
            value = 1

        class Block(nn.Module):
            def __init__(self, config: Config = Config()):
                super().__init__()
                self.layer = Linear(config.width, config.width)

            def forward(self, data: Tensor) -> Tensor:
                return acts.squash(self.layer(data)) * sum(SCALES)
    """,
    "zoo_models.py": """
        import torch as th, zoo
        import zoo.acts as own_acts
        from torch import nn
        from zoo import Block as B
        from zoo.blocks import doubled

        try:
            import a_module_that_is_not_here as fast
        except ImportError:
            fast = None

        @doubled
        class Inner(B):
            pass

        class Outer:
            class Net(nn.Module):
                act = lambda self, x: own_acts.squash(x)

                def __init__(self, depth=1, head=None):
                    super().__init__()
                    self.layers = nn.Sequential(*[B() for _ in range(depth)], zoo.Block(), Inner())
                    self.head = nn.Identity() if head is None else head()

                def forward(self, x):
                    return self.head(self.act(self.layers(x)) + th.ones(1) + (fast is None))

        class Head(nn.Tanh):
            pass

        if __name__ == "__main__":
            raise SystemExit("a script was run")
    """,
}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes the modules of a program; the returned function makes them go away."""
    folder = tmp_path / "program"
    monkeypatch.syspath_prepend(folder)
    written = set()

    def write(files):
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            written.add(name.partition("/")[0].removesuffix(".py"))
        importlib.invalidate_caches()

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] in written]:
            del sys.modules[name]
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        gc.collect()

    write.forget = forget
    yield write
    forget()


def saved(path, model, **kwargs):
    """Saves a handler of a class that is about to go; returns its inputs and outputs."""
    handler = NNHandler(model, "cpu", seed=0, save_model_code=True, **kwargs)
    handler.save(path)
    x = torch.randn(2, 3)
    return x, handler.predict(x)


def test_a_model_whose_class_is_gone_is_rebuilt(program, tmp_path, capsys):
    program(ZOO)
    models = importlib.import_module("zoo_models")
    path = tmp_path / "m.pth"
    x, expected = saved(path, models.Outer.Net, depth=2, head=models.Head)
    del models
    program.forget()
    capsys.readouterr()
    with pytest.raises(CheckpointError, match=r"is not imported.*or trust_code=True, which runs"):
        NNHandler.load(path)
    importlib.import_module("torch._dynamo")  # torch imports it when it first looks for its version
    modules = set(sys.modules)
    loaded = NNHandler.load(path, trust_code=True)
    assert torch.equal(loaded.predict(x), expected)
    assert set(sys.modules) == modules, "nothing stays imported"
    assert capsys.readouterr().out == "", "what is not needed is not run"
    loaded.save(tmp_path / "again.pth")
    again = NNHandler.load(tmp_path / "again.pth", trust_code=True)
    assert torch.equal(again.predict(x), expected)
    assert again.model_code == loaded.model_code


def test_what_is_kept_and_what_is_not(program, tmp_path):
    program(ZOO)
    models = importlib.import_module("zoo_models")
    code, missing = collect_source([models.Outer.Net])
    assert missing == []
    assert [line for line in code.splitlines() if line.startswith("# ----")] == [
        "# ---- module zoo_models",
        "# ---- module zoo (package)",
        "# ---- module zoo.acts",
        "# ---- module zoo.blocks",
    ]
    kept = ("import torch as th\n", "from zoo import Block as B\n", "from torch.nn import Linear\n")
    kept += ("SCALES += [3.0]", "@dataclass\nclass Config", "@doubled\nclass Inner", "lambda x: ")
    kept += ("except ImportError", "from zoo import acts\n", "from __future__ import annotations")
    for text in kept:
        assert text in code, text
    for text in ("Unused", "unused", "loaded", "a file that is not here", "SystemExit", "import *"):
        assert text not in code, text


def test_the_program_s_own_class_goes_first(program, tmp_path):
    program({"zoo_one.py": ONE})
    x, expected = saved(tmp_path / "m.pth", importlib.import_module("zoo_one").Net)
    change_code(tmp_path / "m.pth", "# ---- module zoo_one\nraise SystemExit('run')\n")
    loaded = NNHandler.load(tmp_path / "m.pth", trust_code=True)
    assert torch.equal(loaded.predict(x), expected)


ONE = """
    from torch import nn
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
"""


def change_code(path, code):
    torch.save({**torch.load(path, weights_only=True), "model_code": code}, path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("# ---- module zoo_one\nimport zoo_nowhere", "in module 'zoo_one', ModuleNotFoundError"),
        ("# ---- module zoo_one\n1 / 0", "ZeroDivisionError: division by zero. Install"),
        ("# ---- module zoo_one\nclass (", "SyntaxError"),
        ("# ---- module zoo_one\nNet = 3", "does not have"),
        ("# ---- module zoo_one\nclass Net: pass", "where a Module is needed"),
        ("class Net: pass", "is that of a library, or of another program"),
    ],
)
def test_code_that_does_not_give_the_class(program, tmp_path, code, message):
    program({"zoo_one.py": ONE})
    saved(tmp_path / "m.pth", importlib.import_module("zoo_one").Net)
    program.forget()
    change_code(tmp_path / "m.pth", code)
    modules, finders = dict(sys.modules), list(sys.meta_path)
    with pytest.raises(CheckpointError, match=message):
        NNHandler.load(tmp_path / "m.pth", trust_code=True)
    assert set(sys.modules) == set(modules)
    assert sys.meta_path == finders


def test_two_files_with_different_classes_of_one_name(program, tmp_path):
    outputs = []
    for number in (1, 2):
        program({"zoo_one.py": ONE + f"    def forward(self, x): return x * {number}\n"})
        linecache.checkcache()
        outputs.append(saved(tmp_path / f"{number}.pth", importlib.import_module("zoo_one").Net))
        for name in [n for n in sys.modules if n == "zoo_one"]:
            del sys.modules[name]
        importlib.invalidate_caches()
    program.forget()
    loaded = [NNHandler.load(tmp_path / f"{n}.pth", trust_code=True) for n in (1, 2)]
    for handler, (x, expected) in zip(loaded, outputs, strict=True):
        assert torch.equal(handler.predict(x), expected)


def test_a_class_that_was_made_in_a_function(tmp_path):
    factor = 2.0

    class Local(nn.Linear):
        def forward(self, x):
            return 2 * torch.relu(super().forward(x))

    class Closed(nn.Linear):
        def forward(self, x):
            return factor * super().forward(x)

    x, expected = saved(tmp_path / "m.pth", Local, in_features=3, out_features=1)
    del Local
    gc.collect()
    with pytest.raises(CheckpointError, match="trust_code=True"):
        NNHandler.load(tmp_path / "m.pth")
    loaded = NNHandler.load(tmp_path / "m.pth", trust_code=True)
    assert torch.equal(loaded.predict(x), expected)
    with pytest.warns(UserWarning, match=r"Closed is incomplete: 'factor', used in .*not be fou"):
        NNHandler(Closed, in_features=1, out_features=1, save_model_code=True)


def test_imports_inside_functions_are_told_of(program):
    late = (
        "    def forward(self, x):\n            import zoo_late\n            return zoo_late.f(x)\n"
    )
    program({"zoo_one.py": ONE + f"    {late}", "zoo_late.py": "f = abs\n"})
    importlib.import_module("zoo_late")
    code, missing = collect_source([importlib.import_module("zoo_one").Net])
    assert "# ---- module zoo_late" in code
    assert missing == [
        "'zoo_late' is imported inside a function of 'zoo_one', where rebuilt code cannot find it: "
        "import it at the top"
    ]


def test_a_ready_module_brings_the_classes_that_are_in_it(program):
    program({"zoo_one.py": ONE})
    net = importlib.import_module("zoo_one").Net()
    handler = NNHandler(nn.Sequential(net), save_model_code=True)
    assert "class Net(nn.Linear)" in handler.model_code
    library = NNHandler(nn.Sequential(nn.ReLU()), save_model_code=True)
    assert library.model_code.startswith("class Sequential(Module):")


def test_whose_a_module_is(program):
    program({"zoo_one.py": ONE})
    importlib.import_module("zoo_one")
    assert is_user_module("zoo_one")
    for name in ("torch", "json", "fitkit", "numpy.linalg", "not_imported"):
        assert not is_user_module(name), name


# ---- notebooks and interpreters -----------------------------------------------------------------

CELLS = [
    "import torch, math\nfrom torch import nn as layers\nfrom torch.nn.functional import relu\n",
    "WIDTH = 3\nSCALES = [1.0, math.pi]\n",
    "class Base(layers.Module):\n    def forward(self, x):\n        return relu(self.layer(x))\n",
    "class Net(Base):\n    def __init__(self):\n        super().__init__()\n"
    "        self.layer = layers.Linear(WIDTH, 2)\n"
    "    def forward(self, x):\n        return sum(SCALES) * super().forward(x)\n",
]


def test_a_class_of_a_notebook(tmp_path, monkeypatch):
    """Each cell is a pseudo-file that linecache knows, as IPython makes it."""
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    for number, cell in enumerate(CELLS):
        name = f"<ipython-input-{number}-0123456789ab>"
        entry = (len(cell), None, cell.splitlines(keepends=True), name)
        monkeypatch.setitem(linecache.cache, name, entry)
        exec(compile(cell, name, "exec"), vars(notebook))
    x, expected = saved(tmp_path / "m.pth", notebook.Net)
    vars(notebook).clear()
    gc.collect()
    loaded = NNHandler.load(tmp_path / "m.pth", trust_code=True)
    assert torch.equal(loaded.predict(x), expected)


def run_python(code, *arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=code, capture_output=True, text=True, **options)


def test_a_class_of_a_repl_is_told_of(tmp_path):
    script = """
import torch, fitkit, warnings
class Net(torch.nn.Linear):
    def forward(self, x): return super().forward(x)

warnings.simplefilter("always")
handler = fitkit.NNHandler(Net, in_features=1, out_features=1, save_model_code=True)
print(handler.model_code)
"""
    done = run_python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"
    assert (
        "the source of Net will not be in checkpoints: 'Net', used in '__main__', c" in done.stderr
    )
    assert "put it into a file" in done.stderr


def test_ipython_keeps_what_was_typed(tmp_path):
    pytest.importorskip("IPython")
    cells = "\n".join(f"shell.run_cell({cell!r})" for cell in CELLS)
    script = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
{cells}
shell.run_cell("import fitkit; h = fitkit.NNHandler(Net, save_model_code=True, seed=0)")
shell.run_cell("h.save('m.pth'); torch.save(h.predict(torch.ones(2, 3)), 'y.pth')")
"""
    environment = {**__import__("os").environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = run_python(script, "-W", "ignore", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    loaded = NNHandler.load(tmp_path / "m.pth", trust_code=True)
    expected = torch.load(tmp_path / "y.pth", weights_only=True)
    assert torch.equal(loaded.predict(torch.ones(2, 3)), expected)
