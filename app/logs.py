"""The log: on standard error, a line an event. Never keys, never bodies of requests."""

import logging
from typing import Literal

import structlog

# `logging` stays what the code calls, so that libraries are in the same log; structlog only renders.
_BEFORE: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),  # batch_id, line and the like
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def start_log(process: str, log_format: Literal["text", "json"], level: int) -> None:
    """`process`: who writes. `level`: of our own packages; other libraries are heard from warnings on."""
    if log_format == "json":
        formatter: logging.Formatter = _json_formatter(process)
    else:
        formatter = logging.Formatter(f"%(asctime)s {process}: %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("app", "engine"):
        logging.getLogger(package).setLevel(level)


def _json_formatter(process: str) -> logging.Formatter:
    def name_process(
        logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_BEFORE, name_process],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
    )
