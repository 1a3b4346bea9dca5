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

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from modelkeep.core.errors import Invalid
from modelkeep.serve.metrics import BOUNDS_MS, Series, Totals

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


class _Line(NamedTuple):
    """A series with its sums."""

    series: Series
    totals: Totals

    @property
    def ours(self) -> _Labels:
        c = self.series.channel
        return {"endpoint": c.endpoint, "model": c.model, "version": str(c.version), "mode": c.mode}

    @property
    def theirs(self) -> _Labels:
        return {"model": self.series.channel.endpoint, "version": str(self.series.channel.version)}

    @property
    def failures(self) -> int:
        """Requests refused or failed, for whatever reason."""
        counters = self.series.counters
        return counters.errors + counters.shed + counters.late


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
        series: What is counted.
        generation: Of the wanted state that is served.
        others: Whose names to use besides ours.

    Raises:
        Invalid: Of ``others`` one is not known.
    """

    def __init__(
        self, series: Callable[[], Iterable[Series]], generation: Callable[[], int], others: Sequence[str] = ()
    ) -> None:
        self._series = series
        self._generation = generation
        self._others = [_OTHERS[name] for name in names(",".join(others))]

    def render(self) -> bytes:
        """The text exposition format."""
        lines = [_Line(series, series.counters.totals()) for series in self._series()]
        families = [
            *_ours(lines),
            Family("modelkeep_generation", "gauge", _GENERATION, [("", {}, self._generation())]),
        ]
        answering = [line for line in lines if line.series.channel.mode != "shadow"]
        for other in self._others:
            families += other(answering)
        return "".join(_rendered(family) for family in families).encode()


_GENERATION: Final = "Generation of the wanted state being served"


def _ours(lines: Sequence[_Line]) -> Iterator[Family]:
    counts: dict[str, tuple[str, Callable[[_Line], float]]] = {
        "requests": ("Requests answered", lambda line: line.series.counters.requests),
        "predictions": ("Rows predicted", lambda line: line.series.counters.rows),
        "batches": ("Runs of the model", lambda line: line.totals.batches),
        "errors": ("Requests refused or failed", lambda line: line.series.counters.errors),
        "shed": ("Requests refused because the queue was full", lambda line: line.series.counters.shed),
        "late": ("Requests refused after their deadline", lambda line: line.series.counters.late),
        "cache_hits": ("Requests answered from the cache", lambda line: line.series.counters.hits),
        "capture_dropped": (
            "Rows not captured",
            lambda line: line.series.channel.dropped + line.series.channel.lost,
        ),
        "queue_seconds": ("Requests' time before their batch began", lambda line: line.totals.queue),
        "infer_seconds": ("Requests' time in the model", lambda line: line.totals.infer),
    }
    for name, (text, value) in counts.items():
        samples = [("", line.ours, value(line)) for line in lines]
        yield Family(f"modelkeep_{name}_total", "counter", text, samples)
    text = "From the whole request to the answer"
    samples = [one for line in lines for one in _histogram(line.ours, line.totals, 1e-3)]
    yield Family("modelkeep_request_seconds", "histogram", text, samples)


def _histogram(labels: _Labels, totals: Totals, unit: float) -> Iterator[_Sample]:
    """Samples of the latencies; ``unit`` is a millisecond's worth."""
    for bound, count in zip([*(BOUNDS_MS * unit).tolist(), None], totals.buckets, strict=True):
        yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:.12g}"}, count
    yield "_count", labels, totals.buckets[-1]
    yield "_sum", labels, totals.seconds * 1e3 * unit


