"""The house stays in order: the rank of every module, no circles, and how long files and functions may be."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jllama"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 250, 50

# From the ground up. A room imports from lower floors alone, never from a neighbour on its own.
RANKS = (
    ("jllama.errors",),
    ("jllama.files", "jllama.settings"),
    ("jllama.layers", "jllama.text", "jllama.machine"),
    ("jllama.families", "jllama.hub", "jllama.grammar"),
    ("jllama.config", "jllama.tools"),
    ("jllama.model",),
    ("jllama.sharding",),
    ("jllama.kernels",),
    ("jllama.checkpoint", "jllama.engine"),
    ("jllama.loading", "jllama.answer"),
    ("jllama.session", "jllama.batching"),
    ("jllama.api", "jllama.chat"),
    ("jllama.server",),
    ("jllama.cli",),
    ("jllama.__main__",),
    ("scripts",),
)
FLOOR = {room: floor for floor, rooms in enumerate(RANKS) for room in rooms}
BY_NAME = ("jllama.cli.main", "jllama.kernels.gpu")  # modules that import what a word names
TEXT_ONLY = (
    *("jllama.text", "jllama.tools", "jllama.grammar", "jllama.hub", "jllama.files"),
    "jllama.families.tensor_names",
    "jllama.machine.native",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(path: Path, *, lazy_too: bool = True) -> set[str]:
    """Absolute names that a file imports: `from a import b` is both `a` and `a.b`."""
    names = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), lazy_too):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _nodes(tree: ast.AST, lazy_too: bool):
    """All statements, or those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr) or (
            not lazy_too and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, lazy_too)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


PATHS = {module_name(path): path for path in MODULES}
ALL = {module_name(path): path for path in MODULES + SCRIPTS}


def reached(start: str) -> set[str]:
    """Every module that importing `start` imports in turn, at the top level of each."""
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        path = PATHS.get(name)
        todo += [other for other in (imported(path, lazy_too=False) if path else ()) if other not in seen]
    return seen


def room(module: str) -> str:
    """`jllama.text` of `jllama.text.stop`, `scripts` of any script."""
    return ".".join(module.split(".")[: 1 if within(module, "scripts") else 2])


def arrows(module: str) -> set[str]:
    """The modules of this project that a module imports, wherever in it it does."""
    return {name for name in imported(ALL[module]) if name in ALL and name != "jllama"}


@pytest.mark.parametrize("module", [name for name in ALL if name != "jllama"])
def test_every_module_has_a_rank_and_imports_downwards(module):
    assert room(module) in FLOOR, f"{room(module)} has no rank"
    own = FLOOR[room(module)]
    bad = {name for name in arrows(module) if room(name) != room(module) and FLOOR[room(name)] >= own}
    assert not bad, f"{module} imports {sorted(bad)}, which does not stand below it"


def test_nobody_comes_in_by_the_front_door():
    """`jllama.load` and `import_module("jllama.api")` would reach upwards unseen; a version is no module."""
    for path in MODULES:
        if path.name == "__init__.py" and path.parent == PACKAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert "jllama" not in [name.name for name in node.names], path
            if isinstance(node, ast.ImportFrom) and node.module == "jllama":
                taken = {f"jllama.{name.name}" for name in node.names}
                assert taken <= {*ALL, "jllama.__version__"}, path
            if isinstance(node, ast.Attribute) and node.attr == "import_module":
                assert module_name(path) in BY_NAME, path


def test_there_are_no_circles():
    # That a module imports its own package means its door alone, which may import what stands in it.
    graph = {module: {name for name in arrows(module) if not within(module, name)} for module in ALL}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_top_has_few_rooms():
    rooms = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(rooms) <= 26, sorted(path.name for path in rooms)


def test_layers_know_nothing_but_jax_numpy_and_each_other():
    allowed = (
        "jax",
        "numpy",
        "jllama.layers",
        "jllama.kernels",
        "jllama.errors",
        "dataclasses",
        "math",
        "typing",
        "functools",
        "sys",
        "types",
    )
    for module in (m for m in ALL if within(m, "jllama.layers")):
        foreign = {
            n for n in imported(ALL[module]) if not any(within(n, ok) for ok in (*allowed, "collections"))
        }
        assert foreign <= {"jllama"}, f"{module} imports {sorted(foreign)}"


def test_layers_reach_no_configuration_through_a_kernel():
    todo, seen = [m for m in ALL if within(m, "jllama.layers")], set()
    while todo:
        seen.add(module := todo.pop())
        todo += [name for name in imported(ALL[module]) if name in ALL and name not in seen]
    assert not {name for name in seen if within(name, "jllama.config") or within(name, "jllama.model")}


@pytest.mark.parametrize("module", [name for name in ALL if any(within(name, start) for start in TEXT_ONLY)])
def test_text_and_files_need_no_jax(module):
    found = {name for name in reached(module) if within(name, "jax") or within(name, "jaxlib")}
    assert not found, f"importing {module} imports {sorted(found)}"


def test_importing_the_package_needs_no_jax():
    """Scripts read their flags before JAX reads its settings."""
    assert not {name for name in reached("jllama") if within(name, "jax")}


def test_absl_is_for_the_command_line_alone():
    users = {room(m) for m, path in ALL.items() if any(within(n, "absl") for n in imported(path))}
    assert users == {"jllama.cli", "scripts"}


def test_never_torch_or_transformers():
    banned = ("torch", "transformers", "flax", "tensorflow")
    elsewhere = "scripts.cpu_comparison.transformers_side"  # runs in another Python
    for module, path in ALL.items():
        names = imported(path)
        found = {n for n in names if any(within(n, other) for other in banned)}
        assert module == elsewhere or not found, module


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=module_name)
def test_sizes(path):
    source = path.read_text(encoding="utf-8")
    if not within(module_name(path), "jllama.kernels"):
        assert len(source.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


def test_this_test_sees_an_arrow_that_runs_back(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("import jax\ndef f():\n    from jllama import engine\n")
    assert imported(file) == {"jax", "jllama", "jllama.engine"}
    assert imported(file, lazy_too=False) == {"jax"}
