"""How much of a GPU's memory is left for keys and values beside weights and activations."""

from collections.abc import Callable

import numpy as np
import torch

from engine.scheduling.batch import StepBatch

# Levels of segments above the rows of the fullest step: each adds a partial attention state a row.
_NUM_ANCESTORS = 3
# Of all memory: what torch's allocator loses to fragments, and what other libraries take later.
_RESERVED_SHARE = 0.05


def free_bytes_beside(largest_step: Callable[[], None], device: torch.device) -> int:
    """Free bytes of the GPU less what `largest_step` needs at its peak, and less a reserve."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    largest_step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - peak - _RESERVED_SHARE * total))


def fullest_step(num_rows: int, page_size: int) -> StepBatch:
    """A step that needs as much memory as any with so many rows: one leaf's rows below a chain of
    ancestors of one page each, every row sampled in the costliest way."""
    num_segments = _NUM_ANCESTORS + 1
    leaf = np.arange(num_segments) == _NUM_ANCESTORS
    leaf_pages = -(-num_rows // page_size)
    page_start = np.append(np.arange(num_segments), _NUM_ANCESTORS + leaf_pages).astype(np.int32)
    rows = np.arange(num_rows, dtype=np.int32)
    kv_before_leaf = _NUM_ANCESTORS * page_size
    return StepBatch(
        token_ids=np.zeros(num_rows, np.int32),
        positions=rows + kv_before_leaf,
        slots=rows + kv_before_leaf,  # pages in order: a slot is a position
        row_start=np.zeros(num_segments, np.int32),
        row_count=np.where(leaf, num_rows, 0).astype(np.int32),
        subtree_end=np.full(num_segments, num_rows, np.int32),
        kv_len=np.where(leaf, num_rows, page_size).astype(np.int32),
        kv_position=(np.arange(num_segments) * page_size).astype(np.int32),
        page_start=page_start,
        page_ids=np.arange(page_start[-1], dtype=np.int32),
        sample_rows=rows,
        request_ids=rows.astype(np.int64),
        temperature=np.ones(num_rows, np.float32),
        top_p=np.full(num_rows, 0.5, np.float32),
        top_k=np.zeros(num_rows, np.int32),
        min_p=np.zeros(num_rows, np.float32),
        seeds=np.zeros(num_rows, np.uint64),
        num_generated=np.zeros(num_rows, np.int32),
    )
