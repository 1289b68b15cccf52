"""Tokens per step and KV in use over time, one column a policy: where an engine starves shows as a valley."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from engine.cost_model import CostModel
from engine.simulation import Trace


def plot_valleys(traces: dict[str, Trace], cost: CostModel, path: Path) -> None:
    """Writes a PNG. Both rows of a column share the time axis; each row has one scale."""
    figure = Figure(figsize=(6 * len(traces), 6), layout="constrained")
    axes = figure.subplots(2, len(traces), squeeze=False, sharey="row", sharex="col")
    for column, (policy, trace) in enumerate(traces.items()):
        seconds = np.cumsum(trace.seconds)
        tokens, memory = axes[0, column], axes[1, column]
        tokens.step(seconds, trace.num_rows, where="pre", linewidth=0.6, color="tab:blue")
        tokens.set_title(f"{policy}: {seconds[-1]:.0f} s, {len(seconds)} steps")
        gib = cost.kv_bytes_per_token / 2**30
        memory.fill_between(seconds, trace.kv_tokens * gib, color="tab:gray", alpha=0.5, label="all")
        memory.fill_between(
            seconds, trace.shared_kv_tokens * gib, color="tab:orange", label="shared prefixes"
        )
        memory.set_xlabel("seconds")
        memory.legend(loc="lower center")
    axes[0, 0].set_ylabel("tokens in the step")
    axes[1, 0].set_ylabel("KV in use (GiB)")
    figure.savefig(path, dpi=100)
