"""PyTorch programs: TorchScript and ``torch.export`` archives.

TorchScript is a language of its own with an interpreter of its own: loading it runs no Python.
https://docs.pytorch.org/docs/stable/jit.html
A ``.pt2`` archive holds a graph as JSON and its weights as raw tensors; what it pickles besides must be readable
by the unpickler that only makes tensors and plain containers, else its digest must be trusted. So must one with
other kinds of records: PyTorch compiles and runs those of AOTInductor, and unpacks them to any path they name.
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/export/pt2_archive.html
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

from modelkeep.core.errors import Damaged, MissingExtra
from modelkeep.formats.batch import Layout
from modelkeep.formats.feed import Feed, Feeder, asked, failed, named
from modelkeep.formats.signature import Signature

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

_CONFIG = re.compile(r"_config\.json$")
_RAW = ("weight_", "tensor_")
_SAFE = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(?:version|serialization_id)|\.format_version"
    r"|models/[\w.-]+\.json|data/(?:weights|constants|sample_inputs)/[\w.-]+|extra/[\w.-]+"
)
"""Records below the archive's root that PyTorch only reads."""

_PLAIN_TEXT = re.compile(rb"[\x20-\x7e\s]{0,1000}")


class TorchModel:
    """A program of tensors. Safe to call from several threads.

    Args:
        data: The file.
        form: ``torchscript`` or ``pt2``.
        signature: Of the package.
        feed: Which inputs make which tensor, in the order of the program's arguments.
        threads: Of one prediction.

    Raises:
        Damaged: PyTorch cannot load it.
    """

    def __init__(self, data: bytes, form: str, signature: Signature, feed: Feed, *, threads: int = 1) -> None:
        if threads:
            torch.set_num_threads(threads)
        try:
            if form == "torchscript":
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
                self._program = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            else:
                self._program = torch.export.load(io.BytesIO(_written_anew(data))).module()
        except Exception as error:  # it raises what its parts raise
            raise Damaged(f"PyTorch cannot load the program: {str(error)[:500]}") from error
        self.signature = signature
        self.layout = Layout(signature)
        self._feeder = Feeder(feed, self.layout.number_at, self.layout.string_at)

    def predict(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arrays by input name to arrays by output name.

        Raises:
            Unfit: The program refuses these rows.
            UserCodeFailed: It raised something else.
        """
        batch = self.layout.pack(columns)
        try:
            with torch.inference_mode():
                given = [torch.from_numpy(array) for array in self._feeder.tensors(batch)]
                return named(_arrays(asked("the program", lambda: self._program(*given))), batch.rows)
        except Exception as error:  # it raises what its parts raise
            raise failed("the program", error) from error


def _arrays(found: Any) -> Any:
    if isinstance(found, torch.Tensor):
        return found.numpy()
    if isinstance(found, Mapping):
        return {name: _arrays(value) for name, value in found.items()}
    return tuple(_arrays(value) for value in found)


def form_of(data: bytes) -> str:
    """``torchscript``, ``pt2``, or ``pickle`` for anything else that PyTorch writes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "pickle"
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return "torchscript"
    return "pt2" if any("/models/" in name and name.endswith(".json") for name in names) else "pickle"


def unsafe(data: bytes) -> list[str]:
    """Records of a ``.pt2`` archive whose loading could run code or write files. Empty: it is safe to load."""
    records = _records(data)
    raw = _raw(records)
    root = next(iter(records), "").partition("/")[0]
    return [
        name
        for name, content in records.items()
        if not (name.startswith(f"{root}/") and _SAFE.fullmatch(name[len(root) + 1 :]))
        or (name not in raw and not _harmless(content))
    ]


def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def _written_anew(data: bytes) -> bytes:
    """The same records in another archive: PyTorch, which reads archives its own way, sees what was looked at."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _records(data).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _raw(records: Mapping[str, bytes]) -> set[str]:
    """Records that are read as bare bytes of tensors."""
    raw: set[str] = set()
    other: set[str] = set()
    for name, content in records.items():
        said = _json(content) if _CONFIG.search(name) else None
        if not isinstance(said, dict) or not isinstance(said.get("config"), dict):
            continue
        folder = name.rpartition("/")[0]
        for entry in said["config"].values():
            path = entry.get("path_name") if isinstance(entry, dict) else None
            if isinstance(path, str):
                plain = entry.get("use_pickle") is False and path.startswith(_RAW) and "/" not in path
                (raw if plain else other).add(f"{folder}/{path}")
    return raw - other


def _harmless(content: bytes) -> bool:
    """Whether it is JSON, a line of text, or tensors and plain containers."""
    if _json(content) is not None or _PLAIN_TEXT.fullmatch(content):
        return True
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # whatever it is, it is not harmless
        return False
    return True


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
