"""A Python function that predicts: one file, and whatever files it reads."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from modelkeep.core.errors import Invalid, ModelkeepError, UserCodeFailed
from modelkeep.formats import manifest as manifests
from modelkeep.formats import trusting
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import asked, failed, named
from modelkeep.formats.manifest import Manifest
from modelkeep.formats.outputs import records
from modelkeep.formats.signature import Signature


class FunctionModel:
    """A file that defines ``predict``.

    ``predict(columns)`` gets a dict of equally long NumPy arrays by input name, and returns arrays by output
    name, or one array. If the file defines ``load(folder)``, that is called once, with the folder of the package's
    files, before the first prediction.

    Args:
        files: The package's.
        manifest: Its manifest; ``model`` is the file's path.
        signature: Of the package.
        trusted: Digests.

    Raises:
        Refused: The digest of the package is not trusted.
        Invalid: The file defines no ``predict``.
        UserCodeFailed: Importing the file or ``load`` raised.
    """

    def __init__(
        self, files: Mapping[str, bytes], manifest: Manifest, signature: Signature, trusted: Sequence[str]
    ) -> None:
        trusting.trust(files, trusted, f"the code in {manifest.model}")
        folder = trusting.on_disk(files, manifest, self)
        module = _imported(manifests.take(files, manifest, manifest.model), folder / manifest.model)
        function = getattr(module, "predict", None)
        if not callable(function):
            raise Invalid("defines no function 'predict'", path=manifest.model)
        self._function: Callable[[dict[str, Any]], Any] = function
        load = getattr(module, "load", None)
        if callable(load):
            _run(lambda: load(folder), f"load in {manifest.model}")
        self.signature = signature
        self.layout = Layout(signature)

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name to arrays by output name.

        Raises:
            Unfit: The function refuses these rows.
            UserCodeFailed: It raised something else.
        """
        batch = self.layout.pack(columns)
        try:
            found = asked("the function", lambda: self._function(dict(batch)))
            return records(named(found, batch.rows))
        except Exception as error:  # what it gave is nothing that can be read
            raise failed("the function", error) from error


class _Verified(importlib.abc.InspectLoader):
    """Imports the bytes it was given and nothing that lies beside them, such as compiled files."""

    def __init__(self, source: bytes, path: Path) -> None:
        self._source = source
        self._path = path

    def get_source(self, fullname: str) -> str:
        return self._source.decode()

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, str(self._path))


def _imported(source: bytes, path: Path) -> ModuleType:
    name = f"modelkeep_function_{abs(hash(str(path)))}"
    loader = _Verified(source, path)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # so that its dataclasses can be made
    _run(lambda: loader.exec_module(module), path.name)
    return module


def _run(what: Callable[[], Any], name: str) -> None:
    try:
        what()
    except ModelkeepError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserCodeFailed(f"{name} raised", traceback=f"{type(error).__name__}: {error}") from error
