"""The house rules that can be read off the source: who imports whom, how long things are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fitkit

ROOT = Path(fitkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each room may import of ours, besides itself.
ROOMS = {
    "core": set(),
    "runtime": {"core"},
    "metrics": {"core"},
    "data": {"core", "runtime"},
    "engine": {"core"},
    "checkpointing": {"core", "runtime"},
    "reporting": {"core", "runtime", "checkpointing"},
    "callbacks": {"core", "runtime", "checkpointing", "reporting"},
    "generative": {"core"},
    # above everything: the facade and the other files of layer 4 are the room ""
    "cli": {
        "core",
        "runtime",
        "metrics",
        "data",
        "engine",
        "checkpointing",
        "reporting",
        "callbacks",
        "generative",
        "",
    },
}
SPEAKS_TO_OTHER_PROCESSES = {
    "runtime/world.py",
    "runtime/fresh_store.py",
    "runtime/joining.py",
    "runtime/parallel.py",
    "runtime/pieces.py",
    "runtime/process_group.py",
    "runtime/sharding.py",
    "runtime/strategy.py",
    "checkpointing/sharded.py",
}
# May be imported inside functions: extras, and what takes a second that most programs can save.
OPTIONAL = {"matplotlib", "mlflow", "onnxscript", "safetensors", "scipy", "tensorboard", "wandb"}
LATE = {
    "torch.distributed.tensor.DTensor",
    "fitkit.checkpointing.sharded",
    "fitkit.checkpointing.sharded_queue.ShardedQueue",
    "fitkit.runtime.sharding.FullySharded",
}

MOST_LINES = 260
# The facade documents every argument of every verb; the other is one idea that reads in one go.
MOST_LINES_OF = {
    "nn_handler.py": 630,
    "handler_view.py": 360,
    "generating.py": 300,
    "callbacks/progress_bar.py": 275,
    "checkpointing/save_queue.py": 330,
    "checkpointing/saver.py": 275,
    "runtime/world.py": 305,
    "testing.py": 325,
    "engine/loop.py": 157,
}
MOST_LINES_OF_A_FUNCTION = 40


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


TREES = {name_of(path): tree_of(path) for path in FILES}
by_file = pytest.mark.parametrize("name", TREES)


def module_of(name: str) -> str:
    dotted = "fitkit." + name.removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


MODULES = {module_of(name): name for name in TREES}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def run_nodes(node: ast.AST):
    """Every node that runs, those under TYPE_CHECKING left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_for_types_only(node) and child in node.body:
            continue
        yield from run_nodes(child)


def imports(tree: ast.AST):
    """Dotted names of all that is imported when the module runs."""
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def our_modules(tree: ast.AST) -> set[str]:
    """The modules of ours that are imported: ``fitkit.a.b`` for ``from fitkit.a import b``."""
    found = set()
    for dotted in imports(tree):
        while dotted not in MODULES and "." in dotted:
            dotted = dotted.rpartition(".")[0]
        if dotted in MODULES:
            found.add(dotted)
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in ROOMS else ""


def test_what_takes_a_second_is_imported_late_only():
    late = {name for name in LATE if name.startswith("fitkit")}
    for name, tree in TREES.items():
        if module_of(name) not in {dotted.rpartition(".")[0] for dotted in late} | late:
            top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert not {dotted for node in top for dotted in imports(node)} & late, name


def test_every_folder_is_a_room():
    assert {path.parent.name for path in FILES if path.parent != ROOT} == set(ROOMS)


@pytest.mark.parametrize("name", [name for name in TREES if "/" in name])
def test_imports_point_down(name):
    own = name.split("/")[0]
    modules = our_modules(TREES[name]) - {"fitkit.version"}  # a constant, which imports nothing
    reached = {room_of(module) for module in modules} - {own}
    assert reached <= ROOMS[own], f"{name} may not import from {reached - ROOMS[own]}"


@by_file
def test_nothing_imports_the_command_line(name):
    reached = {room_of(module) for module in our_modules(TREES[name])}
    assert "cli" not in reached or name == "__main__.py" or name.startswith("cli/")


