"""Everything a user may set, read once at start from flags and from `BATCHLLM_*` environment variables."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path, user_data_path
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DAY_SECONDS = 86_400
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

_NAME = re.compile(r"[\x21-\x7e]{1,128}")

_BYTE_UNITS = {"": 1, "b": 1} | {
    spelling: base**power
    for power, letter in enumerate("kmgt", start=1)
    for spelling, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}


class StartupError(Exception):
    """The service cannot start; the message is one sentence that tells the user what to do."""


def parse_bytes(value: object) -> object:
    """A number of bytes from an int or a text such as "512MB", "2GiB" or "1.5g" (a bare letter is binary)."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise ValueError("give a number of bytes, with a unit if you like, such as 512MB or 2GiB")
    try:
        return int(float(match[1]) * _BYTE_UNITS[match[2].lower()])
    except OverflowError:
        raise ValueError("no machine has so much") from None


ByteCount = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


def parse_names(value: object) -> object:
    """Names from a text such as "gpt-4o,gpt-4o-mini"."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",") if name.strip()]
    wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise ValueError("give names of up to 128 visible characters, with commas between them")
    return names


# NoDecode: the environment's text comes as it is, not read as JSON.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_names)]


class Settings(BaseSettings):
    """All settings, each described below it. `load_settings` turns a wrong value into a `StartupError`."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHLLM_",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    data_dir: Path = Field(default_factory=lambda: user_data_path("batchllm"))
    """Where files and the SQLite database live."""
    database_url: str | None = None
    """sqlite:///... or postgresql://...; without it, SQLite in the data directory."""
    storage_url: str | None = None
    """s3://bucket/prefix, where files then live; without it, in the data directory."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0: any that is free."""
    allow_remote: bool = False
    """Listen beyond this machine."""
    ops_host: str = "127.0.0.1"
    """Address of /metrics and the probes."""
    ops_port: int = Field(default=8001, ge=0, le=65_535)
    """Port of /metrics and the probes; 0: any that is free."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written: text for people, json for machines, a line an event."""

    model: str = DEFAULT_MODEL
    """Hub id, local directory or .gguf file of the model."""
    model_name: str | None = None
    """The name by which requests ask for the model; without it, from the model itself."""
    model_aliases: Names = ()
    """Other names for the model, such as gpt-4o,gpt-4o-mini."""
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("batchllm"))
    """Where models are kept."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """float32, bfloat16 or float16; without it, float32 on a CPU and bfloat16 on a GPU."""
    quantize: Literal["int8"] | None = None
    """int8: most linear layers in int8, faster, other answers; in float32 on a CPU; without it, none."""
    kv_memory: ByteCount | None = None
    """Memory for keys and values, such as 512MiB or 2GiB; without it, a part of what is free."""
    max_batch_tokens: int = Field(default=1024, gt=0)
    """Most tokens computed in one step."""
    default_max_tokens: int | None = Field(default=None, gt=0)
    """Most output tokens of a chat that does not say; without it, the rest of the context."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; without it, torch's choice."""

    lease_seconds: int = Field(default=30, gt=0)
    """How long a worker that gave no sign of life keeps its batches."""
    claim_tokens: int | None = Field(default=None, gt=0)
    """A worker takes a tenant's next batch while fewer prompt tokens of it are left; without it, 32 steps."""
    share_prefixes: Literal["tenant", "all"] = "tenant"
    """Whose batches share equal prompt starts: tenant, or all, where times may tell of others' prompts."""

    max_file_bytes: ByteCount = 200 * 1000**2
    """Largest file that may be uploaded."""
    max_part_bytes: ByteCount = 64 * 1024**2  # what the SDK sends by itself
    """Largest part of an upload in parts."""
    upload_seconds: int = Field(default=3_600, gt=0)
    """How long an upload in parts may take from its creation."""
    max_requests_per_batch: int = Field(default=50_000, gt=0)
    """Most lines of a batch."""
    max_requests_per_minute: int | None = Field(default=None, gt=0)
    """Most requests of a tenant to the API in a minute."""
    max_stored_bytes: ByteCount | None = None
    """Most bytes of a tenant's files and unfinished uploads together."""
    max_enqueued_requests: int | None = Field(default=None, gt=0)
    """Most lines of a tenant's batches that have not ended."""
    max_enqueued_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that a tenant's batches that have not ended may take, by an estimate."""
    max_embedding_inputs_per_batch: int = Field(default=50_000, gt=0)
    """Most inputs of all lines of an embeddings batch together."""
    # A parsed line can take 25 times its bytes (`[[],[],...`): 2 MiB keeps the keeper's peak near 50 MB.
    max_line_bytes: ByteCount = 2 * 1024**2
    """Longest line of a batch file."""
    max_validation_errors: int = Field(default=1_000, gt=0)
    """Most errors that a batch lists."""
    max_completion_window_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    """Longest completion window."""
    single_model: bool = False
    """Refuse a file whose requests name several models."""
    max_direct_requests: int = Field(default=64, gt=0)
    """Most requests that clients wait for at once; those above hear 429."""
    direct_seconds: int = Field(default=300, gt=0)
    """Longest wait for the answer to a direct request; then it is a 504."""
    strict_create: bool = False
    """Refuse a batch whose file is not there at once, not in its validation."""
    input_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    """How long an uploaded file is kept that does not say."""
    output_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    """How long the files of a batch are kept that does not say."""
    batch_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    """How long a batch is kept after its end, with its lines."""
    webhook_private_targets: bool = False
    """Send webhooks to addresses that are not public, such as this machine."""

    @property
    def served_model(self) -> str:
        """The model's own name: never a path."""
        if self.model_name is not None:
            return self.model_name
        local = Path(self.model).expanduser()
        if local.suffix == ".gguf" and local.is_file():
            return local.stem
        return local.resolve().name if local.is_dir() else self.model

    @property
    def served_models(self) -> list[str]:
        """Names that a request's `model` may have: the model's own first."""
        return list(dict.fromkeys([self.served_model, *self.model_aliases]))

    @property
    def resolved_claim_tokens(self) -> int:
        """`claim_tokens`, or what keeps steps full until the prompts of the next batch are there."""
        return 32 * self.max_batch_tokens if self.claim_tokens is None else self.claim_tokens

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or the SQLite file in `data_dir`."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{self.data_dir.expanduser().resolve() / 'batchllm.db'}"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and from `overrides` (flags) that are not None. Raises StartupError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        source = f"--{name.replace('_', '-')}" if name in given else f"BATCHLLM_{name.upper()}"
        problem = first["msg"].removeprefix("Value error, ")
        raise StartupError(f"The setting {source} is wrong ({first['input']!r}): {problem}.") from error
