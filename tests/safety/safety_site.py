"""A home with users, and its control server as it really runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from modelkeep.app.protection import Protection
from modelkeep.app.settings import Settings
from modelkeep.app.wiring import connect
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import access, events
from modelkeep.registry.access_rights import place
from modelkeep.registry.access_secrets import hash_password

sys.path.insert(0, str(Path(__file__).parents[1] / "protocols" / "mlflow"))

from serving_mlflow import answering

PASSWORD = "correct horse battery"
_LOCAL = Protection()
BY = {"now": 1_700_000_000.0, "actor": "test"}


def home(folder: Path, database: str = "") -> Keep:
    """An empty home."""
    folder.mkdir(parents=True, exist_ok=True)
    url = database or f"sqlite:///{folder / 'modelkeep.db'}"
    return connect(Settings(home=folder, database=url, blobs=str(folder / "blobs")), folder)


@dataclass
class Site:
    """A control server, its home, and tokens of users by name."""

    keep: Keep
    address: str
    tokens: dict[str, str] = field(default_factory=dict)
    client: httpx.Client | None = None

    def add(self, name: str, *roles: str, password: str = "") -> str:
        """A user with roles, each ``role`` or ``role@place``; its token."""

        def work(conn: Any) -> str:
            access.add_user(conn, name, hash_password(password) if password else "", **BY)
            for role in roles:
                what, _, where = role.partition("@")
                access.grant(conn, name, what, place(where or "everything"), **BY)
            return access.create_token(conn, name, "t", **BY)

        self.tokens[name] = self.keep.db.write(work)
        return self.tokens[name]

    def ask(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; ``who`` is a user with a token, or empty."""
        headers = {
            **({"authorization": f"Bearer {self.tokens[who]}"} if who else {}),
            **options.pop("headers", {}),
        }
        if self.client is None:
            # nothing here is TLS, whose set-up is slow
            self.client = httpx.Client(base_url=self.address, timeout=30, verify=False)
        return self.client.request(method, path, headers=headers, **options)

    def mlflow(self, who: str, method: str, path: str, **body: Any) -> httpx.Response:
        """One of MLflow's operations."""
        where = f"/api/2.0/mlflow/{path}"
        if method == "GET":
            return self.ask(who, method, where, params=body)
        return self.ask(who, method, where, json=body)

    def history(self, kind: str) -> list[events.Event]:
        with self.keep.db.read() as conn:
            return events.history(conn, kind=kind)


@contextlib.contextmanager
def site(folder: Path, database: str = "", protection: Protection = _LOCAL) -> Iterator[Site]:
    """A site with an admin, ``root``, from before its server began."""
    keep = home(folder, database)
    found = Site(keep, "")
    found.add("root", "admin", password=PASSWORD)
    with contextlib.closing(keep), answering(keep, protection) as address:
        found.address = address
        yield found
        if found.client is not None:
            found.client.close()
