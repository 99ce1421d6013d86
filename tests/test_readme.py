"""The pages: their Python runs, their links lead somewhere, and what they list is so."""

import re
from pathlib import Path

import pytest

from si_jax.data.datasets import DATASETS

ROOT = Path(__file__).parents[1]
DATA = (ROOT / "si_jax/data/README.md").read_text()
FOLDERS = (ROOT, *(ROOT / name for name in ("si_jax", "scripts", "checkpoints", "tests")))
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text()
    for folder in FOLDERS
    for page in sorted(folder.glob("*.md" if folder == ROOT else "**/*.md"))
}
EXAMPLES = {
    f"{name}, example {number}": example
    for name, text in PAGES.items()
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL), start=1)
}


SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGES["CONTRIBUTING.md"], re.MULTILINE | re.DOTALL)
)
MOST_FILES = {
    "A detector": 2,
    "An architecture": 2,
    "A data set": 2,
    "A metric": 1,
    "Another framework": 1,
}
"""What is added -> how many files that touches at most."""

PRINTED = {
    "CONTRIBUTING.md, example 1": "feature-norm",
    "CONTRIBUTING.md, example 2": "['norm0', 'norm1'] [-",
    "CONTRIBUTING.md, example 3": "stripes",
    "CONTRIBUTING.md, example 4": "FPR99, in 1 % of digits",
    "CONTRIBUTING.md, example 5": "chain Chain, 19 parameters, images 8x8x3, head='classify') [-0",
    "si_jax/decision/README.md, example 1": " True ",
    "si_jax/decision/README.md, example 2": "drift at image",
    "si_jax/decision/README.md, example 3": "[False  True]",
}
"""Example -> what it prints, among other things."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, monkeypatch, capsys):
    for package in ("keras", "equinox", "torch"):
        if re.search(rf"^(import|from) .*\b{package}\b", EXAMPLES[name], re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(ROOT)
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": "readme"})
    assert PRINTED.get(name, "") in capsys.readouterr().out


def test_the_main_page_takes_five_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 170
    assert {"README.md, example 1", *PRINTED} <= EXAMPLES.keys()


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http://", "https://")):
                assert (ROOT / name).parent.joinpath(target).exists(), (name, target)


def test_every_set_and_folder_is_named():
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", DATA, re.MULTILINE)}
    for spec in DATASETS.values():
        for source in spec.sources:
            first = source[0] if isinstance(source, tuple) else source
            name = first if isinstance(first, str) else first.name
            assert f"`{name}`" in rows[spec.name], (spec.name, name)


def test_few_files_are_touched_to_add_something_and_there_is_an_example():
    assert list(SECTIONS) == [*MOST_FILES, "Rules"]
    for name, most in MOST_FILES.items():
        assert SECTIONS[name].count("```python\n") == 1, name
        files = re.search(r"^Files: (.*)$", SECTIONS[name], re.MULTILINE)[1].split(", ")
        assert len(files) <= most, name
        for file in files:
            path = file.strip("`")
            assert path == "one of your own" or "/NAME.py" in path or (ROOT / path).is_file(), path
