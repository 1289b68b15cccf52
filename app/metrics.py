"""The figures of the whole service for Prometheus: from the database, where workers leave theirs too."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.models import Batch, WebhookDelivery, Worker
from app.db.session import Database, unix_now
from app.db.workers import living_workers
from app.lifecycle import TERMINAL, BatchStatus
from app.metric_names import COUNTERS, GAUGES, HISTOGRAMS
from app.storage import Storage

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is of no use to anybody here

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

# name: (help, label)
SERVICE_GAUGES: dict[str, tuple[str, str | None]] = {
    "batchllm_database_up": (
        "1 if the database answers; if not, little else is shown.",
        None,
    ),
    "batchllm_batches": ("Batches by status.", "status"),
    "batchllm_batches_waiting": ("Batches in progress that no worker holds and that are not paused.", None),
    "batchllm_lines": (
        "Lines of the batches that have not ended: waiting, completed or failed.",
        "state",
    ),
    "batchllm_leases": ("Batches that a worker holds: held, or overdue without a renewal.", "state"),
    "batchllm_worker_deaths": ("Workers that died while they held a batch that has not ended.", None),
    "batchllm_workers": ("Workers that gave a sign of life lately.", None),
    "batchllm_webhook_deliveries_waiting": ("Webhooks that are still to be delivered.", None),
    "batchllm_storage_free_bytes": ("Free space on the data directory's disk, where files are in it.", None),
}


class HttpFigures:
    """What the api has answered, by method and status. The method of a stranger's making is `other`."""

    NAME, HELP, LABELS = "batchllm_http_requests", "Requests answered.", ("method", "status")

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(self.NAME, self.HELP, self.LABELS, registry=self.registry)

    def answered(self, method: str, status: int) -> None:
        self._requests.labels(method if method in _METHODS else "other", str(status)).inc()


class ServiceCollector(Collector):
    """Reads the figures anew whenever it is asked."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    def collect(self) -> Iterator[Metric]:
        try:
            with self._database.read() as session:
                values = _service_values(session)
                workers = living_workers(session)
        except SQLAlchemyError:
            values, workers = {"batchllm_database_up": {None: 0.0}}, ()
        free_bytes = self._storage.free_bytes()
        values["batchllm_storage_free_bytes"] = {} if free_bytes is None else {None: float(free_bytes)}
        for name, (help, label) in SERVICE_GAUGES.items():
            yield _gauge(name, help, label, values.get(name, {}))
        yield from worker_families(workers)


def registry(database: Database, storage: Storage, http: HttpFigures) -> CollectorRegistry:
    """All that /metrics shows; `http` keeps counting."""
    ProcessCollector(registry=http.registry)
    http.registry.register(ServiceCollector(database, storage))
    return http.registry


def worker_families(workers: Iterable[Worker]) -> Iterator[Metric]:
    """Families of app/metric_names.py, with a sample for every worker."""
    told = [(worker.id, worker.figures) for worker in workers if worker.figures is not None]
    labels = ["worker"]
    for name, help in COUNTERS.items():
        counter = CounterMetricFamily(f"batchllm_worker_{name}", help, labels=labels)
        for worker_id, figures in told:
            counter.add_metric([worker_id], figures.get(name, 0))
        yield counter
    for name, help in GAUGES.items():
        gauge = GaugeMetricFamily(f"batchllm_worker_{name}", help, labels=labels)
        for worker_id, figures in told:
            gauge.add_metric([worker_id], figures.get(name, 0))
        yield gauge
    for name, (help, bounds) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"batchllm_worker_{name}", help, labels=labels)
        for worker_id, figures in told:
            if name in figures:
                total = figures[name]["total"]
                histogram.add_metric([worker_id], _buckets(bounds, figures[name]["counts"]), total)
        yield histogram


def _buckets(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """As Prometheus wants them: each holds all that is not above its bound."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, accumulate(counts), strict=True)]


def _gauge(name: str, help: str, label: str | None, values: dict[str | None, float]) -> Metric:
    gauge = GaugeMetricFamily(name, help, labels=[] if label is None else [label])
    for key, value in values.items():
        gauge.add_metric([] if key is None else [key], value)
    return gauge


def _service_values(session: Session) -> dict[str, dict[str | None, float]]:
    """By metric and label. Values of what has not ended only, where the table could be long."""
    listed = ~Batch.is_direct
    counted = session.execute(select(Batch.status, func.count()).where(listed).group_by(Batch.status))
    by_status = {row[0]: row[1] for row in counted}
    sums = select(func.sum(Batch.total), func.sum(Batch.completed), func.sum(Batch.failed))
    lives = listed & Batch.status.not_in(TERMINAL)
    total, completed, failed = (int(value or 0) for value in session.execute(sums.where(lives)).one())
    is_held = listed & Batch.lease_owner.is_not(None)
    is_overdue = Batch.lease_expires_at <= unix_now()
    waits = (
        listed
        & (Batch.status == BatchStatus.IN_PROGRESS)
        & Batch.lease_owner.is_(None)
        & Batch.paused_at.is_(None)
    )
    deaths = session.scalar(select(func.sum(Batch.deaths)).where(lives))
    return {
        "batchllm_database_up": {None: 1.0},
        "batchllm_batches": {status.value: float(by_status.get(status, 0)) for status in BatchStatus},
        "batchllm_batches_waiting": {None: _count(session, Batch, waits)},
        "batchllm_lines": {
            "waiting": float(total - completed - failed),
            "completed": float(completed),
            "failed": float(failed),
        },
        "batchllm_leases": {
            "held": _count(session, Batch, is_held & ~is_overdue),
            "overdue": _count(session, Batch, is_held & is_overdue),
        },
        "batchllm_worker_deaths": {None: float(deaths or 0)},
        "batchllm_workers": {None: float(len(living_workers(session)))},
        "batchllm_webhook_deliveries_waiting": {
            None: _count(session, WebhookDelivery, WebhookDelivery.next_attempt_at.is_not(None))
        },
    }


def _count(session: Session, table: type[Batch] | type[WebhookDelivery], where: Any) -> float:
    return float(session.scalar(select(func.count()).select_from(table).where(where)) or 0)
