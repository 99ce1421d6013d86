"""The comparison with pytorch-ood, which is run by hand (`scripts/compare_published.py`)."""

import sys

import pytest

import compare_published
from si_jax.detectors import DETECTORS


def test_notes_are_of_detectors_and_pytorch_ood_is_asked_for(monkeypatch):
    assert set(compare_published.NOTES) <= set(DETECTORS)
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(ValueError, match='pip install "pytorch-ood"'):
        compare_published.main([])
