"""Calls to an MLflow tracking server over plain HTTP, with connections that stay open, one for each thread.

Source: mlflow.org/docs, "REST API"; credentials come from the environment as MLflow's own client takes them.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

from modelkeep.core.errors import Conflict, Invalid, ModelkeepError, NotFound, Refused, Unavailable

API = "/api/2.0/mlflow"
AJAX = "/ajax-api/2.0/mlflow"
NEWER = "/api/3.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"
ATTEMPTS = 5
_TIMEOUT = 120.0
_BUSY = (408, 429, 500, 502, 503, 504)
_GONE = (http.client.HTTPException, OSError)


class Client:
    """One tracking server.

    Args:
        address: ``http(s)://[user:password@]host[:port][/path]``.

    Raises:
        Invalid: The address is malformed.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Invalid(f"{address!r}: {error}", path="SOURCE") from None
        if parts.scheme not in ("http", "https") or not host:
            raise Invalid(f"{address!r} is no server's address; expected http(s)://HOST[:PORT]", path="SOURCE")
        self._scheme, self._host, self._port = parts.scheme, host, port
        self._prefix = parts.path.rstrip("/")
        named = f"[{host}]" if ":" in host else host
        self.address = f"{parts.scheme}://{named}{f':{port}' if port else ''}{self._prefix}"
        self._headers = _credentials(parts.username, parts.password)
        self._open = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def get(self, path: str, query: Mapping[str, Any] | None = None, *, api: str = API) -> dict[str, Any]:
        """Ask; lists in the query are repeated. Raises ``NotFound``, ``Invalid``, ``Refused``, ``Unavailable``."""
        found = urlencode(query or {}, doseq=True)
        return self._json("GET", f"{api}/{path}{'?' + found if found else ''}", None, repeat=True)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        api: str = API,
        method: str = "POST",
        repeat: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Tell, or search.

        Args:
            headers: Further ones.
            repeat: Whether saying it twice does no harm, so that it may be tried again.

        Raises:
            Conflict: It is there already.
            NotFound, Invalid, Refused, Unavailable: As the server says.
        """
        return self._json(method, f"{api}/{path}", json.dumps(body).encode(), repeat=repeat, headers=headers)

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[BinaryIO]:
        """A file's bytes as they come. Raises ``NotFound``, ``Unavailable``; that also where they end early."""
        answer = self._send("GET", path, None, {}, repeat=True)
        try:
            if answer.status == 500:  # it stays so however often one asks: a file that is gone, or cannot be read
                raise Invalid(f"{self.address}{path[:300]}: the server fails to give it")
            if answer.status != 200:
                raise _fault(answer.status, answer.read(), f"GET {self.address}{path}")
            yield cast("BinaryIO", _Whole(answer, f"{self.address}{path}"))
        finally:
            if answer.isclosed() or not answer.read(1):
                answer.close()
            else:  # the rest is not wanted: the connection cannot be used again
                self._drop()

    def upload(self, path: str, stream: BinaryIO, size: int) -> None:
        """Put a file of ``size`` bytes. Raises ``Unavailable``, ``Refused``."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        answer = self._send("PUT", path, stream, headers, repeat=False)
        body = answer.read()
        if answer.status >= 300:
            raise _fault(answer.status, body, f"PUT {self.address}{path}")

    def close(self) -> None:
        """End all connections."""
        for each in self._all:
            each.close()

    def _json(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        repeat: bool,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        kind = {"Content-Type": "application/json"} if body is not None else {}
        answer = self._send(method, path, body, {**kind, **(headers or {})}, repeat=repeat)
        text = answer.read()
        if answer.status >= 300:
            raise _fault(answer.status, text, f"{method} {self.address}{path.partition('?')[0]}")
        try:
            found = json.loads(text or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unavailable(
                f"{self.address}{path[:200]} did not answer as MLflow does", hint="check the address"
            )
        return found

    def _send(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], *, repeat: bool
    ) -> http.client.HTTPResponse:
        attempts = ATTEMPTS if repeat else 1
        for attempt in range(1, attempts + 1):
            try:
                connection = self._connection()
                connection.request(method, self._prefix + path, body, {**self._headers, **headers})
                answer = connection.getresponse()
                if answer.status not in _BUSY or attempt == attempts:
                    return answer
                answer.read()
            except _GONE as error:
                self._drop()
                if attempt == attempts:
                    why = str(error) or type(error).__name__
                    raise Unavailable(f"{self.address} cannot be reached: {why}", hint="is it running?") from None
            time.sleep(0.1 * 2**attempt if attempt > 1 else 0.05)
        raise AssertionError("the last attempt returns or raises")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._open, "connection", None)
        if found is None:
            if self._scheme == "https":
                trusted = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
                found = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=trusted)
            else:
                found = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
            self._open.connection = found
            self._all.append(found)
        return found

    def _drop(self) -> None:
        found = getattr(self._open, "connection", None)
        if found is not None:
            found.close()
            self._open.connection = None


class _Whole:
    """A response's body; its early end is an error and not an end."""

    def __init__(self, answer: http.client.HTTPResponse, what: str) -> None:
        self._answer, self._what = answer, what

    def read(self, size: int = -1) -> bytes:
        try:
            found = self._answer.read(None if size < 0 else size)
        except _GONE as error:
            raise Unavailable(f"{self._what} ended early: {error}", hint="run it again; it goes on") from None
        if not found and self._answer.length:
            raise Unavailable(f"{self._what} ended early", hint="run it again; it goes on")
        return found


def file_path(path: str) -> str:
    """The path of a file behind the artifact proxy, quoted."""
    return f"{FILES}/{quote(path, safe='/')}"


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    user = unquote(user) if user else os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = unquote(password) if password else os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _fault(status: int, body: bytes, what: str) -> ModelkeepError:
    """An answer that is an error, as one of ours."""
    try:
        said = json.loads(body)
        code, message = str(said.get("error_code", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        code, message = "", body[:200].decode("utf-8", "replace").strip()
    message = f"{what}: {status} {code} {message}"[:1000]
    if code in ("RESOURCE_ALREADY_EXISTS",) or status == 409:
        return Conflict(message)
    if status == 404:
        return NotFound(message)
    if status in (401, 403):
        return Refused(message, hint="set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD")
    if status in _BUSY:
        return Unavailable(message, hint="try again")
    return Invalid(message)
