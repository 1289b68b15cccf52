"""What a step costs: a roofline of its operators, from numbers alone.

The operators run one after the other, each as fast as the slower of its arithmetic and its memory traffic:

    linear      the layers' matrices: operations over rate, weights and activations over bandwidth
    head        the same for the sampled rows and the vocabulary
    attention   each launch over all its items (query rows over one range of keys): operations over rate, KV
                read once an item over bandwidth
    elementwise norms, rotary, activation, KV write: memory traffic, or what was measured
    overhead    launches that the device's work does not hide, and the host's own time
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.batch import StepBatch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like decoder."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelShape":
        """The sizes in a model directory's config.json."""
        heads = config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied_embeddings=config.get("tie_word_embeddings", False),
        )

    @property
    def layer_weights(self) -> list[tuple[int, int]]:
        """(out, in) of each matrix of a layer."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return [
            (heads + 2 * kv_heads, self.hidden),
            (self.hidden, heads),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def num_parameters(self) -> int:
        """Parameters in matrices: those of the layers, the embedding, and the head where it is another."""
        layers = self.num_layers * sum(out * into for out, into in self.layer_weights)
        return layers + (1 if self.tied_embeddings else 2) * self.vocab * self.hidden

    @property
    def ops_per_row(self) -> int:
        """Operations of all layers' matrices on one row."""
        return 2 * self.num_layers * sum(out * into for out, into in self.layer_weights)

    @property
    def ops_per_pair(self) -> int:
        """Operations of all layers' attention on one (query row, key) pair."""
        return 4 * self.num_layers * self.num_heads * self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Values kept of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def elementwise_values_per_row(self) -> int:
        """Values that fused elementwise kernels move for one row over all layers: two norms that add the
        residual (read two, write two), rotary in place, gate times up, and the KV write."""
        rotated = (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = 8 * self.hidden + 2 * rotated + 3 * self.intermediate + 2 * self.num_kv_heads * self.head_dim
        return self.num_layers * layer


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Operations per second by number of rows: log-log between the points, constant outside."""

    rows: tuple[float, ...]
    ops_per_second: tuple[float, ...]

    def at(self, rows: NDArray[np.integer] | float) -> Floats:
        wanted = np.log(np.maximum(rows, 1))
        rates: Floats = np.exp(np.interp(wanted, np.log(self.rows), np.log(self.ops_per_second)))
        return rates


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """A device as rates that real kernels reach, not as its data sheet.

    dtype_bytes: of weights, activations and KV.
    memory_bytes: device memory.
    memory_bandwidth: bytes per second.
    gemm, head: by rows of the product; `head` is the vocabulary's.
    attention: by query rows stacked over one KV head (rows x query heads per KV head).
    elementwise_seconds_per_value: of `ModelShape.elementwise_values_per_row`.
    launch_seconds_per_layer: the host's, hidden wherever the device has more to do.
    host_seconds_per_step: never hidden.
    item_seconds_per_layer: of one attention item of several rows, beyond its arithmetic.
    """

    name: str
    dtype_bytes: int
    memory_bytes: int
    memory_bandwidth: float
    gemm: RateCurve
    head: RateCurve
    attention: RateCurve
    elementwise_seconds_per_value: float
    launch_seconds_per_layer: float
    host_seconds_per_step: float
    item_seconds_per_layer: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class StepWork:
    """What one step computes.

    num_rows: rows through the layers; num_sampled: rows through the head.
    item_rows, item_keys, item_pairs: int64 [I] per attention item: query rows, keys that are read, and
        (query, key) pairs, which are fewer than the product where the item is causal.
    item_launch: int64 [I], which launch runs it. Items of one launch overlap: where some wait for arithmetic
        and others for memory, both are used. Launches run one after the other.
    """

    num_rows: int
    num_sampled: int
    item_rows: Ints
    item_keys: Ints
    item_pairs: Ints
    item_launch: Ints


@dataclass(frozen=True, slots=True)
class JobWork:
    """The least that a job needs at best sharing, whatever the number of steps.

    rows, sampled_rows: through layers and head.
    pairs: (query, key) pairs of attention.
    kv_reads: tokens of KV that attention reads when all rows that can read together do.
    """

    rows: int
    sampled_rows: int
    pairs: int
    kv_reads: int


@dataclass(frozen=True, slots=True)
class StepSeconds:
    linear: float
    head: float
    attention: float
    elementwise: float
    overhead: float

    @property
    def total(self) -> float:
        return self.linear + self.head + self.attention + self.elementwise + self.overhead


def shared_work(batch: StepBatch) -> StepWork:
    """The work of a step whose attention reads each segment once for all rows below it."""
    rows = batch.row_count.astype(np.int64)
    keys = batch.kv_len.astype(np.int64)
    below = batch.subtree_end.astype(np.int64) - batch.row_start - rows
    own, shared = rows > 0, (below > 0) & (keys > 0)
    own_pairs = rows * keys - rows * (rows - 1) // 2
    item_rows = np.concatenate((rows[own], below[shared]))
    return StepWork(
        num_rows=batch.num_tokens,
        num_sampled=len(batch.sample_rows),
        item_rows=item_rows,
        item_keys=np.concatenate((keys[own], keys[shared])),
        item_pairs=np.concatenate((own_pairs[own], (below * keys)[shared])),
        item_launch=np.zeros_like(item_rows),
    )


def unshared_work(batch: StepBatch) -> StepWork:
    """The same step where every segment's rows read the KV of their whole prompt for themselves, still in one
    launch."""
    rows = batch.row_count.astype(np.int64)
    own = rows > 0
    rows = rows[own]
    keys = batch.kv_position[own].astype(np.int64) + batch.kv_len[own]
    pairs = rows * keys - rows * (rows - 1) // 2
    return StepWork(batch.num_tokens, len(batch.sample_rows), rows, keys, pairs, np.zeros_like(rows))


class CostModel:
    """Seconds of steps and jobs of one model on one device."""

    def __init__(self, shape: ModelShape, hardware: HardwareProfile) -> None:
        self.shape = shape
        self.hardware = hardware

    @property
    def kv_bytes_per_token(self) -> int:
        return self.shape.kv_values_per_token * self.hardware.dtype_bytes

    def kv_memory_bytes(self, *, max_batch_tokens: int, max_sampled: int, utilization: float) -> int:
        """Memory left for KV when `utilization` of the device is used: less weights, the widest activations
        of a step (gate, up, their product, four of the hidden size) and three copies of the logits."""
        shape, width = self.shape, self.hardware.dtype_bytes
        activations = max_batch_tokens * (3 * shape.intermediate + 4 * shape.hidden) * width
        logits = max_sampled * shape.vocab * (width + 4 + 4)
        weights = shape.num_parameters * width
        return int(self.hardware.memory_bytes * utilization) - weights - activations - logits

    def step(self, work: StepWork) -> StepSeconds:
        shape, hardware = self.shape, self.hardware
        linear = shape.num_layers * sum(
            self._product(work.num_rows, out, into, hardware.gemm) for out, into in shape.layer_weights
        )
        head = self._product(work.num_sampled, shape.vocab, shape.hidden, hardware.head)
        attention = self._attention(work)
        elementwise = (
            work.num_rows * shape.elementwise_values_per_row * hardware.elementwise_seconds_per_value
        )
        launches = shape.num_layers * hardware.launch_seconds_per_layer
        unhidden = max(launches - linear - head - attention - elementwise, 0.0)
        return StepSeconds(linear, head, attention, elementwise, unhidden + hardware.host_seconds_per_step)

    def optimum_seconds(self, job: JobWork) -> float:
        """The job's practical optimum: the sum of each operator's own roofline over the whole job, every
        operator at its best rate, without elementwise work and overheads."""
        shape, hardware = self.shape, self.hardware
        linear = job.rows * shape.ops_per_row / max(hardware.gemm.ops_per_second)
        head = job.sampled_rows * 2 * shape.hidden * shape.vocab / max(hardware.head.ops_per_second)
        weights = (shape.num_parameters * hardware.dtype_bytes) / hardware.memory_bandwidth
        arithmetic = job.pairs * shape.ops_per_pair / max(hardware.attention.ops_per_second)
        traffic = job.kv_reads * self.kv_bytes_per_token / hardware.memory_bandwidth
        return max(linear + head, weights) + max(arithmetic, traffic)

    def _product(self, rows: int, out: int, into: int, rates: RateCurve) -> float:
        if rows == 0:
            return 0.0
        moved = (out * into + rows * (out + into)) * self.hardware.dtype_bytes
        return max(2 * rows * out * into / float(rates.at(rows)), moved / self.hardware.memory_bandwidth)

    def _attention(self, work: StepWork) -> float:
        shape, hardware = self.shape, self.hardware
        stacked = work.item_rows * (shape.num_heads // shape.num_kv_heads)
        arithmetic = work.item_pairs * shape.ops_per_pair / hardware.attention.at(stacked)
        traffic = work.item_keys * self.kv_bytes_per_token / hardware.memory_bandwidth
        per_launch = np.maximum(
            np.bincount(work.item_launch, arithmetic), np.bincount(work.item_launch, traffic)
        )
        calls = int((work.item_rows > 1).sum()) * shape.num_layers * hardware.item_seconds_per_layer
        return float(per_launch.sum()) + calls
