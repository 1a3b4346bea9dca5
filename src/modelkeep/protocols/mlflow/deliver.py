"""Telling webhooks what happened: a thread that follows the history of events and posts what each one asked for.

Payloads, headers and the signature are MLflow's (mlflow.org/docs, "Webhooks"), after standardwebhooks.com: HMAC
SHA-256 over ``<delivery id>.<unix time>.<body>``. A change is posted at least once: the delivery id is the same at
every try, so a receiver can tell. After ``ATTEMPTS`` tries it is given up and the next one gets its turn.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from modelkeep.core.errors import ModelkeepError, Unavailable
from modelkeep.protocols.mlflow import announcements, outgoing
from modelkeep.protocols.mlflow.announcements import Change
from modelkeep.protocols.mlflow.outgoing import Answer
from modelkeep.registry import events, webhooks
from modelkeep.registry.webhooks import Webhook
from modelkeep.store.database import Database

ATTEMPTS = 6
EVERY = 0.5
_BATCH = 200
_LONGEST = 60.0
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
log = logging.getLogger(__name__)


def send(webhook: Webhook, event: str, data: dict[str, Any], at: float, delivery: str) -> Answer:
    """Post one change, signed if the webhook has a secret.

    Args:
        event: As ``model_version.created``.
        at: When it happened, seconds since 1970 UTC.
        delivery: Id of the delivery.

    Raises:
        Invalid, Refused: The receiver may not be asked.
        Unavailable: It did not answer.
    """
    entity, _, action = event.partition(".")
    told = {
        "entity": entity,
        "action": action,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(),
        "data": data,
    }
    body = json.dumps(told).encode()
    stamp = str(int(time.time()))  # the receiver's clock is the real one, also when ours is played
    headers = {
        "content-type": "application/json",
        "user-agent": "modelkeep",
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": stamp,
    }
    if webhook.secret:
        signed = b".".join((delivery.encode(), stamp.encode(), body))
        digest = hmac.new(webhook.secret.encode(), signed, hashlib.sha256).digest()
        headers["x-mlflow-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return outgoing.post(webhook.url, body, headers)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a delivery failed, and after how many seconds to try again: 0.0 for the usual pause, None for never."""

    why: str
    again: float | None


class Deliveries:
    """The thread that tells webhooks.

    Args:
        db: Where events and webhooks are.
        every: Seconds between two looks.
    """

    def __init__(self, db: Database, *, every: float = EVERY) -> None:
        self._db = db
        self._every = every
        self._stop = threading.Event()
        self._posting = ThreadPoolExecutor(4, thread_name_prefix="webhook")
        self._busy: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin to follow the history."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not delivered yet is delivered after the next start."""
        self._stop.set()
        self._posting.shutdown(wait=False, cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        said = ""
        while not self._stop.wait(self._every):
            try:
                self._look()
                said = ""
            except Exception as error:
                if str(error) != said:  # once, not twice a second
                    log.error("webhooks cannot be told: %s", error)
                said = str(error)

    def _look(self) -> None:
        busy = set(self._busy)  # before reading: one that ends meanwhile has got further than what is read
        with self._db.read() as conn:
            found = [webhook for webhook in webhooks.due(conn, time.time()) if webhook.id not in busy]
        for webhook in found:
            self._busy.add(webhook.id)
            with contextlib.suppress(RuntimeError):  # the process is ending
                self._posting.submit(self._tell, webhook)

    def _tell(self, webhook: Webhook) -> None:
        """Deliver what one webhook has not been told yet, in order, until a delivery fails or the batch ends."""
        attempts, number = webhook.attempts, webhook.id
        try:
            for seq, at, change in self._ahead(webhook):
                failure = None
                if change is not None:
                    if self._stop.is_set():
                        return
                    delivery = str(uuid.uuid5(uuid.NAMESPACE_URL, f"modelkeep:{number}:{seq}"))
                    failure = self._failure(webhook, change, at, delivery)
                if failure is not None and failure.again is not None and attempts + 1 < ATTEMPTS:
                    until = time.time() + (
                        failure.again or min(_LONGEST, 2.0**attempts) * random.uniform(0.8, 1.2)
                    )
                    self._db.write(
                        partial(webhooks.postpone, number=number, seen=seq - 1, until=until, error=failure.why)
                    )
                    return
                if failure is not None:
                    log.warning("webhook %s was not told of event %d: %s", webhook.name, seq, failure.why)
                attempts = 0
                error = failure.why if failure else ""
                self._db.write(partial(webhooks.dealt_with, number=number, seen=seq, error=error))
        except Exception:
            log.exception("webhook %s cannot be told", webhook.name)
        finally:
            self._busy.discard(number)

    def _ahead(self, webhook: Webhook) -> list[tuple[int, float, Change | None]]:
        """Number, time and content of the next events that concern a webhook, and of the last one looked at."""
        with self._db.read() as conn:
            past = events.history(conn, after=webhook.seen, limit=_BATCH)
            read = [(one.seq, one.at, announcements.change(conn, one)) for one in past]
        wanted = [(seq, at, said if said and said[0] in webhook.events else None) for seq, at, said in read]
        return [one for one in wanted[:-1] if one[2]] + wanted[-1:]

    def _failure(self, webhook: Webhook, change: Change, at: float, delivery: str) -> Failure | None:
        try:
            answer = send(webhook, *change, at, delivery)
        except Unavailable as error:
            return Failure(outgoing.why(error), 0.0)
        except ModelkeepError as error:
            return Failure(outgoing.why(error), None)
        if answer.status < 300:
            return None
        again = min(answer.retry_after or 0.0, _LONGEST) if answer.status in _RETRIED else None
        return Failure(f"the receiver answered {answer.status}", again)
