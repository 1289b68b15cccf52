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
    """All settings. Build with `load_settings`, which turns a wrong value into a `StartupError`."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHLLM_", extra="forbid", frozen=True, protected_namespaces=()
    )

    data_dir: Path = Field(default_factory=lambda: user_data_path("batchllm"))
    database_url: str | None = None  # None: SQLite in data_dir
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    allow_remote: bool = False  # listen beyond loopback

    model: str = DEFAULT_MODEL  # hub id, local directory or .gguf file
    model_name: str | None = None  # the name that requests use; None: from `model`
    model_aliases: Names = ()  # other names that requests may use for it
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("batchllm"))
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: chosen by device
    kv_memory: ByteCount | None = None  # bytes of keys and values; None: chosen by device
    max_batch_tokens: int = Field(default=1024, gt=0)
    default_max_tokens: int | None = Field(default=None, gt=0)  # of a chat that sets none; None: the context
    threads: int | None = Field(default=None, gt=0)

    lease_seconds: int = Field(default=30, gt=0)
    # A worker takes the next batch while it has fewer prompt tokens than this left to answer; None: 32 steps.
    claim_tokens: int | None = Field(default=None, gt=0)

    max_file_bytes: ByteCount = 200 * 1000**2
    max_part_bytes: ByteCount = 64 * 1024**2  # of an upload; what the SDK sends by itself
    upload_seconds: int = Field(default=3_600, gt=0)  # how long an upload may take from its creation
    max_requests_per_batch: int = Field(default=50_000, gt=0)
    # A parsed line can take 25 times its bytes (`[[],[],...`): 2 MiB keeps the keeper's peak near 50 MB.
    max_line_bytes: ByteCount = 2 * 1024**2
    max_validation_errors: int = Field(default=1_000, gt=0)
    max_completion_window_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    single_model: bool = False  # refuse a file whose requests name several models
    input_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    output_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)
    batch_retention_seconds: int = Field(default=30 * DAY_SECONDS, gt=0)  # after its end; its lines with it
    webhook_private_targets: bool = (
        False  # send webhooks to addresses that are not public, such as this machine
    )

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
