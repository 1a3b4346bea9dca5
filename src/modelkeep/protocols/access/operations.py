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

from modelkeep.protocols.access import touching
from modelkeep.registry.access_places import Where

Touch = Callable[[Connection, Any], Iterable[Where]]
"""The things an operation touches, from its request."""


class Rule(Struct, frozen=True):
    """What an operation needs.

    Attributes:
        right: On all that it touches.
        touches: How to find that. Nothing found, nothing needed: the operation will say that it is not there.
        also: Further rights: what is needed for the files or models a request refers to.
        narrow: Whether ``experiment_ids`` (and ``locations``) say where to look: only what may be read is kept.
        all: With ``narrow``: naming no experiment means all.
        any: One of the touched things is enough.
        shows: Whether it is a search over everything, which shows only what may be read.
        everywhere: Whether the right is needed on everything.
    """

    right: str
    touches: tuple[Touch, ...] = ()
    also: tuple[tuple[str, Touch], ...] = ()
    narrow: bool = False
    all: bool = False
    any: bool = False
    shows: bool = False
    everywhere: bool = False


_READ_RUN = Rule("read", (touching.run,))
_WRITE_RUN = Rule("write", (touching.run,))
_WRITE_EXPERIMENT = Rule("write", (touching.experiment,))
_READ_MODEL = Rule("read", (touching.model,))
_WRITE_MODEL = Rule("write", (touching.model,))
_DEPLOY_MODEL = Rule("deploy", (touching.model,))
_WRITE_LOGGED = Rule("write", (touching.logged,))
_WITHIN = Rule("read", narrow=True)
_SHOWN = Rule("read", shows=True)
_READ_TRACE = Rule("read", (touching.trace,))
_WRITE_TRACE = Rule("write", (touching.trace,))
_READ_TRACES = Rule("read", (touching.traces,))
_READ_DATASET = Rule("read", (touching.dataset,), any=True)
_WRITE_DATASET = Rule("write", (touching.dataset,))
_MOVE_DATASET = Rule("write", (touching.dataset, touching.experiments))
_ANY_DATASET = Rule("read", narrow=True, all=True)
_ADMIN = Rule("admin", everywhere=True)
_TAG_VERSION = Rule("write", (touching.unless_approval,), (("approve", touching.approval),))

