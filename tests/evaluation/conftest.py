"""A network that is quick to trace and to compile; the tests here share helpers beside them."""

import sys
from pathlib import Path

import pytest

from si_jax.evaluation import results
from si_jax.reporting import html
from si_jax.testing import small_model

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small():
    """A network of four classes on 8x8 images."""
    return small_model()


@pytest.fixture
def no_pictures(monkeypatch):
    """Evaluations without intervals and without a page, which take most of a small one's time."""
    monkeypatch.setattr(results, "intervals", lambda job, arrays: {})
    monkeypatch.setattr(html, "write", lambda run, directory: directory / "report.html")
