"""What an engine counts while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Sums since the engine was built.

    prompt_tokens: tokens in the prompts of all planned requests.
    computed_prompt_tokens: prompt tokens computed for the first time.
    recomputed_tokens: tokens computed again after preemption or eviction.
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


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds now. step_tokens: rows that the last step computed."""

    step_tokens: int
    kv_bytes: int
    used_kv_bytes: int
