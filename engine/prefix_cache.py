"""The prefix caches of streaming engines, counted in blocks, with least-recently-used eviction.

A block of a prompt is found again by the hash of all tokens up to its end, so cached blocks form a tree. All
blocks between two branchings are used together; here they are one entry, which makes a model of 100,000
blocks a matter of a few hundred entries, and changes nothing:

    entry      blocks between two branchings of the prompts (an inner node), or a prompt's own (a leaf)
    cached     its first blocks that are in memory; the rest was evicted, tail first
    computed   its first blocks whose KV exists
    users      running requests that hold it; at zero its blocks can be evicted

Requests release their blocks tail first, so of entries released at the same moment the deepest goes first.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from engine.planning.prefix_tree import build_prefix_tree
from engine.request import Request


@dataclass(slots=True, eq=False)
class Entry:
    """num_blocks: of prompt tokens; a leaf's output adds blocks to `num_cached` only."""

    num_blocks: int
    depth: int
    is_leaf: bool
    num_cached: int = 0
    num_computed: int = 0
    num_users: int = 0
    released_at: int = 0


class PrefixCache:
    """Blocks for all requests of a job.

    chains: per request its entries from the root; the last is its own leaf.
    whole_entries: evict a whole entry at a time (a radix tree's node) instead of block by block.
    """

    def __init__(
        self, requests: Sequence[Request], *, num_blocks: int, block_size: int, whole_entries: bool
    ) -> None:
        self.block_size = block_size
        self.num_free = num_blocks
        self.num_evictable = 0
        self.num_shared_cached = 0
        self.chains = _chains(requests, block_size)
        self._num_blocks = num_blocks
        self._whole_entries = whole_entries
        self._clock = 0
        self._oldest: list[tuple[int, int, int, Entry]] = []
        self._num_released = 0

    @property
    def num_used(self) -> int:
        """Blocks of running requests and cached ones."""
        return self._num_blocks - self.num_free

    def num_hit(self, chain: list[Entry]) -> int:
        """Leading blocks of the chain that are computed, outputs from before a preemption included."""
        hit = 0
        for entry in chain:
            hit += min(entry.num_cached, entry.num_computed)
            if min(entry.num_cached, entry.num_computed) < entry.num_blocks:
                break
        return hit

    def can_hold(self, chain: list[Entry], num_extra: int) -> bool:
        """Whether the chain's prompt blocks and `num_extra` more can be had at once."""
        missing = sum(max(entry.num_blocks - entry.num_cached, 0) for entry in chain)
        kept = sum(entry.num_cached for entry in chain if not entry.num_users)
        return missing + num_extra <= self.num_free + self.num_evictable - kept

    def acquire(self, chain: list[Entry]) -> None:
        """Takes all prompt blocks of a chain, and what is left of its output; `can_hold` said yes."""
        for entry in chain:
            if not entry.num_users:
                self.num_evictable -= entry.num_cached
            entry.num_users += 1
        for entry in chain:
            self._add_blocks(entry, max(entry.num_blocks - entry.num_cached, 0))

    def grow(self, leaf: Entry) -> bool:
        """One more block for a running request's output; False if there is none."""
        if self.num_free + self.num_evictable == 0:
            return False
        self._add_blocks(leaf, 1)
        return True

    def release(self, chain: list[Entry]) -> None:
        """A request ends or is preempted: what nobody else uses can be evicted from now on."""
        self._clock += 1
        for entry in chain:
            entry.num_users -= 1
            if entry.num_users == 0:
                entry.num_computed = min(entry.num_computed, entry.num_cached)
                entry.released_at = self._clock
                self.num_evictable += entry.num_cached
                self._num_released += 1
                heapq.heappush(self._oldest, (self._clock, -entry.depth, self._num_released, entry))

    def mark_computed(self, chain: list[Entry], num_tokens: int) -> None:
        """The first `num_tokens` of the chain have KV; whole blocks can be found from now on."""
        blocks = num_tokens // self.block_size
        for entry in chain:
            entry.num_computed = max(entry.num_computed, min(blocks, entry.num_cached))
            blocks -= entry.num_blocks
            if blocks <= 0:
                break

    def _add_blocks(self, entry: Entry, num_blocks: int) -> None:
        while self.num_free < num_blocks:
            self._evict(num_blocks - self.num_free)
        self.num_free -= num_blocks
        entry.num_cached += num_blocks
        self.num_shared_cached += 0 if entry.is_leaf else num_blocks

    def _evict(self, num_blocks: int) -> None:
        released_at, _, _, entry = self._oldest[0]
        if entry.num_users or entry.released_at != released_at or not entry.num_cached:
            heapq.heappop(self._oldest)
            return
        taken = entry.num_cached if self._whole_entries else min(num_blocks, entry.num_cached)
        entry.num_cached -= taken
        entry.num_computed = min(entry.num_computed, entry.num_cached)
        self.num_free += taken
        self.num_evictable -= taken
        self.num_shared_cached -= 0 if entry.is_leaf else taken


def _chains(requests: Sequence[Request], block_size: int) -> list[list[Entry]]:
    tree = build_prefix_tree([request.prompt_ids for request in requests])
    ends = [0]
    above: list[list[Entry]] = [[]]
    for node in range(1, len(tree.parent)):
        parent, depth = int(tree.parent[node]), int(tree.depth[node])
        end = depth // block_size
        entry = Entry(end - ends[parent], depth, is_leaf=False)
        ends.append(end)
        above.append([*above[parent], entry] if entry.num_blocks else above[parent])
    chains: list[list[Entry]] = [[] for _ in requests]
    for prompt, length, parent in zip(tree.prompt, tree.length, tree.leaf_parent, strict=True):
        own = -(-int(length) // block_size) - ends[parent]
        chains[prompt] = [*above[parent], Entry(own, int(length), is_leaf=True)]
    return chains
