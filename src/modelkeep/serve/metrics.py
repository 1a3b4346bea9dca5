"""Counts of what was served: plain integers on the request path, Prometheus families only when somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Array

BOUNDS_MS = np.array([0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000])
_FOLD = 256


class Counters:
    """Requests, rows, errors and latencies of one version in one role at one endpoint.

    Besides: ``hits`` were answered from the cache, ``shed`` refused for want of room, ``late`` for their deadline.
    """

    __slots__ = (
        "_buckets",
        "_folding",
        "_recent",
        "_total_ms",
        "errors",
        "hits",
        "late",
        "requests",
        "rows",
        "shed",
    )

    def __init__(self) -> None:
        self.requests = self.rows = self.errors = 0
        self.hits = self.shed = self.late = 0
        self._folding = Lock()
        self._recent: deque[Array] = deque()
        self._buckets = np.zeros(len(BOUNDS_MS) + 1, dtype=np.int64)
        self._total_ms = 0.0

    def observe(self, latency: Array, rows: int) -> None:
        """Count answered requests by their latencies in milliseconds, float32; sorted into buckets later."""
        self.requests += len(latency)
        self.rows += rows
        self._recent.append(latency)
        if len(self._recent) >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        with self._folding:  # a shadow's thread and the loop may both get here
            taken = [self._recent.popleft() for _ in range(len(self._recent))]
            if taken:
                latency = np.concatenate(taken)
                self._buckets += np.bincount(BOUNDS_MS.searchsorted(latency), minlength=len(self._buckets))
                self._total_ms += float(latency.sum(dtype=np.float64))

    def histogram(self) -> tuple[list[int], float]:
        """Cumulative counts up to each bound and then all, and the sum in milliseconds."""
        self._fold()
        return np.cumsum(self._buckets).tolist(), self._total_ms


@dataclass(frozen=True, slots=True)
class Series:
    """What one version in one role at one endpoint is counted with."""

    channel: Channel
    counters: Counters

    @property
    def labels(self) -> list[str]:
        c = self.channel
        return [c.endpoint, c.model, str(c.version), c.mode]


class Exporter(Collector):
    """Renders the current series for Prometheus."""

    NAMES = ("endpoint", "model", "version", "mode")

    def __init__(self, series: Callable[[], Iterable[Series]], generation: Callable[[], int]) -> None:
        self._series = series
        self._generation = generation

    def collect(self) -> Iterator[Metric]:
        """One family per quantity."""
        names = self.NAMES
        requests = CounterMetricFamily("modelkeep_requests", "Requests answered", labels=names)
        rows = CounterMetricFamily("modelkeep_predictions", "Rows predicted", labels=names)
        errors = CounterMetricFamily("modelkeep_errors", "Requests refused or failed", labels=names)
        dropped = CounterMetricFamily("modelkeep_capture_dropped", "Rows not captured", labels=names)
        hits = CounterMetricFamily("modelkeep_cache_hits", "Requests answered from the cache", labels=names)
        shed = CounterMetricFamily("modelkeep_shed", "Requests refused because the queue was full", labels=names)
        late = CounterMetricFamily("modelkeep_late", "Requests refused after their deadline", labels=names)
        latency = HistogramMetricFamily(
            "modelkeep_request_seconds", "From the whole request to the answer", labels=names
        )
        for series in self._series():
            labels, counters = series.labels, series.counters
            requests.add_metric(labels, counters.requests)
            rows.add_metric(labels, counters.rows)
            errors.add_metric(labels, counters.errors)
            dropped.add_metric(labels, series.channel.dropped + series.channel.lost)
            hits.add_metric(labels, counters.hits)
            shed.add_metric(labels, counters.shed)
            late.add_metric(labels, counters.late)
            cumulative, total = counters.histogram()
            bounds = [str(bound / 1e3) for bound in BOUNDS_MS] + ["+Inf"]
            latency.add_metric(labels, list(zip(bounds, cumulative, strict=True)), sum_value=total / 1e3)
        generation = GaugeMetricFamily("modelkeep_generation", "Generation of the wanted state being served")
        generation.add_metric([], self._generation())
        yield from (requests, rows, errors, dropped, hits, shed, late, latency, generation)

    def render(self) -> bytes:
        """The text exposition format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)
