"""The house rules that can be read off the source: who imports whom, how long things are."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import fitkit

ROOT = Path(fitkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The rooms from the bottom to the top. A file may import its own room and the rooms of lower lines.
# "." is the package root without what stands above it; "checkpointing" are its public faces.
LAYERS = [
    ["core"],
    ["metrics", "distributed"],
    ["runtime"],
    ["data", "engine", "checkpointing/format"],
    ["checkpointing/storage", "checkpointing/model_source"],
    ["checkpointing/savers"],
    ["checkpointing/catalog", "checkpointing/save_queue"],
    ["checkpointing"],
    ["reporting", "generative", "export"],
    ["callbacks/support"],
    ["callbacks"],
    ["handler", "cli"],
    ["training", "summary"],
    ["tuning"],
    ["."],
    ["__init__", "testing", "__main__"],
]
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# The seed documents call it as a function of this module; it belongs to the class above.
UPWARD = {("fitkit.checkpointing.loading", "fitkit.nn_handler")}
MOST_FILES_AT_THE_ROOT = 6

SPEAKS_TO_OTHER_PROCESSES = {
    "distributed/group_world.py",
    "distributed/dtensor.py",
    "distributed/fsdp.py",
    "distributed/gathered_model.py",
    "distributed/distributed_world.py",
    "distributed/join_world.py",
    "distributed/process_group.py",
    "distributed/rendezvous_store.py",
    "distributed/strategy.py",
    "distributed/mesh.py",
    "checkpointing/storage/torch_metadata.py",
}
# May be imported inside functions: extras, what takes a second, and the one upward arrow.
OPTIONAL = {"matplotlib", "mlflow", "onnxscript", "safetensors", "scipy", "tensorboard", "wandb"}
LATE = {
    "torch.distributed.tensor.DTensor",
    "fitkit.checkpointing.storage.torch_metadata",
    "fitkit.distributed.fsdp.FSDPParallel",
}
LATE_ANYWHERE = {
    *LATE,
    "fitkit.nn_handler.NNHandler",
    "fitkit.cli.all_commands.run",
    # what lists of checkpoints do without
    "fitkit.checkpointing.storage.single_or_sharded",
    "tqdm.tqdm",
}

MOST_LINES = 260
# The facade documents every argument of every verb; the other is one idea that reads in one go.
MOST_LINES_OF = {
    "nn_handler.py": 860,
    "callbacks/model_checkpoint.py": 280,
    "core/callback.py": 290,
    "handler/state_dict.py": 275,  # a table with an entry for each key of a checkpoint
    "callbacks/progress_bar.py": 275,
    "checkpointing/save_queue/save_queue.py": 270,
    "testing.py": 300,
    "engine/loop.py": 160,
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


def imports(tree: ast.AST):
    """Dotted names of all that is imported, inside functions and for type checkers as well."""
    for node in ast.walk(tree):
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


# The tests below look at each file a dozen times.
@cache
def nodes_of(name: str) -> list[ast.AST]:
    return list(ast.walk(TREES[name]))


@cache
def attributes_of(name: str) -> frozenset[str]:
    return frozenset(ast.unparse(n) for n in nodes_of(name) if isinstance(n, ast.Attribute))


@cache
def modules_imported_by(name: str) -> frozenset[str]:
    return frozenset(our_modules(TREES[name]))


def room_of(module: str) -> str:
    """The room of ``fitkit.a.b.c``: ``a/b`` where that is a room, else ``a``; ``.`` at the root."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    if "/".join(parts[:2]) in LEVELS:
        return "/".join(parts[:2])
    is_at_root = len(parts) == 1 and parts[0] not in LEVELS
    return "." if is_at_root else parts[0]


def arrows():
    """Every import of one of our modules by another."""
    for module, name in MODULES.items():
        for other in modules_imported_by(name) - {module, "fitkit", "fitkit.version"}:
            yield module, other


def test_what_takes_a_second_is_imported_late_only():
    late = {name for name in LATE if name.startswith("fitkit")}
    for name, tree in TREES.items():
        if module_of(name) not in {dotted.rpartition(".")[0] for dotted in late} | late:
            top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert not {dotted for node in top for dotted in imports(node)} & late, name


def test_every_folder_is_a_room():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in FILES} - {"."}
    assert folders == {room for room in LEVELS if (ROOT / room).is_dir()} - {"."}


def test_the_root_holds_few_files():
    at_root = [name for name in TREES if "/" not in name]
    assert len(at_root) <= MOST_FILES_AT_THE_ROOT, at_root


@by_file
def test_imports_point_down(name):
    module = module_of(name)
    own = room_of(module)
    others = modules_imported_by(name) - {module, "fitkit", "fitkit.version"}
    reached = {other for other in others if room_of(other) != own}
    upward = {other for other in reached if LEVELS[room_of(other)] >= LEVELS[own]}
    assert {(module, other) for other in upward} <= UPWARD


