"""The figures that a worker tells: app/worker_metrics.py measures them, app/metrics.py shows them."""

COUNTERS = {
    "prompt_tokens_computed": "Prompt tokens computed, each once.",
    "prompt_tokens_saved": "Prompt tokens of finished requests that a shared prefix saved.",
    "tokens_recomputed": "Tokens computed again after preemption or eviction.",
    "output_tokens": "Tokens generated for finished requests.",
    "requests_finished": "Requests that the engine finished; a line with n > 1 is several.",
    "lines_completed": "Lines answered with a result.",
    "lines_failed": "Lines answered with an error.",
    "leases_lost": "Batches that another worker or the keeper took away.",
    "preemptions": "Requests put back because KV memory ran out.",
}
GAUGES = {
    "kv_bytes": "KV memory in all.",
    "kv_used_bytes": "KV memory in use, what is set aside for outputs included.",
    "batches": "Batches held.",
    "requests_running": "Requests that hold KV memory.",
    "lines_unanswered": "Lines of the batches held that are still to be answered.",
}
# Upper bounds; the last bucket has none.
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "step_seconds": (
        "Time of a step.",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    ),
    "step_tokens": ("Tokens computed in a step.", (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
}
