"""A new job from a page: the form's fields first, then the file, stored while it arrives."""

from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from app.api.batches import create_batch
from app.api.bodies import BatchCreate
from app.api.errors import ApiError, missing_parameter
from app.api.files import save_file
from app.api.incoming import FILE_FIELD, FORM_OVERHEAD_BYTES, IncomingFile, check_declared_bytes
from app.api.multipart import FormParser, form_boundary, receive_form
from app.api.schemas import BatchObject
from app.web.visitor import Visitor

TEXT_FIELDS = frozenset({"csrf_token", "endpoint", "completion_window"})


@dataclass
class JobForm:
    """Receives the form; see `FormReceiver`. Nothing of the file is taken before the token was right."""

    visitor: Visitor
    content: IncomingFile
    texts: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, value: str) -> None:
        self.texts[name] = value

    def start_file(self, filename: str) -> None:
        self.visitor.check_token(self.texts.get("csrf_token", ""))
        if not filename:
            raise ApiError(400, "Choose a batch file first: a .jsonl file with one request a line.")
        self.content.text("purpose", "batch")
        self.content.start_file(filename)

    def write(self, chunk: bytes) -> None:
        self.content.write(chunk)


async def submit_job(visitor: Visitor) -> BatchObject:
    """Store the uploaded file and queue a batch of it. Raises ApiError."""
    visitor.check_origin()
    request, service = visitor.request, visitor.service
    max_bytes = service.settings.max_file_bytes
    await run_in_threadpool(service.check_room, check_declared_bytes(request, FILE_FIELD, max_bytes))
    with await run_in_threadpool(service.storage.create) as blob:
        content = IncomingFile(blob, max_bytes=max_bytes, max_line_bytes=service.settings.max_line_bytes)
        form = JobForm(visitor, content)
        parser = FormParser(form_boundary(request), form, file_field=FILE_FIELD, text_fields=TEXT_FIELDS)
        await receive_form(request, parser, max_bytes=max_bytes + FORM_OVERHEAD_BYTES)
        for name in ("endpoint", "completion_window"):
            if name not in form.texts:
                raise missing_parameter(name)
        file = await run_in_threadpool(save_file, service, content.finish(), blob, None)
    body = BatchCreate(
        input_file_id=file.id,
        endpoint=form.texts["endpoint"],
        completion_window=form.texts["completion_window"],
    )
    return await run_in_threadpool(create_batch, service, body)