def test_every_exception_is_needed():
    assert set(arrows()) >= UPWARD


@by_file
def test_nothing_imports_the_command_line(name):
    reached = {room_of(module) for module in modules_imported_by(name)}
    assert "cli" not in reached or name == "__main__.py" or name.startswith("cli/")


def cycles(graph: dict[str, set[str]]):
    """One path for each cycle that a walk meets."""
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]):
        if node in path:
            yield (*path[path.index(node) :], node)
            return
        if node not in done:
            for other in sorted(graph.get(node, ())):
                yield from visit(other, (*path, node))
            done.add(node)

    for node in sorted(graph):
        yield from visit(node, ())


def test_there_are_no_cycles_of_files():
    """Imports for type checkers and those inside functions count."""
    graph: dict[str, set[str]] = {}
    for module, other in arrows():
        if not MODULES[other].endswith("__init__.py"):
            graph.setdefault(module, set()).add(other)
    assert not list(cycles(graph))


def test_there_are_no_cycles_of_rooms():
    graph: dict[str, set[str]] = {}
    for module, other in arrows():
        if room_of(module) != room_of(other) and (module, other) not in UPWARD:
            graph.setdefault(room_of(module), set()).add(room_of(other))
    assert not list(cycles(graph))


def test_a_cycle_is_found():
    assert list(cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [("b", "c", "b")]
    assert not list(cycles({"a": {"b", "c"}, "b": {"c"}}))


@by_file
def test_few_files_speak_to_other_ranks(name):
    if name in SPEAKS_TO_OTHER_PROCESSES:
        return
    assert not [dotted for dotted in imports(TREES[name]) if dotted.startswith("torch.distributed")]
    spoken = attributes_of(name)
    assert not [text for text in spoken if text.startswith(("torch.distributed", "dist."))]


@by_file
def test_only_the_runtime_knows_devices_and_number_formats(name):
    if name.startswith(("runtime/", "distributed/")):
        return
    spoken = attributes_of(name)
    machine = ("torch.cuda", "torch.amp", "torch.accelerator", "torch.autocast")
    assert not [text for text in spoken if text.startswith(machine)]


@by_file
def test_imports_stand_at_the_top(name):
    for function in nodes_of(name):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late = {dotted.split(".")[0] for dotted in set(imports(function)) - LATE_ANYWHERE}
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
    for function in nodes_of(name):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert length_of(function) <= MOST_LINES_OF_A_FUNCTION, f"{name}: {function.name}"


@by_file
def test_the_library_neither_prints_nor_asserts(name):
    for node in nodes_of(name):
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
    for node in nodes_of(name):
        if isinstance(node, ast.ExceptHandler) and is_broad(node):
            assert keeps_the_error(node), f"{name}:{node.lineno}"


@by_file
def test_nothing_is_forwarded_behind_the_reader_s_back(name):
    names = [node.name for node in nodes_of(name) if isinstance(node, ast.FunctionDef)]
    assert "__getattr__" not in names or name == "__init__.py"  # imports the public names
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
    for node in nodes_of(name):
        if isinstance(node, ast.ClassDef):
            for attribute, value in literals(node):
                shared = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp))
                assert not shared, f"{name}: {node.name}.{attribute}"


@by_file
def test_arguments_have_no_mutable_defaults(name):
    for node in nodes_of(name):
        if isinstance(node, ast.arguments):
            defaults = [*node.defaults, *node.kw_defaults]
            assert not any(isinstance(d, (ast.List, ast.Dict, ast.Set)) for d in defaults)


# ---- the rules can fail -------------------------------------------------------------------------


def test_the_reader_sees_imports_inside_functions_and_those_for_types():
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from fitkit.engine import loop
def f():
    from fitkit.core import tree
"""
    tree = ast.parse(source)
    assert set(imports(tree)) == {"typing.TYPE_CHECKING", "fitkit.engine.loop", "fitkit.core.tree"}
    assert our_modules(tree) == {"fitkit.core.tree", "fitkit.engine.loop"}
    assert room_of("fitkit.core.tree") == room_of("fitkit.core") == "core"
    assert room_of("fitkit.checkpointing.storage.safe_load") == "checkpointing/storage"
    assert room_of("fitkit.checkpointing.saving") == "checkpointing"
    assert room_of("fitkit.nn_handler") == "."
    assert room_of("fitkit.testing") == "testing"


@pytest.mark.parametrize(
    ("body", "expected"),
    [("pass", False), ("raise", True), ("errors.append(error)", True), ("log()", False)],
)
def test_the_reader_knows_a_swallowed_error(body, expected):
    tree = ast.parse(f"try:\n    f()\nexcept Exception as error:\n    {body}\n")
    (handler,) = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    assert is_broad(handler)
    assert keeps_the_error(handler) is expected
