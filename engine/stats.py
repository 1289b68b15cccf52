"""What an engine counts while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Sums since the engine was built.

    prompt_tokens: tokens in the prompts of all planned requests.
    computed_prompt_tokens: prompt tokens computed for the first time.
    recomputed_tokens: tokens computed again after preemption or eviction.
    computed_tokens: all that steps computed, outputs included.

    And as of the last step: kv_tokens, the KV slots taken (unused ones of a page included), shared_kv_tokens,
    those of shared prefixes, of kv_capacity_tokens in all.
    """

    load_seconds: float = 0.0
    plan_seconds: float = 0.0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    recomputed_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_kv_bytes: int = 0
    computed_tokens: int = 0
    kv_tokens: int = 0
    shared_kv_tokens: int = 0
    kv_capacity_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds now. step_tokens: rows that the last step computed."""

    step_tokens: int
    kv_bytes: int
    used_kv_bytes: int
