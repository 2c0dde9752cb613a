"""What Prometheus reads."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The measures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.responses = Counter("stage1_responses", "By path and HTTP status", ["path", "status"], registry=registry)
        self.decisions = Counter("stage1_decisions", "By kind and answer", ["decision", "answer"], registry=registry)
        self.uncovered = Counter(
            "stage1_uncovered", "Decisions on cases of certificate groups without a certificate", registry=registry
        )
        self.refusals = Counter("stage1_refusals", "Without a decision, by code", ["code"], registry=registry)
        self.seconds = Histogram(
            "stage1_request_seconds", "Time to the response", ["path"], buckets=SECONDS, registry=registry
        )
        self.forward_images = Histogram(
            "stage1_forward_images", "Images in a forward pass", buckets=IMAGES, registry=registry
        )
        self.inflight = Gauge("stage1_inflight_images", "Images taken on and not yet decided", registry=registry)
        self.failures = Counter(
            "stage1_failures", "Times that something failed: computing, log", ["what"], registry=registry
        )
        self.ready = Gauge("stage1_ready", "1 while decisions are given", registry=registry)

        # finding the child of some labels takes as long as counting in it, and there are few of them
        self._responses, self._seconds = cache(self.responses.labels), cache(self.seconds.labels)
        self._decisions, self._refusals = cache(self.decisions.labels), cache(self.refusals.labels)

    def responded(self, path: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._responses(path, str(status)).inc()
        self._seconds(path).observe(seconds)

    def decided(self, decision: str, answer: str) -> None:
        """Count a decision."""
        self._decisions(decision, answer).inc()

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refusals(code).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
