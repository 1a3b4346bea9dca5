"""Which kind of MLflow store an address names."""

from __future__ import annotations

from pathlib import Path

from modelkeep.protocols.mlflow.transfer.database import DatabaseSource
from modelkeep.protocols.mlflow.transfer.folder import FolderSource
from modelkeep.protocols.mlflow.transfer.places import Places
from modelkeep.protocols.mlflow.transfer.records import Source
from modelkeep.protocols.mlflow.transfer.server import ServerSource


def open_source(address: str, *, artifacts: str = "", workspace: str = "default") -> Source:
    """Open an MLflow store for reading.

    Args:
        address: ``http(s)://`` of a server, ``sqlite:///PATH``, ``postgresql://...``, or an mlruns folder.
        artifacts: Folder or URL that ``mlflow-artifacts:/`` and relative locations are below.
        workspace: Which one, of a database that has several.

    Raises:
        Invalid: It is malformed.
        NotFound: There is no such file or folder.
        Unavailable: It cannot be reached.
        Refused: It is not MLflow's, or too old.
    """
    if address.startswith(("http://", "https://")):
        return ServerSource(address, artifacts)
    if "://" in address and not address.startswith("file://"):
        return DatabaseSource(address, Places(artifacts), workspace)
    return FolderSource(Path(address.removeprefix("file://")), Places(artifacts))
