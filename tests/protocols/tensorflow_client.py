"""Modules of TensorFlow Serving's client library, without what ``import tensorflow`` brings beside them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class Client:
    """A module of the client library, imported when first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what pytest asks of everything in a module
            raise AttributeError(name)
        return getattr(load(self._name), name)


def load(name: str) -> ModuleType:
    """Import a module of the package, but not the package itself: Keras and all that, eight seconds."""
    if "tensorflow" in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    package = sys.modules["tensorflow"] = ModuleType("tensorflow")
    package.__path__ = spec.submodule_search_locations
    package.__spec__ = spec
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["tensorflow"]  # who wants all of it imports it
