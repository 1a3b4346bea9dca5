"""Metrics in Prometheus' text format 0.0.4: our own names, and those that dashboards of other servers know.

``MODELKEEP_METRICS`` names the others, separated by commas: ``triton``, ``tfserving``, ``mlserver``. Ours come
always. In the others' names a model is what clients address, an endpoint, and shadows, which answer nobody, are
left out.

https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
https://www.tensorflow.org/tfx/serving/serving_config#monitoring_configuration
https://mlserver.readthedocs.io/en/latest/user-guide/metrics.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from modelkeep.core.errors import Invalid
from modelkeep.serve.metrics import BOUNDS_MS, Totals, together

VARIABLE: Final = "MODELKEEP_METRICS"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Labels = dict[str, str]
_Sample = tuple[str, _Labels, float]
"""What follows the family's name, the labels, the value."""


class Family(NamedTuple):
    """One metric.

    Attributes:
        kind: ``counter``, ``gauge``, ``histogram`` or ``summary``.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[_Sample]


def _labels(line: Totals) -> _Labels:
    return {"endpoint": line.endpoint, "model": line.model, "version": str(line.version), "mode": line.mode}


def _theirs(line: Totals) -> _Labels:
    return {"model": line.endpoint, "version": str(line.version)}


def names(text: str) -> tuple[str, ...]:
    """The sets of names that ``MODELKEEP_METRICS`` asks for.

    Raises:
        Invalid: One of them is not known.
    """
    found = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in found:
        if name not in _OTHERS:
            known = ", ".join(_OTHERS)
            raise Invalid(f"{name[:40]!r} is no set of metric names; expected some of {known}", path=VARIABLE)
    return found


class Exporter:
    """Renders what is served now.

    Args:
        series: What was counted.
        generation: Of the wanted state that is served.
        unloads: How many models of this process left memory, by reason.
        apart: How the processes of versions stand that do not run in this one, with their labels.
        others: Whose names to use besides ours.

    Raises:
        Invalid: Of ``others`` one is not known.
    """

    def __init__(
        self,
        series: Callable[[], Iterable[Totals]],
        generation: Callable[[], int],
        others: Sequence[str] = (),
        apart: Callable[[], Sequence[tuple[_Labels, Mapping[str, Any]]]] = tuple,
        unloads: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._series = series
        self._apart = apart
        self._unloads = unloads
        self._generation = generation
        self._others = [_OTHERS[name] for name in names(",".join(others))]

    def render(self) -> bytes:
        """The text exposition format."""
        lines = list(self._series())
        families = [
            *_ours(lines),
            Family("modelkeep_generation", "gauge", _GENERATION, [("", {}, self._generation())]),
            *_processes(self._apart()),
            Family(
                "modelkeep_unloads_total",
                "counter",
                "Models that left memory: for the budget, or because the machine had too little left",
                [("", {"reason": reason}, count) for reason, count in self._unloads().items()],
            ),
        ]
        # their names know no roles: what was a canary and is stable now is one line
        answering = together(
            msgspec.structs.replace(line, model="", mode="") for line in lines if line.mode != "shadow"
        )
        for other in self._others:
            families += other(answering)
        return "".join(_rendered(family) for family in families).encode()


_GENERATION: Final = "Generation of the wanted state being served"


def _ours(lines: Sequence[Totals]) -> Iterator[Family]:
    counts: dict[str, tuple[str, Callable[[Totals], float]]] = {
        "requests": ("Requests answered", lambda line: line.requests),
        "predictions": ("Rows predicted", lambda line: line.rows),
        "batches": ("Runs of the model", lambda line: line.batches),
        "errors": ("Requests refused or failed", lambda line: line.errors),
        "shed": ("Requests refused because the queue was full", lambda line: line.shed),
        "late": ("Requests refused after their deadline", lambda line: line.late),
        "cache_hits": ("Requests answered from the cache", lambda line: line.hits),
        "capture_dropped": (
            "Rows not captured",
            lambda line: line.dropped,
        ),
        "queue_seconds": ("Requests' time before their batch began", lambda line: line.queue),
        "infer_seconds": ("Requests' time in the model", lambda line: line.infer),
    }
    for name, (text, value) in counts.items():
        samples = [("", _labels(line), value(line)) for line in lines]
        yield Family(f"modelkeep_{name}_total", "counter", text, samples)
    text = "From the whole request to the answer"
    samples = [one for line in lines for one in _histogram(_labels(line), line, 1e-3)]
    yield Family("modelkeep_request_seconds", "histogram", text, samples)


def _processes(found: Sequence[tuple[_Labels, Mapping[str, Any]]]) -> Iterator[Family]:
    """Of versions that run in processes of their own; nothing when there are none."""
    if not found:
        return
    memory = [
        ("", {**labels, "pid": str(process["pid"])}, process["pss_bytes"])
        for labels, status in found
        for process in status["processes"]
    ]
    yield Family(
        "modelkeep_process_memory_bytes", "gauge", "Of a version's process; shared pages by share", memory
    )
    restarts = [("", labels, status.get("restarts", 0)) for labels, status in found]
    yield Family("modelkeep_process_restarts_total", "counter", "Processes of a version started again", restarts)


def _histogram(labels: _Labels, totals: Totals, unit: float) -> Iterator[_Sample]:
    """Samples of the latencies; ``unit`` is a millisecond's worth."""
    for bound, count in zip([*(BOUNDS_MS * unit).tolist(), None], totals.buckets, strict=True):
        yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:.12g}"}, count
    yield "_count", labels, totals.buckets[-1]
    yield "_sum", labels, totals.seconds * 1e3 * unit


