"""What the worker does before it has a Keras; the rest is tested with real ones."""

import sys

import pytest

from export.worker import keras_worker


def test_extras_cannot_be_imported_while_keras_is_and_can_be_afterwards(monkeypatch):
    monkeypatch.setattr(keras_worker, "_NOT_NEEDED", ("sndhdr_of_nobody", "json"))
    was = sys.modules["json"]
    with keras_worker.without_extras():
        with pytest.raises(ModuleNotFoundError, match="import of sndhdr_of_nobody halted"):
            __import__("sndhdr_of_nobody")
        assert sys.modules["json"] is was  # what is there stays
    assert "sndhdr_of_nobody" not in sys.modules
    assert sys.modules["json"] is was
