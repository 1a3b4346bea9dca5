"""What each of MLflow's operations needs: a right, and on what. An operation that is not here is refused to all.

Most name one thing: an experiment, a run in one, a registered model. Searches name none: they show only what
whoever asks may read, and are let in for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import access_places as places
from modelkeep.registry.access_places import Where
from modelkeep.registry.access_rights import ALL, EVERYTHING

APPROVAL = "modelkeep.approval"
"""Tags of versions that begin so need the right to approve, and writers cannot set them."""

Touch = Callable[[Connection, Any], Iterable[Where]]
"""The things an operation touches, from its request."""


class Rule(Struct, frozen=True):
    """What an operation needs.

    Attributes:
        right: On all that it touches.
        touches: How to find that. Nothing found, nothing needed: the operation will say that it is not there.
        also: Further rights: what is needed for the files or models a request refers to.
        narrow: Field with the experiments to look in, of which only those that may be read are kept.
        shows: Whether it is a search over everything, which shows only what may be read.
    """

    right: str
    touches: tuple[Touch, ...] = ()
    also: tuple[tuple[str, Touch], ...] = ()
    narrow: str = ""
    shows: bool = False


def _number(text: str) -> str:
    """An experiment's number as grants have it; empty for what the operation will refuse."""
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) <= 18 else ""


def _experiment(_: Connection, asked: Any) -> Iterable[Where]:
    return [("experiment", _number(asked.experiment_id))]


