"""`batchllm plan`: what a batch file would cost, and which of its lines would fail. Nothing is run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from app.batch_input import InputLimits, LineError, read_lines
from app.job_folder import endpoint_of
from app.openai.body import BodyError, TranslationContext
from app.openai.endpoints import ENDPOINTS
from app.settings import Settings
from engine.request import Request

if TYPE_CHECKING:
    from engine.estimate import Estimate

_NUM_LONGEST = 5
_NUM_TOLD = 20  # lines with an error that people are told of; the JSON has all


@dataclass(frozen=True, slots=True)
class FailingLine:
    """line: 1-based, None for the file as a whole."""

    line: int | None
    custom_id: str | None
    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class LongPrompt:
    line: int
    custom_id: str
    prompt_tokens: int


@dataclass(slots=True)
class Reading:
    """A batch file in the engine's words.

    requests: with their index as id, one or more a line; lines: line and custom_id of each.
    invalid: what would keep the whole file from running; failing: lines that would end in the error file.
    """

    requests: list[Request] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)
    invalid: list[FailingLine] = field(default_factory=list)
    failing: list[FailingLine] = field(default_factory=list)

    def longest(self) -> list[LongPrompt]:
        """One prompt a line, the longest of all lines first."""
        of_line: dict[tuple[int, str], int] = {}
        for request in self.requests:
            line = self.lines[request.request_id]
            of_line[line] = max(of_line.get(line, 0), len(request.prompt_ids))
        by_length = sorted(of_line.items(), key=lambda item: -item[1])
        return [LongPrompt(*line, num_tokens) for line, num_tokens in by_length[:_NUM_LONGEST]]


@dataclass(frozen=True, slots=True)
class DryRun:
    """model, hardware: what was priced. estimate: of all lines that would run."""

    model: str
    hardware: str
    estimate: "Estimate"
    longest_prompts: list[LongPrompt]
    invalid: list[FailingLine]
    failing: list[FailingLine]

    def as_json(self) -> str:
        """One object, the estimate's figures beside the rest; requests that it refused are failing lines."""
        fields = asdict(self)
        estimate = fields.pop("estimate")
        del estimate["refused"]
        priced = {"model": fields.pop("model"), "hardware": fields.pop("hardware")}
        return orjson.dumps(priced | estimate | fields).decode()


def dry_run(path: Path, settings: Settings, hardware: str, shape_name: str | None) -> DryRun:
    """Read, translate, plan and simulate the file.

    hardware: "cpu" measures this machine; else a name of engine.hardware.
    shape_name: a model of engine.hardware to price in place of the configured one, whose tokenizer still
        counts the tokens.
    Raises ModelNotUsable, and OSError if the file cannot be read.
    """
    from engine.cost_model import CostModel, ModelShape
    from engine.errors import ModelNotUsable
    from engine.estimate import (
        GPU_BATCH_TOKENS,
        default_kv_memory,
        estimate,
        hardware_profile,
        max_tokens_of_one_request,
    )
    from engine.execution.embedding_config import embedding_config
    from engine.execution.resolve import resolve_model
    from engine.hardware import MODELS
    from engine.text.tokenizer import Tokenizer

    model_dir = resolve_model(settings.model, settings.cache_dir)
    if embedding_config(model_dir) is not None:
        raise ModelNotUsable(
            f"{settings.model} embeds texts, which needs no plan; name one that generates with --model."
        )
    config = orjson.loads((model_dir / "config.json").read_bytes())
    shape = MODELS[shape_name] if shape_name else ModelShape.from_config(config)
    cost = CostModel(shape, hardware_profile(hardware, shape, settings.threads, settings.quantize))
    is_given = "max_batch_tokens" in settings.model_fields_set
    max_batch_tokens = settings.max_batch_tokens if is_given or hardware == "cpu" else GPU_BATCH_TOKENS
    memory = settings.kv_memory or default_kv_memory(cost, max_batch_tokens)
    max_context = min(config["max_position_embeddings"], max_tokens_of_one_request(cost, memory))
    context = TranslationContext(Tokenizer(model_dir), max_context, settings.default_max_tokens)
    reading = read_requests(path, settings, context)
    figures = estimate(reading.requests, cost, kv_memory_bytes=memory, max_batch_tokens=max_batch_tokens)
    refused = {reading.lines[refusal.request_id]: refusal.reason for refusal in figures.refused}
    return DryRun(
        model=shape_name or settings.model,
        hardware=hardware,
        estimate=figures,
        longest_prompts=reading.longest(),
        invalid=reading.invalid,
        failing=[
            *reading.failing,
            *(FailingLine(*line, "kv_memory", reason) for line, reason in refused.items()),
        ],
    )


def read_requests(path: Path, settings: Settings, context: TranslationContext) -> Reading:
    """Every line checked as an upload is, and translated as the worker does it."""
    reading = Reading()
    endpoint = endpoint_of(path)
    limits = InputLimits(
        settings.max_line_bytes,
        settings.max_requests_per_batch,
        settings.max_embedding_inputs_per_batch,
        settings.single_model,
    )
    with path.open("rb") as blob, path.open("rb") as bodies:
        for line in read_lines(blob, endpoint=endpoint, served_models=settings.served_models, limits=limits):
            if isinstance(line, LineError):
                reading.invalid.append(FailingLine(line.line, None, line.code, line.message))
                continue
            bodies.seek(line.offset)
            body = orjson.loads(bodies.read(line.length))["body"]
            outcome = ENDPOINTS[endpoint].parse(body, context, seed_key=line.custom_id)
            if isinstance(outcome, BodyError):
                reading.failing.append(FailingLine(line.line, line.custom_id, outcome.code, outcome.message))
                continue
            first_id = len(reading.requests)
            reading.requests += outcome.requests(range(first_id, first_id + outcome.num_requests))
            reading.lines += [(line.line, line.custom_id)] * outcome.num_requests
    return reading


def summary(plan: DryRun) -> str:
    """The dry run for people."""
    figures = plan.estimate
    lines = [
        f"{figures.requests} requests with {figures.prompt_tokens:,} prompt tokens, "
        f"{figures.unique_tokens:,} of them unique; {figures.output_tokens:,} output tokens assumed",
        f"prompt tokens saved: {figures.saving:.1%} ({figures.bound_saving:.1%} at best, "
        f"{figures.lru_saving:.1%} by a streaming engine's cache, 0% without sharing)",
        f"time of {plan.model} on {plan.hardware}: about {_duration(figures.seconds)} "
        f"(at best {_duration(figures.optimum_seconds)}) in {figures.steps:,} steps",
        f"KV memory: {_gib(figures.peak_kv_bytes)} at its peak of {_gib(figures.kv_memory_bytes)}",
    ]
    if plan.longest_prompts:
        longest = ", ".join(f"{p.custom_id} ({p.prompt_tokens:,} tokens)" for p in plan.longest_prompts)
        lines.append(f"longest prompts: {longest}")
    bad = plan.invalid + plan.failing
    lines += [f"{_place(line)}: {line.code}: {line.message}" for line in bad[:_NUM_TOLD]]
    if len(bad) > _NUM_TOLD:
        lines.append(f"... and {len(bad) - _NUM_TOLD:,} more such lines: --json tells all.")
    if plan.invalid:
        lines.append(f"The file would be refused: {len(plan.invalid)} invalid lines.")
    elif plan.failing:
        lines.append(f"{len(plan.failing)} lines would fail; the others would run.")
    return "\n".join(lines)


def _place(line: FailingLine) -> str:
    return "the file" if line.line is None else f"line {line.line}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
