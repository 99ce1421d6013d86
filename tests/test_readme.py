"""The README's Python runs, and the data's table of folders is the catalogue's."""

import re
from pathlib import Path

import pytest

from si_jax.data import catalogue

README = (Path(__file__).parents[1] / "README.md").read_text()
DATA = (Path(__file__).parents[1] / "si_jax/data/README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example_runs(index, capsys):
    exec(compile(EXAMPLES[index], f"README example {index}", "exec"), {"__name__": "readme"})


def test_there_are_examples():
    assert len(EXAMPLES) == 3


def test_every_set_and_folder_is_named():
    entries = [v for v in vars(catalogue).values() if isinstance(v, catalogue.SetEntry)]
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", DATA, re.MULTILINE)}
    for entry in entries:
        for place in entry.places:
            name = place.path if isinstance(place, catalogue.Folder) else place.name
            assert f"`{name}`" in rows[entry.name], (entry.name, name)