def _experiment_name(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_experiment_name(conn, asked.experiment_name)


def _new_experiment(_: Connection, asked: Any) -> Iterable[Where]:
    return [("experiment", ALL)]


def _run(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_run(conn, asked.run_id or getattr(asked, "run_uuid", ""))


def _runs(conn: Connection, asked: Any) -> Iterable[Where]:
    named = dict.fromkeys([*asked.run_ids, *asked.run_id])
    if len(named) > 200:
        raise Invalid(f"holds {len(named)} runs; expected at most 100", path="run_ids")
    return [where for run_id in named for where in places.of_run(conn, run_id)]


def _source_run(conn: Connection, asked: Any) -> Iterable[Where]:
    named = getattr(asked, "source_run_id", "") or getattr(asked, "run_id", "")
    return places.of_run(conn, named) if named else []


def _model(_: Connection, asked: Any) -> Iterable[Where]:
    return [("model", asked.name)]


def _new_name(_: Connection, asked: Any) -> Iterable[Where]:
    return [("model", asked.new_name)]


def _source(conn: Connection, asked: Any) -> Iterable[Where]:
    return places.of_source(conn, asked.source)


def _logged(conn: Connection, asked: Any) -> Iterable[Where]:
    named = asked.model_id
    return places.of_logged_model(conn, named) if named else []


def _logged_of_metrics(conn: Connection, asked: Any) -> Iterable[Where]:
    named = dict.fromkeys(metric.model_id for metric in asked.metrics if metric.model_id)
    return [where for model_id in named for where in places.of_logged_model(conn, model_id)]


def _logged_of_models(conn: Connection, asked: Any) -> Iterable[Where]:
    named = dict.fromkeys(use.model_id for use in asked.models)
    return [where for model_id in named for where in places.of_logged_model(conn, model_id)]


def _approval(_: Connection, asked: Any) -> Iterable[Where]:
    """The model, when the tag says that a version is approved."""
    keys = [asked.key] if hasattr(asked, "key") else [tag.key for tag in asked.tags]
    return [("model", asked.name)] if any(key.startswith(APPROVAL) for key in keys) else []


def _unless_approval(conn: Connection, asked: Any) -> Iterable[Where]:
    return [] if _approval(conn, asked) else _model(conn, asked)


def _everything(_: Connection, asked: Any) -> Iterable[Where]:
    return [(EVERYTHING, ALL)]


_READ_RUN = Rule("read", (_run,))
_WRITE_RUN = Rule("write", (_run,))
_WRITE_EXPERIMENT = Rule("write", (_experiment,))
_READ_MODEL = Rule("read", (_model,))
_WRITE_MODEL = Rule("write", (_model,))
_DEPLOY_MODEL = Rule("deploy", (_model,))
_WRITE_LOGGED = Rule("write", (_logged,))
_WITHIN = Rule("read", narrow="experiment_ids")
_SHOWN = Rule("read", shows=True)
_ADMIN = Rule("admin", (_everything,))
_TAG_VERSION = Rule("write", (_unless_approval,), (("approve", _approval),))

RULES: Mapping[tuple[str, str], Rule] = {
    ("POST", "experiments/create"): Rule("write", (_new_experiment,)),
    ("GET", "experiments/get"): Rule("read", (_experiment,)),
    ("GET", "experiments/get-by-name"): Rule("read", (_experiment_name,)),
    ("POST", "experiments/update"): _WRITE_EXPERIMENT,
    ("POST", "experiments/delete"): _WRITE_EXPERIMENT,
    ("POST", "experiments/restore"): _WRITE_EXPERIMENT,
    ("POST", "experiments/set-experiment-tag"): _WRITE_EXPERIMENT,
    ("POST", "experiments/delete-experiment-tag"): _WRITE_EXPERIMENT,
    ("POST", "experiments/search"): _SHOWN,
    ("GET", "experiments/search"): _SHOWN,
    ("POST", "experiments/search-datasets"): _WITHIN,
    ("POST", "runs/create"): _WRITE_EXPERIMENT,
    ("GET", "runs/get"): _READ_RUN,
    ("POST", "runs/update"): _WRITE_RUN,
    ("POST", "runs/delete"): _WRITE_RUN,
    ("POST", "runs/restore"): _WRITE_RUN,
    ("POST", "runs/log-metric"): Rule("write", (_run, _logged)),
    ("POST", "runs/log-parameter"): _WRITE_RUN,
    ("POST", "runs/set-tag"): _WRITE_RUN,
    ("POST", "runs/delete-tag"): _WRITE_RUN,
    ("POST", "runs/log-batch"): Rule("write", (_run, _logged_of_metrics)),
    ("POST", "runs/log-model"): _WRITE_RUN,
    ("POST", "runs/log-inputs"): Rule("write", (_run,), (("read", _logged_of_models),)),
    ("POST", "runs/outputs"): Rule("write", (_run,), (("read", _logged_of_models),)),
    ("POST", "runs/search"): _WITHIN,
    ("GET", "metrics/get-history"): _READ_RUN,
    ("GET", "metrics/get-history-bulk"): Rule("read", (_runs,)),
    ("GET", "metrics/get-history-bulk-interval"): Rule("read", (_runs,)),
    ("POST", "registered-models/create"): _WRITE_MODEL,
    ("GET", "registered-models/get"): _READ_MODEL,
    ("POST", "registered-models/rename"): Rule("write", (_model, _new_name)),
    ("PATCH", "registered-models/update"): _WRITE_MODEL,
    ("DELETE", "registered-models/delete"): _WRITE_MODEL,
    ("GET", "registered-models/search"): _SHOWN,
    ("GET", "registered-models/get-latest-versions"): _READ_MODEL,
    ("POST", "registered-models/get-latest-versions"): _READ_MODEL,
    ("POST", "registered-models/set-tag"): _WRITE_MODEL,
    ("DELETE", "registered-models/delete-tag"): _WRITE_MODEL,
    ("POST", "registered-models/alias"): _DEPLOY_MODEL,
    ("DELETE", "registered-models/alias"): _DEPLOY_MODEL,
    ("GET", "registered-models/alias"): _READ_MODEL,
    ("POST", "model-versions/create"): Rule(
        "write", (_model,), (("read", _source), ("read", _source_run), ("read", _logged), ("approve", _approval))
    ),
    ("GET", "model-versions/get"): _READ_MODEL,
    ("PATCH", "model-versions/update"): _WRITE_MODEL,
    ("POST", "model-versions/transition-stage"): _DEPLOY_MODEL,
    ("DELETE", "model-versions/delete"): _WRITE_MODEL,
    ("GET", "model-versions/search"): _SHOWN,
    ("GET", "model-versions/get-download-uri"): _READ_MODEL,
    ("POST", "model-versions/set-tag"): _TAG_VERSION,
    ("DELETE", "model-versions/delete-tag"): _TAG_VERSION,
    ("POST", "logged-models"): Rule("write", (_experiment,), (("read", _source_run),)),
    ("POST", "logged-models/search"): _WITHIN,
    ("GET", "logged-models/{model_id}"): Rule("read", (_logged,)),
    ("PATCH", "logged-models/{model_id}"): _WRITE_LOGGED,
    ("DELETE", "logged-models/{model_id}"): _WRITE_LOGGED,
    ("PATCH", "logged-models/{model_id}/tags"): _WRITE_LOGGED,
    ("DELETE", "logged-models/{model_id}/tags/{tag_key}"): _WRITE_LOGGED,
    ("POST", "logged-models/{model_id}/params"): _WRITE_LOGGED,
    ("POST", "webhooks"): _ADMIN,
    ("GET", "webhooks"): _ADMIN,
    ("GET", "webhooks/{webhook_id}"): _ADMIN,
    ("PATCH", "webhooks/{webhook_id}"): _ADMIN,
    ("DELETE", "webhooks/{webhook_id}"): _ADMIN,
    ("POST", "webhooks/{webhook_id}/test"): _ADMIN,
}
"""By method and path below ``/api/2.0/mlflow/``."""


def narrowed(rule: Rule, asked: Any, names: frozenset[str] | None) -> Any:
    """The request, looking only in experiments that may be read.

    Args:
        names: Their numbers; None for all.
    """
    if not rule.narrow or names is None:
        return asked
    kept = [text for text in getattr(asked, rule.narrow) if _number(text) in names]
    return msgspec.structs.replace(asked, **{rule.narrow: kept})
