"""/metrics and the probes, on a port of their own: for those who run the service, not for its users."""

from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api import health
from app.api.deps import Service
from app.api.errors import install_error_handlers
from app.metrics import HttpFigures, registry


def create_ops_app(service: Service, http: HttpFigures) -> FastAPI:
    """Needs no key: its figures name no tenant, batch or line."""
    app = FastAPI(title="BatchLLM operations", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    figures = registry(service.database, service.storage, http)
    router = APIRouter()

    @router.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(figures), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
    app.include_router(health.router)
    install_error_handlers(app)
    return app
