"""Operations on webhooks. Events are pairs as ``{"entity": "MODEL_VERSION", "action": "CREATED"}``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound, Unavailable
from modelkeep.protocols.mlflow import announcements, checks, deliver, outgoing
from modelkeep.protocols.mlflow.experiments import Text
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import webhooks
from modelkeep.registry.webhooks import Webhook
from modelkeep.store.database import Database

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?\Z")
_MOST_EVENTS = 50


class Event(Struct, frozen=True):
    """A kind of change."""

    entity: str = ""
    action: str = ""


class Create(Struct, frozen=True):
    """createWebhook."""

    name: str
    url: str
    events: list[Event] = []
    description: Text = ""
    secret: Text = ""
    status: Text = ""


class Change(Struct, frozen=True):
    """updateWebhook: what is not said stays."""

    webhook_id: str
    name: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    events: list[Event] = []
    description: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET
    status: str | UnsetType = UNSET


class One(Struct, frozen=True):
    """getWebhook and deleteWebhook."""

    webhook_id: str


class Page(Struct, frozen=True):
    """listWebhooks."""

    max_results: int = 0
    page_token: Text = ""


class Test(Struct, frozen=True):
    """testWebhook."""

    webhook_id: str
    event: Event | None = None


def shape(webhook: Webhook) -> dict[str, Any]:
    """``mlflow.Webhook``; the secret stays here."""
    return {
        "webhook_id": str(webhook.id),
        "name": webhook.name,
        "description": webhook.description,
        "url": webhook.url,
        "events": [_pair(name) for name in webhook.events],
        "status": webhook.status,
        "creation_timestamp": webhook.created_ms,
        "last_updated_timestamp": webhook.updated_ms,
    }


def _pair(name: str) -> dict[str, str]:
    entity, _, action = name.partition(".")
    return {"entity": entity.upper(), "action": action.upper()}


def _events(given: list[Event]) -> list[str]:
    if not given:
        raise Invalid("Webhook events must be a non-empty list of WebhookEvent objects", path="events")
    if len(given) > _MOST_EVENTS:
        raise Invalid(f"{len(given)} events, expected at most {_MOST_EVENTS}", path="events")
    return list(dict.fromkeys(_event(one, f"events[{place}]") for place, one in enumerate(given)))


def _event(given: Event, path: str) -> str:
    name = f"{given.entity}.{given.action}".lower()
    if name not in announcements.EVENTS:
        known = ", ".join(announcements.EVENTS)
        raise Invalid(f"{name[:100]!r} is no event; expected one of {known}", path=path)
    return name


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise Invalid(
            f"Webhook name {value[:100]!r} is invalid. It must start and end with a letter or digit, be less than"
            " 63 characters long, and contain only letters, digits, dots (.), underscores (_), and hyphens (-)."
        )
    return value


def _status(value: str) -> str:
    if value not in ("ACTIVE", "DISABLED"):
        raise Invalid(f"{value[:100]!r} is not ACTIVE or DISABLED", path="status")
    return value


def _url(value: str) -> str:
    checks.length("url", value, 500)
    outgoing.check(value)
    return value


def _id(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or len(value) > 18:
        raise NotFound(f"Webhook with ID {value[:100]} not found.")
    return int(value)


def check(name: str, url: str, given: list[Event]) -> list[str]:
    """Whether a webhook may be such: its events. Raises ``Invalid``, ``Refused``."""
    _name(name)
    _url(url)
    return _events(given)


def _create(asked: Create, now: int) -> Work:
    name, url, wanted = asked.name, asked.url, check(asked.name, asked.url, asked.events)
    status: Any = _status(asked.status or "ACTIVE")
    checks.length("secret", asked.secret, 1000)
    checks.length("description", asked.description, 1000)

    def work(conn: Connection) -> dict[str, Any]:
        made = webhooks.add(
            conn, name, url, wanted, now, description=asked.description, secret=asked.secret, status=status
        )
        return {"webhook": shape(made)}

    return work


def _change(asked: Change, now: int) -> Work:
    number, values = _id(asked.webhook_id), dict[str, Any]()
    for field, check in (
        ("name", _name),
        ("url", _url),
        ("status", _status),
        ("description", str),
        ("secret", str),
    ):
        said = getattr(asked, field)
        if said is not UNSET:
            checks.length(field, said, 1000)
            values[field] = check(said)
    if asked.events:
        values["events"] = _events(asked.events)
    return lambda conn: {"webhook": shape(webhooks.change(conn, number, now, **values))}


def _get(asked: One, _: int) -> Work:
    number = _id(asked.webhook_id)
    return lambda conn: {"webhook": shape(webhooks.get(conn, number))}


def _delete(asked: One, _: int) -> Work:
    number = _id(asked.webhook_id)
    return lambda conn: webhooks.remove(conn, number)


def _list(asked: Page, _: int) -> Work:
    limit = asked.max_results or 100
    checks.page(limit, 1000)
    after = _id(asked.page_token) if asked.page_token else 0

    def work(conn: Connection) -> dict[str, Any]:
        found = webhooks.listing(conn, after=after, limit=limit + 1)
        token = {"next_page_token": str(found[limit - 1].id)} if len(found) > limit else {}
        return {"webhooks": [shape(each) for each in found[:limit]], **token}

    return work


def _test(asked: Test, now: int) -> Callable[[Database], Any]:
    number = _id(asked.webhook_id)
    chosen = _event(asked.event, "event") if asked.event and asked.event.entity else ""

    def task(db: Database) -> dict[str, Any]:
        with db.read() as conn:
            webhook = webhooks.get(conn, number)
        event = chosen or webhook.events[0]
        try:
            answer = deliver.send(webhook, event, announcements.example(event), now / 1000, f"test-{number}-{now}")
        except Unavailable as error:
            return {"result": {"success": False, "error_message": outgoing.why(error)}}
        except ModelkeepError as error:
            return {"result": {"success": False, "error_message": f"{urlsplit(webhook.url).hostname}: {error}"}}
        fine = answer.status < 400
        return {"result": {"success": fine, "response_status": answer.status, "response_body": answer.body}}

    return task


OPERATIONS = [
    Operation("POST", "webhooks", Create, _create, "write"),
    Operation("GET", "webhooks", Page, _list),
    Operation("GET", "webhooks/{webhook_id}", One, _get),
    Operation("PATCH", "webhooks/{webhook_id}", Change, _change, "write"),
    Operation("DELETE", "webhooks/{webhook_id}", One, _delete, "write"),
    Operation("POST", "webhooks/{webhook_id}/test", Test, _test, "task"),
]
