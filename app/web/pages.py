"""The pages. What they show and do is the API's; here it only gets a face."""

import time
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api import batches as api
from app.api.bodies import ENDPOINTS
from app.api.deps import may_be_id
from app.api.errors import ApiError, not_found
from app.api.files import file_content
from app.api.progress import progress_of
from app.api.results import stream_results
from app.api.schemas import BatchObject
from app.db.batches import get_batch
from app.db.files import live_file
from app.db.keys import find_tenant
from app.db.telemetry import get_telemetry
from app.lifecycle import CANCELLABLE, TERMINAL
from app.web.failures import kinds_of_failure
from app.web.plots import draw_series
from app.web.submit import submit_job
from app.web.tree import draw_tree
from app.web.visitor import Anyone, Known, Visitor

router = APIRouter(default_response_class=Response)

JOBS_A_PAGE = 25

_ACTIONS = {
    "cancel": api.cancel_batch,
    "pause": api.pause_batch,
    "resume": api.resume_batch,
    "retry": api.retry_batch,
}


@router.get("/")
def home(visitor: Known, after: str | None = None) -> Response:
    return visitor.page("jobs.html", **_jobs(visitor, after))


@router.get("/jobs")
def job_rows(visitor: Known, after: str | None = None) -> Response:
    """The table alone, for whoever has the page open."""
    return visitor.page("job_rows.html", **_jobs(visitor, after))


@router.get("/new")
def new_job(visitor: Known) -> Response:
    return _new_page(visitor)


@router.post("/new")
async def create_job(visitor: Known) -> Response:
    try:
        batch = await submit_job(visitor)
    except ApiError as error:
        if error.status == 403:
            raise
        return await run_in_threadpool(_new_page, visitor, error)
    return visitor.redirect(f"/jobs/{batch.id}")


@router.get("/jobs/{batch_id}")
def job(visitor: Known, batch_id: str) -> Response:
    return visitor.page("job.html", **_job(visitor, batch_id))


@router.get("/jobs/{batch_id}/live")
def job_live(visitor: Known, batch_id: str, seen: str = "") -> Response:
    """What changes while a job runs. Another state than the page was drawn for: the page is loaded anew."""
    values = _job(visitor, batch_id)
    response = visitor.page("job_live.html", **values)
    if seen != values["state"]:
        response.headers["HX-Refresh"] = "true"
    return response


@router.post("/jobs/{batch_id}/{action}")
async def act(
    visitor: Known, batch_id: str, action: Literal["cancel", "pause", "resume", "retry"]
) -> Response:
    await visitor.form()
    batch = await run_in_threadpool(_ACTIONS[action], visitor.service, batch_id)
    return visitor.redirect(f"/jobs/{batch.id}")


@router.get("/jobs/{batch_id}/results.jsonl")
def results(visitor: Known, batch_id: str) -> Response:
    """What there is so far."""
    response = stream_results(visitor.service, batch_id)
    response.headers["content-disposition"] = f'attachment; filename="{batch_id}_results.jsonl"'
    return response


@router.get("/jobs/{batch_id}/{kind}.jsonl")
def file(visitor: Known, batch_id: str, kind: Literal["input", "output", "error"]) -> Response:
    batch = _batch(visitor, batch_id)
    file_id = getattr(batch, f"{kind}_file_id")
    if file_id is None:
        raise not_found("This job has no such file.")
    return file_content(visitor.request, visitor.service, file_id)


@router.get("/login")
def login_page(visitor: Anyone) -> Response:
    if visitor.owner is not None:
        return visitor.redirect("/")
    return visitor.page("login.html", problem=None)


@router.post("/login")
async def login(visitor: Anyone) -> Response:
    fields = await visitor.form()
    key_id = await run_in_threadpool(_key_id, visitor, fields.get("key", "").strip())
    if key_id is None:
        return visitor.page("login.html", 401, problem="This is no API key in use here.")
    # A new session: what a stranger may have known of the old one is of no use.
    return _as(visitor, key_id).redirect("/")


@router.post("/logout")
async def logout(visitor: Anyone) -> Response:
    await visitor.form()
    return _as(visitor, None).redirect("/login")


def _key_id(visitor: Visitor, text: str) -> str | None:
    with visitor.service.database.read() as session:
        tenant = find_tenant(session, text)
        return None if tenant is None or tenant.key is None else tenant.key.id


def _as(visitor: Visitor, key_id: str | None) -> Visitor:
    session = visitor.sessions.start(key_id)
    return Visitor(visitor.request, visitor.service, visitor.sessions, session, None)


def _new_page(visitor: Visitor, problem: ApiError | None = None) -> Response:
    limit = visitor.service.settings.max_file_bytes
    return visitor.page(
        "new.html",
        200 if problem is None else problem.status,
        problem=problem,
        endpoints=ENDPOINTS,
        max_bytes=limit,
        models=visitor.service.settings.served_models,
    )


def _jobs(visitor: Visitor, after: str | None) -> dict[str, Any]:
    listed = api.list_batches(visitor.request, visitor.service, after, JOBS_A_PAGE)
    names = {}
    with visitor.service.database.read() as session:
        for batch in listed.data:
            row = get_batch(session, batch.id)
            batch.progress = None if row is None else progress_of(session, row)
            source = live_file(session, batch.input_file_id)
            names[batch.id] = None if source is None else source.filename
    return {
        "jobs": listed.data,
        "names": names,
        "has_more": listed.has_more,
        "last_id": listed.last_id,
        "after": after,
    }


def _batch(visitor: Visitor, batch_id: str) -> BatchObject:
    return api.retrieve_batch(visitor.service, batch_id)


def _job(visitor: Visitor, batch_id: str) -> dict[str, Any]:
    batch = _batch(visitor, batch_id)
    with visitor.service.database.read() as session:
        told = get_telemetry(session, batch_id) if may_be_id(batch_id) else None
        failures = kinds_of_failure(session, batch_id) if batch.request_counts.failed else []
        files = {
            kind: live_file(session, file_id) if file_id else None
            for kind, file_id in (
                ("input", batch.input_file_id),
                ("output", batch.output_file_id),
                ("error", batch.error_file_id),
            )
        }
    outline = None if told is None else told.outline
    series = None if told is None else told.series
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return {
        "job": batch,
        "state": f"{batch.status}-{batch.paused_at or 0}-{int(outline is not None)}",
        "is_over": batch.status in TERMINAL,
        "can_cancel": batch.status in CANCELLABLE,
        "can_pause": batch.status in ("validating", "in_progress"),
        "can_retry": batch.status in ("completed", "expired", "cancelled")
        and batch.request_counts.completed < batch.request_counts.total,
        "seconds": (ended_at or int(time.time())) - batch.created_at,
        "outline": outline,
        "tree": None if outline is None else draw_tree(outline),
        "plots": None if series is None or not series["points"] else draw_series(series),
        "failures": failures,
        "files": {kind: file for kind, file in files.items() if file is not None},
    }