def _triton(lines: Sequence[_Line]) -> Iterator[Family]:
    counts: dict[str, tuple[str, Callable[[_Line], float]]] = {
        "request_success": (
            "successful inference requests, all batch sizes",
            lambda n: n.series.counters.requests,
        ),
        "count": ("inferences performed (a batch of n counts as n)", lambda n: n.series.counters.rows),
        "exec_count": ("model executions performed", lambda n: n.totals.batches),
        "request_duration_us": ("Cumulative inference request duration", lambda n: n.totals.seconds * 1e6),
        "queue_duration_us": ("Cumulative inference queuing duration", lambda n: n.totals.queue * 1e6),
        "compute_input_duration_us": ("Cumulative compute input duration", lambda n: n.totals.input * 1e6),
        "compute_infer_duration_us": ("Cumulative compute inference duration", lambda n: n.totals.infer * 1e6),
        "compute_output_duration_us": ("Cumulative compute output duration", lambda n: n.totals.output * 1e6),
    }
    for name, (text, value) in counts.items():
        unit = " in microseconds" if name.endswith("_us") else ""
        text = f"{text}{unit}" if unit else f"Number of {text}"
        samples = [("", line.theirs, int(value(line))) for line in lines]
        yield Family(f"nv_inference_{name}", "counter", text, samples)
    failures = [
        ("", {**line.theirs, "reason": reason}, count)
        for line in lines
        for reason, count in (
            ("REJECTED", line.series.counters.shed + line.series.counters.late),
            ("OTHER", line.series.counters.errors),
        )
    ]
    text = "Number of failed inference requests, all batch sizes"
    yield Family("nv_inference_request_failure", "counter", text, failures)
    pending = [("", line.theirs, max(0, line.series.channel.begun - line.series.channel.ended)) for line in lines]
    text = "Instantaneous number of pending requests awaiting execution per-model"
    yield Family("nv_inference_pending_request_count", "gauge", text, pending)
    hits = [("", line.theirs, line.series.counters.hits) for line in lines]
    yield Family("nv_cache_num_hits_per_model", "counter", "Number of cache hits per model", hits)


def _tfserving(lines: Sequence[_Line]) -> Iterator[Family]:
    """By model, as theirs are. The data plane knows no doors: every request counts as Predict over REST."""
    models: dict[str, list[_Line]] = {}
    for line in lines:
        models.setdefault(line.series.channel.endpoint, []).append(line)
    counts: list[_Sample] = []
    latencies: list[_Sample] = []
    for model, mine in models.items():
        answered = sum(line.series.counters.requests for line in mine)
        counts.append(("", {"model_name": model, "status": "OK"}, answered))
        invalid = sum(line.series.counters.errors for line in mine)
        counts.append(("", {"model_name": model, "status": "INVALID_ARGUMENT"}, invalid))
        refused = sum(line.series.counters.shed for line in mine)
        counts.append(("", {"model_name": model, "status": "RESOURCE_EXHAUSTED"}, refused))
        late = sum(line.series.counters.late for line in mine)
        counts.append(("", {"model_name": model, "status": "DEADLINE_EXCEEDED"}, late))
        buckets = [sum(column) for column in zip(*(line.totals.buckets for line in mine), strict=True)]
        together = mine[0].totals._replace(buckets=buckets, seconds=sum(line.totals.seconds for line in mine))
        latencies += _histogram({"model_name": model, "API": "Predict", "entrypoint": "REST"}, together, 1e3)
    yield Family(":tensorflow:serving:request_count", "counter", "The total number of requests.", counts)
    text = "Distribution of wall time (in microseconds) for Tensorflow Serving requests."
    yield Family(":tensorflow:serving:request_latency", "histogram", text, latencies)


def _mlserver(lines: Sequence[_Line]) -> Iterator[Family]:
    success = [("", line.theirs, line.series.counters.requests) for line in lines]
    yield Family("model_infer_request_success_total", "counter", "Model infer request success count", success)
    failure = [("", line.theirs, line.failures) for line in lines]
    yield Family("model_infer_request_failure_total", "counter", "Model infer request failure count", failure)
    duration = [
        (suffix, line.theirs, value)
        for line in lines
        for suffix, value in (("_count", line.totals.buckets[-1]), ("_sum", line.totals.seconds))
    ]
    yield Family("model_infer_request_duration", "summary", "Model infer request duration", duration)


_OTHERS: Final[dict[str, Callable[[Sequence[_Line]], Iterator[Family]]]] = {
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
