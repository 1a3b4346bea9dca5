"""Webhooks with MLflow's own client and a real receiver: told what is durable, signed, and again after faults."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent, WebhookStatus
from mlflow.exceptions import MlflowException

from modelkeep.core.errors import Invalid, ModelkeepError, Refused
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.mlflow import outgoing
from modelkeep.protocols.mlflow.announcements import EVENTS
from modelkeep.protocols.mlflow.deliver import Deliveries
from modelkeep.registry import events, webhooks


class Receiver:
    """Takes what is posted; answers what ``answers`` says first, then 200."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = outer.answers.pop(0) if outer.answers else 200
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.at = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        found = [json.loads(body) for _, body in self.got]
        return [(f"{one['entity']}.{one['action']}", one["data"]) for one in found]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv(outgoing.ALLOWED, found.at)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def telling(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deliveries]:
    monkeypatch.setattr("modelkeep.protocols.mlflow.deliver._LONGEST", 0.05)
    found = Deliveries(keep.db, every=0.02)
    found.start()
    yield found
    found.stop()


def wait(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_client_manages_webhooks(client: MlflowClient, receiver: Receiver) -> None:
    url = f"http://{receiver.at}/hook"
    made = client.create_webhook("first", url, ["model_version.created"], description="d", secret="s3cret")
    assert (made.name, made.url, made.description, made.status) == ("first", url, "d", WebhookStatus.ACTIVE)
    assert [str(event) for event in made.events] == ["model_version.created"]
    other = client.create_webhook("second", url, [WebhookEvent("prompt", "created")], status="DISABLED")
    assert [one.webhook_id for one in client.list_webhooks()] == [made.webhook_id, other.webhook_id]
    page = client.list_webhooks(max_results=1)
    assert [one.name for one in page] == ["first"]
    assert [one.name for one in client.list_webhooks(max_results=1, page_token=page.token)] == ["second"]
    changed = client.update_webhook(made.webhook_id, name="renamed", events=["model_version_alias.created"])
    assert (changed.name, changed.url, changed.description) == ("renamed", url, "d")
    assert [str(event) for event in client.get_webhook(made.webhook_id).events] == ["model_version_alias.created"]
    tested = client.test_webhook(made.webhook_id)
    assert (tested.success, tested.response_status, tested.response_body) == (True, 200, "ok")
    assert receiver.told()[0][0] == "model_version_alias.created"
    receiver.answers = [500]
    assert not client.test_webhook(made.webhook_id, "prompt.created").success
    client.delete_webhook(other.webhook_id)
    with pytest.raises(MlflowException, match="not found"):
        client.get_webhook(other.webhook_id)
    with pytest.raises(MlflowException, match="scheme"):
        client.create_webhook("x", "file:///etc/passwd", ["prompt.created"])
    with pytest.raises(MlflowException, match="invalid"):
        client.create_webhook("no spaces here", url, ["prompt.created"])


def test_changes_are_told_in_order_and_signed(
    client: MlflowClient, receiver: Receiver, telling: Deliveries
) -> None:
    client.create_registered_model("before")
    client.create_webhook("all", f"http://{receiver.at}/?a=1", list(EVENTS), secret="geheim")
    client.create_registered_model("m", tags={"a": "b"}, description="über")
    client.create_model_version("m", "s3://bucket/model", tags={"k": "v"})
    client.set_model_version_tag("m", "1", "k", "w")
    client.delete_model_version_tag("m", "1", "k")
    client.set_registered_model_alias("m", "champion", "1")
    client.delete_registered_model_alias("m", "champion")
    wait(lambda: len(receiver.got) == 6)
    told = receiver.told()
    assert told == [
        ("registered_model.created", {"name": "m", "tags": {"a": "b"}, "description": "über"}),
        (
            "model_version.created",
            {
                "name": "m",
                "version": "1",
                "source": "s3://bucket/model",
                "run_id": None,
                "tags": told[1][1]["tags"],  # as they are when it is told
                "description": None,
            },
        ),
        ("model_version_tag.set", {"name": "m", "version": "1", "key": "k", "value": "w"}),
        ("model_version_tag.deleted", {"name": "m", "version": "1", "key": "k"}),
        ("model_version_alias.created", {"name": "m", "alias": "champion", "version": "1"}),
        ("model_version_alias.deleted", {"name": "m", "alias": "champion"}),
    ]
    for headers, body in receiver.got:
        signed = f"{headers['x-mlflow-delivery-id']}.{headers['x-mlflow-timestamp']}.".encode() + body
        digest = hmac.new(b"geheim", signed, hashlib.sha256).digest()
        assert headers["x-mlflow-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        assert abs(int(headers["x-mlflow-timestamp"]) - time.time()) < 60
    assert len({headers["x-mlflow-delivery-id"] for headers, _ in receiver.got}) == 6


def test_prompts_are_told_as_prompts(client: MlflowClient, receiver: Receiver, telling: Deliveries) -> None:
    import mlflow

    client.create_webhook("all", f"http://{receiver.at}/", ["prompt.created", "prompt_version.created"])
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(client.tracking_uri)
    mlflow.genai.register_prompt("greeting", "Hello {{name}}!")
    wait(lambda: len(receiver.got) == 2)
    assert [name for name, _ in receiver.told()] == ["prompt.created", "prompt_version.created"]
    assert receiver.told()[1][1]["template"] == "Hello {{name}}!"


def test_what_a_receiver_misses_is_tried_again_and_holds_up_no_other(
    client: MlflowClient, keep: Keep, receiver: Receiver, telling: Deliveries
) -> None:
    client.create_webhook("faulty", f"http://{receiver.at}/", ["registered_model.created"])
    receiver.answers = [500, 503]
    client.create_registered_model("one")
    client.create_registered_model("two")
    wait(lambda: len(receiver.got) == 4)
    assert [data["name"] for _, data in receiver.told()] == ["one", "one", "one", "two"]
    assert len({headers["x-mlflow-delivery-id"] for headers, _ in receiver.got}) == 2
    receiver.answers = [400]  # it says that it will never take this one
    client.create_registered_model("three")
    client.create_registered_model("four")
    wait(lambda: len(receiver.got) == 6)
    receiver.answers = [500] * 6
    client.create_registered_model("given up after six tries")
    client.create_registered_model("six")
    wait(lambda: len(receiver.got) == 13)
    assert receiver.told()[-1][1]["name"] == "six"
    receiver.answers = [302]  # redirects are not followed: the address they name was not checked
    client.create_registered_model("moved")
    wait(lambda: len(receiver.got) == 14)

    def recorded() -> bool:
        with keep.db.read() as conn:
            return "302" in webhooks.listing(conn)[0].last_error

    wait(recorded)


def test_nothing_is_lost_while_nobody_tells(client: MlflowClient, keep: Keep, receiver: Receiver) -> None:
    client.create_webhook("later", f"http://{receiver.at}/", ["registered_model.created"])
    off = client.create_webhook("off", f"http://{receiver.at}/", ["registered_model.created"], status="DISABLED")
    for number in range(3):
        client.create_registered_model(f"m{number}")
    first = Deliveries(keep.db, every=0.02)
    first.start()
    wait(lambda: len(receiver.got) == 3)
    first.stop()
    client.update_webhook(off.webhook_id, status="ACTIVE")
    client.create_registered_model("m3")
    second = Deliveries(keep.db, every=0.02)
    second.start()
    wait(lambda: len(receiver.got) == 5)
    second.stop()
    assert sorted(data["name"] for _, data in receiver.told()) == ["m0", "m1", "m2", "m3", "m3"]


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[2002:7f00:1::]/",
        "https://[64:ff9b::7f00:1]/",
        "https://10.0.0.1/",
        "https://192.168.1.1:8443/",
        "https://169.254.169.254/latest/meta-data/",
        "https://192.0.0.192/opc/v2/instance/",
        "https://192.88.99.1/",
        "https://[fec0::1]/",
        "https://[::ffff:0:10.0.0.1]/",
        "https://[::10.0.0.1]/",
        "https://[64:ff9b:1:7f00:1::1.1.1.1]/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://127。0。0。1/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://[fe80::1%25lo]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://user:pw@example.org/",
        "http://93.184.216.34/",
        "ftp://93.184.216.34/",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "https://93.184.216.34:0/",
        "https:///nohost",
        "https://exa mple.org/",
        "https://example.org/\r\nx-injected: 1",
        "",
    ],
)
def test_only_public_https_receivers_are_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outgoing.ALLOWED, raising=False)
    with pytest.raises((Invalid, Refused)):
        outgoing.post(url, b"{}", {}, timeout=0.5)


