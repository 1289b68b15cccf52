"""A batch's pending lines, read from its input blob and put into the engine's words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from app.db.lines import PendingLine
from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.endpoints import Endpoint


@dataclass(frozen=True, slots=True)
class TranslatedLine:
    """A pending line and what its body asks for, or why it cannot be run."""

    line: PendingLine
    outcome: Translated | BodyError


def translate_lines(
    blob: BinaryIO,
    lines: Sequence[PendingLine],
    endpoint: Endpoint,
    context: TranslationContext,
    batch_id: str,
) -> Iterator[TranslatedLine]:
    """The lines in order of the file: one sequential pass, one body in memory at a time."""
    for line in sorted(lines, key=lambda line: line.offset):
        blob.seek(line.offset)
        body = orjson.loads(blob.read(line.length))["body"]
        yield TranslatedLine(line, endpoint.parse(body, context, seed_key=f"{batch_id}:{line.custom_id}"))
