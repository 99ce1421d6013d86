"""The Python of this package's README runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "si_jax" / "decision" / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example_runs(index, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(EXAMPLES[index], f"README example {index}", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert [" True " in out, "drift at image" in out, "[False  True]" in out][index]


def test_there_are_examples():
    assert len(EXAMPLES) == 3
