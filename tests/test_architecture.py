"""Who may import whom, what `import whence` may load, and that public names are sorted."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import whence

SOURCE = Path(whence.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

CORE = {"data", "tasks", "gradients", "curvature", "features", "scores", "methods"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "data": set(),
    "notebook": set(),
    "engines": set(),
    "tasks": {"data"},
    "gradients": {"tasks", "data"},
    "curvature": {"gradients", "tasks", "data"},
    "features": {"data"},
    "scores": {"data", "notebook"},
    "methods": (CORE - {"methods"}) | {"index", "notebook"},
    "index": {"features", "scores", "data"},
    "pipeline": CORE | {"engines", "index"},
    "uses": {"scores", "data", "tasks", "gradients", "curvature", "notebook"},
    "evaluate": {"scores", "data", "tasks", "methods", "uses", "pipeline", "notebook"},
    "report": {"scores", "data", "uses", "evaluate"},
    "explorer": {"report", "index", "uses", "tasks", "pipeline", "data", "gradients", "methods", "audit"},
}
ALLOWED["audit"] = (set(ALLOWED) | {"audit"}) - {"explorer"}
ALLOWED["cli"] = set(ALLOWED) | {"cli", "whence"}  # "whence" is the package itself, for its version
ALLOWED["whence"] = set(ALLOWED) - {"report", "explorer", "audit", "cli"}
ALLOWED["__main__"] = {"cli"}

HEAVY = [
    "plotly", "jinja2", "typer", "starlette", "fastapi", "uvicorn", "ray", "transformers", "datasets", "peft",
    "torchvision", "matplotlib", "IPython", "faiss", "xgboost",
]  # fmt: skip
OPTIONAL = {"datasets", "transformers", "peft", "ray", "faiss", "plotly"}


def room_of(module: str) -> str:
    """Return the room of a dotted module name inside the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "whence"


def module_of(path: Path) -> str:
    parts = ["whence", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Return the dotted names of everything a file imports, anywhere in it; relative imports resolved."""
    found: set[str] = set()
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            rooms = {f"whence.{alias.name}" for alias in node.names} if base == "whence" else {base}
            found.update(name if room_of(name) in ALLOWED else base for name in rooms)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_follow_the_table(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in ALLOWED, f"{path.name} lies in a room that the table does not know"
    inside = {name for name in imports_of(path) if name.split(".")[0] == "whence"}
    forbidden = {name for name in inside if room_of(name) not in ALLOWED[room] | {room, "errors"}}
    assert not forbidden, f"{room}/ must not import {sorted(forbidden)}"


def test_the_table_has_no_cycles() -> None:
    below: dict[str, int] = {}

    def depth(room: str, path: tuple[str, ...]) -> int:
        assert room not in path, f"cycle: {[*path, room]}"
        if room not in below:
            others = ALLOWED[room] - {room, "whence"}
            below[room] = 1 + max((depth(other, (*path, room)) for other in others), default=0)
        return below[room]

    for room in ALLOWED:
        depth(room, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_are_at_the_top(path: Path) -> None:
    """Functions import nothing but optional extras."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                hidden = {name.split(".")[0] for name in names} - OPTIONAL
                assert not hidden, f"{path.name}:{node.lineno} imports {sorted(hidden)} inside a function"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_nothing_unpickles(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "torchvision"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe = keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False"
            assert safe, f"{path.name}:{node.lineno} may unpickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_global_random_states_are_left_alone(path: Path) -> None:
    """Only a recipe seeds the global generator, inside a block that restores it."""
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }  # fmt: skip
    bad = {call for call in calls if call.startswith(("np.random.", "numpy.random.", "random."))}
    bad -= {"np.random.default_rng", "np.random.Generator", "np.random.SeedSequence", "np.random.PCG64"}
    seeded = {"torch.manual_seed", "torch.set_rng_state", "torch.seed"} & calls
    assert not bad
    assert not seeded or "torch.random.fork_rng" in path.read_text(encoding="utf-8")


def test_files_are_one_concept_long() -> None:
    long = {module_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 450}


def test_importing_loads_nothing_heavy() -> None:
    program = f"import sys, whence; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def packages() -> list[str]:
    rooms = sorted({room_of(module_of(path)) for path in FILES} - {"whence", "cli", "__main__"})
    return ["whence", *(f"whence.{room}" for room in rooms)]


@pytest.mark.parametrize("name", packages())
def test_public_names_are_there_and_sorted(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert all(hasattr(module, public) for public in names)
    constants = sorted(n for n in names if n.isupper())
    classes = sorted(n for n in names if n[0].isupper() and not n.isupper())
    rest = sorted(n for n in names if not n[0].isupper())
    assert names == [*constants, *classes, *rest], f"__all__ of {name} must be sorted"
    assert len(set(names)) == len(names)
