"""One finished run, what is read of it, and its page; helpers lie beside the tests."""

import sys
from pathlib import Path

import pytest

from si_jax.reporting import html, runs

sys.path.insert(0, str(Path(__file__).parent))

from made_runs import make_run


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="session")
def run(directory):
    return runs.load(directory)


@pytest.fixture(scope="session")
def page(run, tmp_path_factory):
    return html.write(run, tmp_path_factory.mktemp("page")).read_text()