def test_a_name_that_resolves_to_a_private_address_is_refused_at_delivery(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    port = int(receiver.at.rpartition(":")[2])
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.delenv(outgoing.ALLOWED)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(ModelkeepError, match=r"127\.0\.0\.1 is not a public address"):
        outgoing.post(f"https://rebound.example:{port}/", b"{}", {})
    assert receiver.got == []


def test_changes_of_the_registry_are_in_the_history(client: MlflowClient, keep: Keep) -> None:
    client.create_registered_model("m")
    client.create_model_version("m", "s3://bucket/model")
    client.set_registered_model_alias("m", "blue", "1")
    client.set_registered_model_tag("m", "k", "v")
    client.delete_registered_model_alias("m", "blue")
    client.delete_registered_model_alias("m", "blue")
    client.rename_registered_model("m", "n")
    client.delete_model_version("n", "1")
    client.delete_registered_model("n")
    with keep.db.read() as conn:
        found = [(event.kind, event.subject) for event in events.history(conn)]
        assert events.verify(conn) == []
    assert found == [
        ("model.created", "m"),
        ("version.created", "m@1"),
        ("alias.set", "m@1"),
        ("tag.set", "m"),
        ("alias.deleted", "m@1"),
        ("model.renamed", "n"),
        ("version.deleted", "n@1"),
        ("model.deleted", "n"),
    ]