def test_there_are_no_import_cycles():
    graph = {module: our_modules(TREES[name]) - {module} for module, name in MODULES.items()}
    for module in graph:  # a package is only what its parts need
        graph[module] = {other for other in graph[module] if other != "fitkit"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@by_file
def test_one_file_talks_to_other_processes(name):
    if name in SPEAKS_TO_OTHER_PROCESSES:
        return
    assert not [dotted for dotted in imports(TREES[name]) if dotted.startswith("torch.distributed")]
    spoken = {ast.unparse(n) for n in run_nodes(TREES[name]) if isinstance(n, ast.Attribute)}
    assert not [text for text in spoken if text.startswith(("torch.distributed", "dist."))]


@by_file
def test_only_the_runtime_knows_devices_and_number_formats(name):
    if name.startswith("runtime/"):
        return
    spoken = {ast.unparse(n) for n in run_nodes(TREES[name]) if isinstance(n, ast.Attribute)}
    machine = ("torch.cuda", "torch.amp", "torch.accelerator", "torch.autocast")
    assert not [text for text in spoken if text.startswith(machine)]


@by_file
def test_imports_stand_at_the_top(name):
    for function in ast.walk(TREES[name]):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late = {dotted.split(".")[0] for dotted in set(imports(function)) - LATE}
            assert late <= OPTIONAL, f"{name}: {function.name} imports {late - OPTIONAL}"


@by_file
def test_files_are_short(name):
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES_OF.get(name, MOST_LINES)


def length_of(function: ast.FunctionDef) -> int:
    """Lines of the body, from after the docstring on."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@by_file
def test_functions_are_short(name):
    for function in ast.walk(TREES[name]):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert length_of(function) <= MOST_LINES_OF_A_FUNCTION, f"{name}: {function.name}"


@by_file
def test_the_library_neither_prints_nor_asserts(name):
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "breakpoint", "eval", "exec"), (
                f"{name}:{node.lineno}"
            )


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = [] if handler.type is None else [handler.type]
    if isinstance(handler.type, ast.Tuple):
        caught = handler.type.elts
    names = {ast.unparse(node) for node in caught}
    return handler.type is None or bool(names & {"Exception", "BaseException"})


def keeps_the_error(handler: ast.ExceptHandler) -> bool:
    """Whether it raises again, or hands the error to somebody who does."""
    nodes = [node for statement in handler.body for node in ast.walk(statement)]
    if any(isinstance(node, ast.Raise) for node in nodes):
        return True
    used = [node for node in nodes if isinstance(node, ast.Name) and node.id == handler.name]
    return handler.name is not None and bool(used)


@by_file
def test_no_broad_except_swallows_an_error(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler) and is_broad(node):
            assert keeps_the_error(node), f"{name}:{node.lineno}"


@by_file
def test_nothing_is_forwarded_behind_the_reader_s_back(name):
    names = [node.name for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)]
    assert "__getattr__" not in names
    assert "__getattribute__" not in names


def literals(node: ast.ClassDef):
    """Names and values of the class's attributes."""
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            yield from ((ast.unparse(target), statement.value) for target in statement.targets)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            yield ast.unparse(statement.target), statement.value


@by_file
def test_classes_have_no_mutable_attributes(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef):
            for attribute, value in literals(node):
                shared = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp))
                assert not shared, f"{name}: {node.name}.{attribute}"


@by_file
def test_arguments_have_no_mutable_defaults(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.arguments):
            defaults = [*node.defaults, *node.kw_defaults]
            assert not any(isinstance(d, (ast.List, ast.Dict, ast.Set)) for d in defaults)


# ---- the rules can fail -------------------------------------------------------------------------


def test_the_reader_sees_imports_inside_functions_but_not_those_for_types():
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from fitkit.engine import loop
else:
    import torch.distributed
def f():
    from fitkit.core import tree
"""
    tree = ast.parse(source)
    assert set(imports(tree)) == {
        "typing.TYPE_CHECKING",
        "torch.distributed",
        "fitkit.core.tree",
    }
    assert our_modules(tree) == {"fitkit.core.tree"}
    assert room_of("fitkit.core.tree") == room_of("fitkit.core") == "core"
    assert room_of("fitkit.parts") == ""


@pytest.mark.parametrize(
    ("body", "expected"),
    [("pass", False), ("raise", True), ("errors.append(error)", True), ("log()", False)],
)
def test_the_reader_knows_a_swallowed_error(body, expected):
    tree = ast.parse(f"try:\n    f()\nexcept Exception as error:\n    {body}\n")
    (handler,) = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    assert is_broad(handler)
    assert keeps_the_error(handler) is expected
