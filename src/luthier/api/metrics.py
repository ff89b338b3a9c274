"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a cached read to an upload of many gigabytes.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Requests by route template, and live jobs by state; in a registry of its own: one process may hold several apps."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "luthier_http_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self._latency = Histogram(
            "luthier_http_request_seconds",
            "Time from a request's head to its answer's end",
            ("method", "route"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )

        self._jobs = Gauge("luthier_jobs", "Jobs that are not over, by state", ("state",), registry=self.registry)

        self._ledger_problems = Gauge(
            "luthier_ledger_problems",
            "What the last daily verification of the ledger found to be altered",
            registry=self.registry,
        )
        self._ledger_verified = Gauge(
            "luthier_ledger_verified_timestamp_seconds",
            "When the ledger was last verified by itself",
            registry=self.registry,
        )

    def set_ledger(self, *, problems: int, verified_at: float) -> None:
        """Say what the last verification of the ledger found, and when it was."""
        self._ledger_problems.set(problems)
        self._ledger_verified.set(verified_at)

    def set_jobs(self, counts: Mapping[str, int]) -> None:
        """Say how many jobs are in each live state now."""
        for state, count in counts.items():
            self._jobs.labels(state=state).set(count)

    def observe(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Count one request."""
        self._requests.labels(method=method, route=route, status=str(int(status))).inc()
        self._latency.labels(method=method, route=route).observe(duration_s)
