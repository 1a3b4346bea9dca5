"""``modelkeep up`` with others in mind: addresses, TLS, users; control, serving and gRPC as real processes."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from forks import Forked, Forks
from small import Project, until

ROW = {
    "inputs": [
        {"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]},
        {"name": "z", "shape": [1], "datatype": "FP64", "data": [0.1]},
        {"name": "place", "shape": [1], "datatype": "BYTES", "data": ["a"]},
    ]
}


def command(forks: Forks, project: Project, *words: str) -> dict[str, Any]:
    """Run a command that ends well; what it said as JSON."""
    code, said = forks.done([*words, "--json"], project.folder)
    assert code == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 2 -subj /CN=localhost"
        " -addext subjectAltName=IP:127.0.0.1,DNS:localhost",
        shell=True,
        check=True,
        capture_output=True,
    )
    return cert, key


class Up:
    """A running ``up`` with its tokens."""

    def __init__(self, project: Project, process: Forked, verify: Any) -> None:
        told = json.loads(process.out.read_text().splitlines()[0])
        self.control, self.serving, self.grpc = told["control"], told["serving"], told["grpc"]
        self.project, self.process = project, process
        self.tokens: dict[str, str] = {}
        self.client = httpx.Client(timeout=20, verify=verify)

    def ask(self, who: str, method: str, url: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return self.client.request(method, url, headers={**headers, **options.pop("headers", {})}, **options)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, forks: Forks, certificate: tuple[Path, Path]) -> Iterator[Up]:
    """An applied model, users, and everything over TLS on all addresses."""
    project = Project(Path(tmp_path_factory.mktemp("up")) / "project")
    project.write()
    project.declare()
    project.apply()
    refused = forks.run(["up", "--host", "0.0.0.0", "--port", "0", "--serve-port", "0"], project.folder)
    assert refused.wait() == 1
    assert "modelkeep users add NAME --admin" in refused.told()
    command(forks, project, "users", "add", "root", "--admin", "--no-password")
    for name, grant in (
        ("shop", ("reader", "--on", "endpoint:late")),
        ("other", ("reader", "--on", "endpoint:x")),
    ):
        command(forks, project, "users", "add", name, "--no-password")
        command(forks, project, "roles", "grant", name, *grant)
    tokens = {
        name: command(forks, project, "tokens", "create", name, "t")["token"] for name in ("root", "shop", "other")
    }
    tokens["scoped"] = command(
        forks, project, "tokens", "create", "root", "p", "--scope", "predict@endpoint:late", "--expires", "1h"
    )["token"]
    cert, key = certificate
    words = ["--tls-cert", str(cert), "--tls-key", str(key), "--no-loop"]
    process = forks.run(
        ["up", "--host", "0.0.0.0", "--port", "0", "--serve-port", "0", "--json", *words], project.folder
    )
    until(lambda: process.out.read_text().count("\n") or process.ended.is_set())
    assert not process.ended.is_set(), process.told()
    found = Up(project, process, ssl.create_default_context(cafile=str(cert)))
    for name in ("control", "serving", "grpc"):
        setattr(found, name, getattr(found, name).replace("0.0.0.0", "127.0.0.1"))
    found.tokens = tokens

    def ready() -> bool:
        try:
            return bool(found.client.get(f"{found.serving}/v2/health/ready").json()["ready"])
        except httpx.HTTPError:
            return False

    until(ready)
    yield found
    found.client.close()
    found.process.send(signal.SIGTERM)
    assert found.process.wait(30) == 0, found.process.told()


def test_predictions_need_a_right_on_the_endpoint(up: Up) -> None:
    body = {"dataframe_records": [{"x": 0.5, "z": 0.1, "place": "a"}]}
    paths = [
        ("/v2/models/late/infer", ROW),
        ("/invocations", body),
        ("/endpoints/late/invocations", body),
        ("/v1/models/late:predict", {"instances": [{"x": 0.5, "z": 0.1, "place": "a"}]}),
        ("/v2/models/late/infer?x=1", ROW),
    ]
    for path, content in paths:
        for who, status in (("", 401), ("other", 403), ("shop", 200), ("root", 200), ("scoped", 200)):
            for _ in range(2):
                answer = up.ask(who, "POST", f"{up.serving}{path}", json=content)
                assert answer.status_code == status, (path, who, answer.text)


def test_names_of_endpoints_are_not_told_to_who_may_not_see_them(up: Up) -> None:
    for who, known in (("other", False), ("shop", True)):
        for method, path in (
            ("GET", "/v2/models/{}"),
            ("GET", "/v1/models/{}"),
            ("POST", "/v2/models/{}/infer"),
            ("POST", "/endpoints/{}/invocations"),
        ):
            found = [up.ask(who, method, f"{up.serving}{path.format(name)}") for name in ("late", "none")]
            told = [(one.status_code, one.text.replace("none", "late")) for one in found]
            assert known or told[0] == told[1], (path, told)
            assert known or told[0][0] == 403
        report = up.ask(who, "GET", f"{up.serving}/modelkeep/health").json()
        assert [one["endpoint"] for one in report["endpoints"]] == (["late"] if known else [])
    assert "late" not in up.ask("other", "POST", f"{up.serving}/invocations", json={}).text


def test_looking_needs_a_right_too(up: Up) -> None:
    asked = [
        ("GET", "/v2/models/late", ""),
        ("GET", "/v2/models/late/ready", ""),
        ("GET", "/metrics", "all"),
        ("POST", "/v2/repository/index", "all"),
        ("GET", "/v1/models/late", ""),
        ("GET", "/v2/models/late/stats", ""),
    ]
    for method, path, needs in asked:
        for who, allowed in (("", False), ("other", False), ("shop", not needs), ("root", True)):
            answer = up.ask(who, method, f"{up.serving}{path}")
            assert answer.status_code == (200 if allowed else 403 if who else 401), (path, who, answer.text)
    for path in ("/v2/health/live", "/v2/health/ready", "/ping", "/health"):
        assert up.ask("", "GET", f"{up.serving}{path}").status_code == 200
    assert up.ask("", "GET", f"{up.serving}/modelkeep/health").json() == {"ready": True}
    assert "endpoints" in up.ask("root", "GET", f"{up.serving}/modelkeep/health").json()
    assert up.ask("shop", "POST", f"{up.serving}/v2/repository/models/late/unload").status_code == 403


def test_grpc_asks_the_same(up: Up, certificate: tuple[Path, Path]) -> None:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(up.grpc, ssl=True, root_certificates=str(certificate[0]))
    inputs = []
    for name, kind, value in (
        ("x", "FP64", np.array([0.5])),
        ("z", "FP64", np.array([0.1])),
        ("place", "BYTES", np.array([b"a"], object)),
    ):
        inputs.append(triton.InferInput(name, [1], kind))
        inputs[-1].set_data_from_numpy(value)
    assert client.is_server_live()
    for who, code in (("", "UNAUTHENTICATED"), ("other", "PERMISSION_DENIED"), ("shop", ""), ("root", "")):
        headers = {"authorization": f"Bearer {up.tokens[who]}"} if who else {}
        calls = [
            lambda h=headers: client.infer("late", inputs, headers=h),
            lambda h=headers: client.get_model_metadata("late", headers=h),
        ]
        for call in calls:
            if code:
                with pytest.raises(InferenceServerException, match=code):
                    call()
            else:
                call()
    for what in (client.get_model_repository_index, lambda headers: client.unload_model("late", headers=headers)):
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            what(headers={"authorization": f"Bearer {up.tokens['shop']}"})
    client.close()


def test_strange_hosts_are_refused_at_both_servers(up: Up) -> None:
    port = httpx.URL(up.serving).port
    for address, path in ((up.control, "/health"), (up.serving, "/v2/health/live"), (up.serving, "/ping")):
        for host, status in (
            (f"evil.example:{port}", 403),
            (f"127.0.0.1:{port}", 200),
            (f"10.1.2.3:{port}", 200),
            (f"{socket.gethostname()}:{port}", 200),
        ):
            assert up.client.get(f"{address}{path}", headers={"host": host}).status_code == status, (address, host)
    answer = up.ask(
        "shop", "POST", f"{up.serving}/v2/models/late/infer", json=ROW, headers={"origin": "https://evil.example"}
    )
    assert answer.status_code == 403


def test_plain_text_is_not_spoken_where_tls_is(up: Up) -> None:
    for address in (up.control, up.serving):
        with pytest.raises(httpx.HTTPError):
            httpx.get(address.replace("https:", "http:") + "/health", timeout=5)


def test_revoking_reaches_serving_without_a_restart(up: Up, forks: Forks) -> None:
    token = command(forks, up.project, "tokens", "create", "shop", "gone")["token"]
    up.tokens["gone"] = token

    def status() -> int:
        return up.ask("gone", "POST", f"{up.serving}/v2/models/late/infer", json=ROW).status_code

    until(lambda: status() == 200)
    command(forks, up.project, "tokens", "revoke", "shop", "gone")
    until(lambda: status() == 401, limit=5)


def test_serving_knows_its_users_while_the_database_is_away(up: Up) -> None:
    copy = up.project.folder / ".modelkeep" / "serve" / "accounts.json"
    assert copy.stat().st_mode & 0o777 == 0o600
    kept = copy.read_text()
    assert up.tokens["root"][-43:] not in kept  # all of the secret half, which may hold underscores
    database = up.project.folder / ".modelkeep" / "modelkeep.db"
    away = database.with_name("away")
    database.rename(away)
    try:
        for _ in range(3):
            assert up.ask("shop", "POST", f"{up.serving}/v2/models/late/infer", json=ROW).status_code == 200
            assert up.ask("", "POST", f"{up.serving}/v2/models/late/infer", json=ROW).status_code == 401
    finally:
        away.rename(database)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--host", "0.0.0.0"], 1, "no admin yet"),
        (["--host", "192.0.2.1", "--auth", "off"], 1, "anybody could change"),
        (["--tls-cert", "missing.pem"], 2, "belong together"),
        (["--tls-cert", "modelkeep.yaml", "--tls-key", "modelkeep.yaml"], 2, "cannot be used"),
        (["--tls-cert", "missing.pem", "--tls-key", "missing.pem"], 2, "cannot be used"),
        (["--allowed-host", "http://x"], 2, "no host name"),
        (["--rate-limit", "nan"], 2, "no rate"),
        (["--auth", "maybe"], 2, "maybe"),
    ],
)
def test_what_up_refuses_before_it_begins(
    project: Project, forks: Forks, words: list[str], code: int, told: str
) -> None:
    process = forks.run(["up", "--port", "0", "--serve-port", "0", *words], project.folder)
    assert process.wait() == code
    assert told in process.told()


def test_auth_on_without_users_lets_nobody_in(project: Project, forks: Forks) -> None:
    process = forks.run(["up", "--port", "0", "--no-serve", "--no-loop", "--auth", "on", "--json"], project.folder)
    until(lambda: process.out.read_text().count("\n") or process.ended.is_set())
    address = json.loads(process.out.read_text().splitlines()[0])["control"]
    answer = httpx.get(f"{address}/api/modelkeep/models")
    assert answer.status_code == 401
    assert "modelkeep users add" in answer.json()["message"]
    process.send(signal.SIGTERM)
    assert process.wait() == 0
