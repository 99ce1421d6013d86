"""The examples of the page on networks run as they stand."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "si_jax" / "networks" / "README.md"
EXAMPLES = re.findall(
    r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M
)


def test_there_is_one_for_each_framework():
    assert [title for title, _ in EXAMPLES] == [
        "Flax Linen",
        "Flax NNX",
        "Keras 3",
        "Keras applications, from images to verdicts",
        "Equinox",
        "PyTorch",
        "A function",
        "CLIP, SigLIP: an image encoder and class names",
    ]


@pytest.mark.parametrize("example", [pytest.param(code, id=title) for title, code in EXAMPLES])
def test_the_example_runs(example, capsys):
    for name, extra in {"keras": "keras", "equinox": "equinox", "torch": "torchax"}.items():
        if f"import {name}" in example:
            pytest.importorskip(extra)
    exec(compile(example, str(PAGE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.startswith("[")
