"""Imports run one way: a module imports from its own package or from those further down."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import si_jax

ROOT = Path(__file__).parents[1]

LAYERS = (  # from the top down; packages on one line may not import each other
    ("scripts",),
    ("commands",),
    ("benchmarking",),
    ("testing", "decision"),
    ("reporting", "training"),
    ("evaluation",),
    ("detectors",),
    ("weights",),
    ("core",),
    ("networks", "models", "data"),
    ("checks",),
)
CORE = (
    "activation",
    "batching",
    "cli",
    "integration",
    "model",
    "splitting",
    "support",
    "taps",
)
"""The modules at the root of the package; beside `benchmarking`, the only ones."""

LEVEL = {name: len(LAYERS) - row for row, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and the scripts."""
    files = [*(ROOT / "si_jax").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in sorted(names.items())}


MODULES = modules()


def package(module: str) -> str:
    """The package that a module belongs to; "public" for `si_jax` itself."""
    parts = module.split(".")
    if parts[0] == "scripts":
        return "scripts"
    if len(parts) == 1:
        return "public"
    return "core" if parts[1] in CORE else parts[1]


def imports(module: str) -> set[str]:
    """The project's modules that a module imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in MODULES else node.module)
    if package(module) == "scripts":  # they find each other without the folder's name
        names |= {f"scripts.{name}" for name in names} & MODULES.keys()
    return {name for name in names if name.split(".")[0] in ("si_jax", "scripts")}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "si_jax"])
def test_imports_run_downwards(module):
    mine = package(module)
    for name in imports(module):
        theirs = package(name)
        if theirs == "public":  # the short names: for whoever stands above the packages
            assert mine in ("scripts", "commands"), f"{module} imports {name}"
        elif theirs != mine:
            assert LEVEL[theirs] < LEVEL[mine], f"{module} ({mine}) imports {name} ({theirs})"


def test_no_circle():
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for name in imports(module) & MODULES.keys():
                visit(name, [*trail, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_the_root_holds_the_core_and_the_two_steps():
    lying = {path.stem for path in (ROOT / "si_jax").glob("*.py")} - {"__init__", "__main__"}
    assert lying == {*CORE, "benchmarking"}


def test_every_package_says_what_flows():
    for path in (ROOT / "si_jax").glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(text) > 100, f"{path.parent.name}: say what flows in and out"


def test_public_names_are_what_type_checkers_are_told():
    told = {}
    for node in ast.walk(ast.parse(MODULES["si_jax"].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("si_jax"):
            told |= {alias.asname: (node.module, alias.name) for alias in node.names}
    assert told.keys() == set(si_jax.__all__)
    for name, (module, inner) in told.items():
        value = getattr(si_jax, name)
        if inspect.ismodule(value):
            assert value.__name__ == f"{module}.{inner}", name
        else:
            assert value is getattr(importlib.import_module(module), inner), name


def test_what_a_newcomer_sees():
    """In a fresh process: public names alone, data at hand, quickly; and sentences for mistakes."""
    code = """
import sys, time
start = time.perf_counter()
import si_jax
assert time.perf_counter() - start < 0.1
assert dir(si_jax) == sorted([*si_jax.__all__, "__version__"]), dir(si_jax)
assert "jax" not in sys.modules
assert si_jax.data.digits.load("test")[0].shape[0] == 597
for arguments in (("msp", "digits"), (si_jax.load_model("digits"), "msp")):
    try:
        si_jax.make_detector(*arguments)
    except ValueError as error:
        assert "takes a detector's name, then a model" in str(error)
    else:
        raise AssertionError(arguments)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