def _triton(lines: Sequence[Totals]) -> Iterator[Family]:
    counts: dict[str, tuple[str, Callable[[Totals], float]]] = {
        "request_success": (
            "successful inference requests, all batch sizes",
            lambda n: n.requests,
        ),
        "count": ("inferences performed (a batch of n counts as n)", lambda n: n.rows),
        "exec_count": ("model executions performed", lambda n: n.batches),
        "request_duration_us": ("Cumulative inference request duration", lambda n: n.seconds * 1e6),
        "queue_duration_us": ("Cumulative inference queuing duration", lambda n: n.queue * 1e6),
        "compute_input_duration_us": ("Cumulative compute input duration", lambda n: n.input * 1e6),
        "compute_infer_duration_us": ("Cumulative compute inference duration", lambda n: n.infer * 1e6),
        "compute_output_duration_us": ("Cumulative compute output duration", lambda n: n.output * 1e6),
    }
    for name, (text, value) in counts.items():
        unit = " in microseconds" if name.endswith("_us") else ""
        text = f"{text}{unit}" if unit else f"Number of {text}"
        samples = [("", _theirs(line), int(value(line))) for line in lines]
        yield Family(f"nv_inference_{name}", "counter", text, samples)
    failures = [
        ("", {**_theirs(line), "reason": reason}, count)
        for line in lines
        for reason, count in (
            ("REJECTED", line.shed + line.late),
            ("OTHER", line.errors),
        )
    ]
    text = "Number of failed inference requests, all batch sizes"
    yield Family("nv_inference_request_failure", "counter", text, failures)
    pending = [("", _theirs(line), line.pending) for line in lines]
    text = "Instantaneous number of pending requests awaiting execution per-model"
    yield Family("nv_inference_pending_request_count", "gauge", text, pending)
    hits = [("", _theirs(line), line.hits) for line in lines]
    yield Family("nv_cache_num_hits_per_model", "counter", "Number of cache hits per model", hits)


def _tfserving(lines: Sequence[Totals]) -> Iterator[Family]:
    """By model, as theirs are. The data plane knows no doors: every request counts as Predict over REST."""
    counts: list[_Sample] = []
    latencies: list[_Sample] = []
    for line in together(msgspec.structs.replace(line, version=0) for line in lines):
        model = {"model_name": line.endpoint}
        counts += [
            ("", {**model, "status": status}, count)
            for status, count in (
                ("OK", line.requests),
                ("INVALID_ARGUMENT", line.errors),
                ("RESOURCE_EXHAUSTED", line.shed),
                ("DEADLINE_EXCEEDED", line.late),
            )
        ]
        latencies += _histogram({**model, "API": "Predict", "entrypoint": "REST"}, line, 1e3)
    yield Family(":tensorflow:serving:request_count", "counter", "The total number of requests.", counts)
    text = "Distribution of wall time (in microseconds) for Tensorflow Serving requests."
    yield Family(":tensorflow:serving:request_latency", "histogram", text, latencies)


def _mlserver(lines: Sequence[Totals]) -> Iterator[Family]:
    success = [("", _theirs(line), line.requests) for line in lines]
    yield Family("model_infer_request_success_total", "counter", "Model infer request success count", success)
    failure = [("", _theirs(line), line.failures) for line in lines]
    yield Family("model_infer_request_failure_total", "counter", "Model infer request failure count", failure)
    duration = [
        (suffix, _theirs(line), value)
        for line in lines
        for suffix, value in (("_count", line.buckets[-1]), ("_sum", line.seconds))
    ]
    yield Family("model_infer_request_duration", "summary", "Model infer request duration", duration)


_OTHERS: Final[dict[str, Callable[[Sequence[Totals]], Iterator[Family]]]] = {
    "triton": _triton,
    "tfserving": _tfserving,
    "mlserver": _mlserver,
}


def _rendered(family: Family) -> str:
    parts = [f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"]
    for suffix, labels, value in family.samples:
        shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        parts.append(
            f"{family.name}{suffix}{{{shown}}} {value}\n" if shown else f"{family.name}{suffix} {value}\n"
        )
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
