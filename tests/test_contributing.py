"""The pages of CONTRIBUTING.md: few files to touch, each with an example.

The examples are run in `test_readme.py`, and what they add is taken away in `conftest.py`.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

MOST_FILES = {
    "A detector": 2,
    "An architecture": 2,
    "A data set": 2,
    "A metric": 1,
    "Another framework": 1,
}


def test_there_is_a_page_for_each_thing_that_is_added():
    assert list(SECTIONS) == [*MOST_FILES, "Rules"]


@pytest.mark.parametrize("name", MOST_FILES)
def test_few_files_are_touched(name):
    files = re.search(r"^Files: (.*)$", SECTIONS[name], re.MULTILINE)[1].split(", ")
    assert len(files) <= MOST_FILES[name]
    for file in files:
        path = file.strip("`")
        assert path == "one of your own" or "/NAME.py" in path or (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", MOST_FILES)
def test_there_is_an_example(name):
    assert len(re.findall(r"^```python$", SECTIONS[name], re.MULTILINE)) == 1
