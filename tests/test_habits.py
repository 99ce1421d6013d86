"""Habits that hold in every module, read from the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "si_jax").rglob("*.py")}
SCRIPTS = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "scripts").rglob("*.py")}
TREES = {name: ast.parse(path.read_text()) for name, path in sorted((LIBRARY | SCRIPTS).items())}
COMMANDS = [name for name in TREES if name.startswith(("si_jax/commands/", "scripts/"))]

THEIRS = {"_flatten_layers", "_trace", "_pytree"}
"""Private names of libraries that offer no public one: a layer's layers, an array's trace,
PyTorch's trees."""


def nodes(name: str, kind: type) -> list:
    return [node for node in ast.walk(TREES[name]) if isinstance(node, kind)]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_what_is_private_stays_in_its_module():
    for name in TREES:
        imported = [alias.name for node in nodes(name, ast.ImportFrom) for alias in node.names]
        assert not {alias for alias in imported if is_private(alias)} - THEIRS, name
        attributes = nodes(name, ast.Attribute)
        own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in nodes(name, ast.FunctionDef | ast.ClassDef)}
        own |= {n.target.id for n in nodes(name, ast.AnnAssign) if isinstance(n.target, ast.Name)}
        used = {node.attr for node in attributes if is_private(node.attr)}
        assert not used - own - THEIRS, f"{name} uses private names of other modules"


def test_no_cache_is_popped():
    for name in TREES:
        for node in nodes(name, ast.Attribute):
            assert node.attr != "__dict__", f"{name}, line {node.lineno}"


def test_errors_of_the_library_name_arguments():
    for name in set(TREES) - {*COMMANDS, "si_jax/cli.py"}:
        for node in nodes(name, ast.Raise):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            flags = [text for text in texts if re.search(r"(?<!\w)--\w", str(text))]
            assert not flags, f"{name}, line {node.lineno}: {flags}"


def test_ruff_has_one_version():
    pinned = re.search(r"ruff==(\S+)", (ROOT / "setup.cfg").read_text())
    hook = re.search(r"rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pinned and hook and pinned[1] == hook[1]
