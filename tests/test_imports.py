"""Imports run one way: a module imports from its own package or from those further down.

And other habits that hold in every module, read from the code.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
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
CORE = ("activation", "batching", "cli", "integration", "model", "splitting", "support", "taps")
"""The modules at the root of the package; beside `benchmarking`, the only ones."""

LEVEL = {name: len(LAYERS) - row for row, names in enumerate(LAYERS) for name in names}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = [*(ROOT / "si_jax").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
MODULES = {dotted(file): ast.parse(file.read_text()) for file in sorted(FILES)}


def nodes(module: str, kind: type) -> list:
    return [node for node in ast.walk(MODULES[module]) if isinstance(node, kind)]


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
    names = {alias.name for node in nodes(module, ast.Import) for alias in node.names}
    for node in nodes(module, ast.ImportFrom):
        assert not node.level, f"{module}: imports are absolute"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names |= {name if name in MODULES else node.module for name in inner}
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
    TopologicalSorter({module: imports(module) & MODULES.keys() for module in MODULES}).prepare()


def test_the_root_holds_the_core_and_the_two_steps():
    lying = {path.stem for path in (ROOT / "si_jax").glob("*.py")} - {"__init__", "__main__"}
    assert lying == {*CORE, "benchmarking"}


def test_every_package_says_what_flows():
    for path in (ROOT / "si_jax").glob("*/__init__.py"):
        text = ast.get_docstring(MODULES[f"si_jax.{path.parent.name}"]) or ""
        assert len(text) > 100, f"{path.parent.name}: say what flows in and out"


def test_public_names_are_what_type_checkers_are_told():
    told = {}
    for node in nodes("si_jax", ast.ImportFrom):
        if node.module.startswith("si_jax"):
            told |= {alias.asname: (node.module, alias.name) for alias in node.names}
    assert told.keys() == set(si_jax.__all__)
    for name, (module, inner) in told.items():
        value = getattr(si_jax, name)
        if inspect.ismodule(value):
            assert value.__name__ == f"{module}.{inner}", name
        else:
            assert value is getattr(importlib.import_module(module), inner), name


THEIRS = {"_flatten_layers", "_trace", "_pytree", "_replace"}
"""Names with an underscore that have no other: a layer's layers, an array's trace, PyTorch's trees,
what changes a named tuple."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_what_is_private_stays_in_its_module():
    for name in MODULES:
        imported = [alias.name for node in nodes(name, ast.ImportFrom) for alias in node.names]
        assert not {alias for alias in imported if is_private(alias)} - THEIRS, name
        attributes = nodes(name, ast.Attribute)
        own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in nodes(name, ast.FunctionDef | ast.ClassDef)}
        own |= {n.target.id for n in nodes(name, ast.AnnAssign) if isinstance(n.target, ast.Name)}
        used = {node.attr for node in attributes if is_private(node.attr)}
        assert not used - own - THEIRS, f"{name} uses private names of other modules"


def test_no_cache_is_popped():
    for name in MODULES:
        for node in nodes(name, ast.Attribute):
            assert node.attr != "__dict__", f"{name}, line {node.lineno}"


def test_errors_of_the_library_name_arguments():
    library = {name for name in MODULES if package(name) not in ("commands", "scripts")}
    for name in library - {"si_jax.cli"}:
        for node in nodes(name, ast.Raise):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            flags = [text for text in texts if re.search(r"(?<!\w)--\w", str(text))]
            assert not flags, f"{name}, line {node.lineno}: {flags}"


def test_ruff_has_one_version():
    pinned = re.search(r"ruff==(\S+)", (ROOT / "setup.cfg").read_text())
    hook = re.search(r"rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pinned and hook and pinned[1] == hook[1]


NEWCOMER = """
import sys, time
start = time.perf_counter()
import si_jax
assert time.perf_counter() - start < 0.1
assert dir(si_jax) == sorted([*si_jax.__all__, "__version__"]), dir(si_jax)
import si_jax.commands
si_jax.commands.dispatch([])
assert "jax" not in sys.modules  # help needs no more
assert si_jax.data.digits.load("test")[0].shape[0] == 597
for arguments in (("msp", "digits"), (si_jax.load_model("digits"), "msp")):
    try:
        si_jax.make_detector(*arguments)
    except ValueError as error:
        assert "takes a detector's name, then a model" in str(error)
    else:
        raise AssertionError(arguments)
import si_jax.benchmarking
assert not {"matplotlib", "torch", "keras", "equinox"} & sys.modules.keys()
import si_jax.reporting.figures
assert "matplotlib.pyplot" not in sys.modules
"""


def test_what_a_newcomer_sees():
    """In a fresh process: public names, data at hand, sentences, and no import before its time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", NEWCOMER], check=True, env=environment)
