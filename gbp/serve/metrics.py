"""`Metrics`: the numbers that Prometheus reads at `GET /metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one server.  Names of models come from the server and never from a request.

    Parameters
    ----------
    waiting
        Returns how many requests wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "gbp_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self._explained = Counter(
            "gbp_explanations",
            "Explanations that were sent, by model and rule.",
            ["model", "rule"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "gbp_explanation_seconds",
            "Time from a request's headers to its answer, by model.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        gauge = Gauge("gbp_requests_waiting", "Requests that wait for a thread.", registry=self._registry)
        gauge.set_function(waiting)

    def request(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def explanation(self, model: str, rule: str, seconds: float) -> None:
        """Count an explanation."""
        self._explained.labels(model, rule).inc()
        self._seconds.labels(model).observe(seconds)

    def text(self) -> bytes:
        """All figures, in Prometheus' format."""
        return generate_latest(self._registry)