RULES: Mapping[tuple[str, str], Rule] = {
    ("POST", "experiments/create"): Rule("write", (touching.new_experiment,)),
    ("GET", "experiments/get"): Rule("read", (touching.experiment,)),
    ("GET", "experiments/get-by-name"): Rule("read", (touching.experiment_name,)),
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
    ("POST", "runs/log-metric"): Rule("write", (touching.run, touching.logged)),
    ("POST", "runs/log-parameter"): _WRITE_RUN,
    ("POST", "runs/set-tag"): _WRITE_RUN,
    ("POST", "runs/delete-tag"): _WRITE_RUN,
    ("POST", "runs/log-batch"): Rule("write", (touching.run, touching.logged_of_metrics)),
    ("POST", "runs/log-model"): _WRITE_RUN,
    ("POST", "runs/log-inputs"): Rule("write", (touching.run,), (("read", touching.logged_of_models),)),
    ("POST", "runs/outputs"): Rule("write", (touching.run,), (("read", touching.logged_of_models),)),
    ("POST", "runs/search"): _WITHIN,
    ("GET", "metrics/get-history"): _READ_RUN,
    ("GET", "metrics/get-history-bulk"): Rule("read", (touching.runs,)),
    ("GET", "metrics/get-history-bulk-interval"): Rule("read", (touching.runs,)),
    ("POST", "registered-models/create"): _WRITE_MODEL,
    ("GET", "registered-models/get"): _READ_MODEL,
    ("POST", "registered-models/rename"): Rule("write", (touching.model, touching.new_name)),
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
        "write",
        (touching.model,),
        (
            ("read", touching.source),
            ("read", touching.source_run),
            ("read", touching.logged),
            ("approve", touching.approval),
        ),
    ),
    ("GET", "model-versions/get"): _READ_MODEL,
    ("PATCH", "model-versions/update"): _WRITE_MODEL,
    ("POST", "model-versions/transition-stage"): _DEPLOY_MODEL,
    ("DELETE", "model-versions/delete"): _WRITE_MODEL,
    ("GET", "model-versions/search"): _SHOWN,
    ("GET", "model-versions/get-download-uri"): _READ_MODEL,
    ("POST", "model-versions/set-tag"): _TAG_VERSION,
    ("DELETE", "model-versions/delete-tag"): _TAG_VERSION,
    ("POST", "logged-models"): Rule("write", (touching.experiment,), (("read", touching.source_run),)),
    ("POST", "logged-models/search"): _WITHIN,
    ("GET", "logged-models/{model_id}"): Rule("read", (touching.logged,)),
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
    ("POST", "traces"): Rule("write", (touching.new_trace,)),
    ("PATCH", "traces/{request_id}"): _WRITE_TRACE,
    ("GET", "traces"): _WITHIN,
    ("GET", "unified-traces"): _WITHIN,
    ("POST", "traces/search"): _WITHIN,
    ("POST", "traces/metrics"): _WITHIN,
    ("POST", "traces/calculate-filter-correlation"): _WITHIN,
    ("GET", "traces/get"): _READ_TRACE,
    ("GET", "traces/batchGet"): _READ_TRACES,
    ("POST", "traces/batchGetInfos"): _READ_TRACES,
    ("GET", "traces/{trace_id}"): _READ_TRACE,
    ("GET", "traces/{trace_id}/info"): _READ_TRACE,
    ("PATCH", "traces/{request_id}/tags"): _WRITE_TRACE,
    ("DELETE", "traces/{request_id}/tags"): _WRITE_TRACE,
    ("POST", "traces/delete-traces"): Rule("write", (touching.experiment, touching.traces)),
    ("POST", "traces/link-to-run"): Rule("write", (touching.run, touching.traces)),
    ("POST", "traces/link-prompts"): _WRITE_TRACE,
    ("POST", "traces/{trace_id}/assessments"): _WRITE_TRACE,
    ("GET", "traces/{trace_id}/assessments/{assessment_id}"): _READ_TRACE,
    ("PATCH", "traces/{trace_id}/assessments/{assessment_id}"): _WRITE_TRACE,
    ("DELETE", "traces/{trace_id}/assessments/{assessment_id}"): _WRITE_TRACE,
    ("POST", "datasets/create"): Rule("write", (touching.experiments,)),
    ("GET", "datasets/{dataset_id}"): _READ_DATASET,
    ("DELETE", "datasets/{dataset_id}"): _WRITE_DATASET,
    ("POST", "datasets/search"): _ANY_DATASET,
    ("GET", "datasets/search"): _ANY_DATASET,
    ("PATCH", "datasets/{dataset_id}/tags"): _WRITE_DATASET,
    ("DELETE", "datasets/{dataset_id}/tags/{key}"): _WRITE_DATASET,
    ("POST", "datasets/{dataset_id}/records"): _WRITE_DATASET,
    ("GET", "datasets/{dataset_id}/records"): _READ_DATASET,
    ("DELETE", "datasets/{dataset_id}/records"): _WRITE_DATASET,
    ("GET", "datasets/{dataset_id}/experiment-ids"): _READ_DATASET,
    ("POST", "datasets/{dataset_id}/add-experiments"): _MOVE_DATASET,
    ("POST", "datasets/{dataset_id}/remove-experiments"): _MOVE_DATASET,
}
"""By method and path below ``/api/2.0/mlflow/``."""


NOWHERE = "9" * 18
"""The number of an experiment that there is not: where those look who may look nowhere."""


def narrowed(rule: Rule, asked: Any, names: frozenset[str] | None) -> Any:
    """The request, looking only in experiments that may be read.

    Args:
        names: Their numbers; None for all.
    """
    if names is None:
        return asked
    kept = [text for text in asked.experiment_ids if touching.number(text) in names]
    if rule.all and not asked.experiment_ids:
        kept = sorted(names)
    if not hasattr(asked, "locations"):
        return msgspec.structs.replace(asked, experiment_ids=kept or [NOWHERE])
    places = [
        place
        for place in asked.locations
        if place.mlflow_experiment and touching.number(place.mlflow_experiment.experiment_id) in names
    ]
    return msgspec.structs.replace(asked, locations=places, experiment_ids=kept or ([] if places else [NOWHERE]))
