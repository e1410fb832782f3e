"""What the service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "shelftwin_requests", "Answered requests by route and HTTP status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "shelftwin_request_seconds", "From a request's first byte to its answer.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.photos = Counter("shelftwin_photos", "Labelled photos by label.", ["label"], registry=registry)
        self.batches = Histogram(
            "shelftwin_batch_photos", "Photos that a twin computed together.", ["twin"],
            buckets=BATCHES, registry=registry,
        )  # fmt: skip
        self.disagreements = Counter(
            "shelftwin_twin_disagreements", "Photos that the twins labelled differently, as printed.", registry=registry
        )
        self.difference = Gauge(
            "shelftwin_twin_largest_difference", "Largest difference of the twins' probabilities.", registry=registry
        )
        self.waiting = Gauge(
            "shelftwin_waiting_photos", "Photos that are accepted and not answered.", registry=registry
        )
        self.received = Gauge("shelftwin_received_bytes", "Bytes of requests that are in memory.", registry=registry)
        self.ready = Gauge("shelftwin_twin_ready", "1 if the twin can answer.", ["twin"], registry=registry)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
