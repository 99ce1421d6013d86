"""The pages of CONTRIBUTING.md: few files to touch, and an example that adds its thing."""

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

PAGES = {
    "A detector": (2, r"feature-norm +\d+\.\d"),
    "An architecture": (2, r"\['norm0', 'norm1'\] \[-"),
    "A data set": (2, r"stripes"),
    "A metric": (1, r"FPR99, in 1 % of digits"),
    "Another framework": (1, r"chain Chain, 19 parameters.*'classify'\) \[-0"),
}
"""Section -> the most files that it may take, and what its example prints."""


def test_there_is_a_page_for_each_thing_that_is_added():
    assert list(SECTIONS) == [*PAGES, "Rules"]


@pytest.mark.parametrize("name", PAGES)
def test_few_files_are_touched(name):
    files = re.search(r"^Files: (.*)$", SECTIONS[name], re.MULTILINE)[1].split(", ")
    assert len(files) <= PAGES[name][0]
    for file in files:
        path = file.strip("`")
        assert path == "one of your own" or "/NAME.py" in path or (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", PAGES)
def test_the_example_adds_its_thing_and_uses_it(name, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    module = types.ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)
    monkeypatch.chdir(ROOT)
    exec(compile(example, f"{name}, example", "exec"), module.__dict__)
    assert re.search(PAGES[name][1], capsys.readouterr().out)
