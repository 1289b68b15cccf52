"""The rivals' models against literal ones, and against what they are known to do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cost_model import CostModel
from engine.hardware import HARDWARE, MODELS
from engine.prefix_cache import PrefixCache
from engine.request import Request, SamplingParams
from engine.rivals import RadixEngine, StreamingEngine
from tests.engine.planning.requests import prompt_lists

COST = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])


def _requests(prompts, max_tokens=4):
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return [
        Request(index, np.array(prompt, dtype=np.int32), sampling) for index, prompt in enumerate(prompts)
    ]


class _BlockCache:
    """One block at a time, each with its hash, as the engine keeps them."""

    def __init__(self, prompts, num_blocks, size):
        self.free = num_blocks
        self.blocks = {}  # hash -> [users, computed, released_at, depth]
        self.clock = 0
        self.held = {}
        # The last token is never shared, so the block with it belongs to its request alone.
        self.hashes = [
            [
                tuple(prompt[: start + size]) if start + size < len(prompt) else ("own", index, start)
                for start in range(0, len(prompt), size)
            ]
            for index, prompt in enumerate(prompts)
        ]

    def keys(self, index):
        """The prompt's blocks, and those of its output that are left from before."""
        outputs = [key for key in self.blocks if key[:2] == ("output", index)]
        return [*self.hashes[index], *sorted(outputs)]

    def hit(self, index):
        count = 0
        for key in self.keys(index):
            if key not in self.blocks or not self.blocks[key][1]:
                break
            count += 1
        return count

    def can_hold(self, index):
        keys = self.keys(index)
        evictable = sum(not state[0] for key, state in self.blocks.items() if key not in keys)
        return sum(key not in self.blocks for key in keys) <= self.free + evictable

    def acquire(self, index):
        keys = self.keys(index)
        for key in keys:
            if key in self.blocks:
                self.blocks[key][0] += 1
        for depth, key in enumerate(self.hashes[index]):
            if key not in self.blocks:
                self._take()
                self.blocks[key] = [1, False, 0, depth]
        self.held[index] = list(keys)

    def grow(self, index):
        if not self.free and all(state[0] for state in self.blocks.values()):
            return False
        self._take()
        key = ("output", index, len(self.held[index]))
        self.blocks[key] = [1, False, 0, len(self.held[index])]
        self.held[index].append(key)
        return True

    def release(self, index):
        self.clock += 1
        for key in self.held.pop(index):
            state = self.blocks[key]
            state[0] -= 1
            state[2] = self.clock

    def mark_computed(self, index, num_blocks):
        for key in self.held[index][:num_blocks]:
            self.blocks[key][1] = True

    def _take(self):
        if not self.free:
            idle = [(state[2], -state[3], key) for key, state in self.blocks.items() if not state[0]]
            del self.blocks[min(idle, key=lambda item: item[:2])[2]]
            self.free += 1
        self.free -= 1


@settings(max_examples=100, deadline=None)
@given(prompt_lists(), st.integers(1, 3), st.integers(8, 24), st.data())
def test_entries_behave_as_single_blocks_do(prompts, size, num_blocks, data):
    cache = PrefixCache(_requests(prompts), num_blocks=num_blocks, block_size=size, whole_entries=False)
    literal = _BlockCache(prompts, num_blocks, size)
    running: list[int] = []
    for _ in range(data.draw(st.integers(1, 30))):
        index = data.draw(st.integers(0, len(prompts) - 1))
        chain = cache.chains[index]
        assert cache.num_hit(chain) == literal.hit(index)
        if index not in running:
            assert cache.can_hold(chain, 0) == literal.can_hold(index)
            if literal.can_hold(index):
                running.append(index)
                cache.acquire(chain)
                literal.acquire(index)
        elif data.draw(st.booleans()):
            assert cache.grow(chain[-1]) == literal.grow(index)
            computed = data.draw(st.integers(0, len(prompts[index])))
            cache.mark_computed(chain, computed)
            literal.mark_computed(index, computed // size)
        else:
            running.remove(index)
            cache.release(chain)
            literal.release(index)
        assert cache.num_free == literal.free
        assert cache.num_evictable == sum(not state[0] for state in literal.blocks.values())


def _micro(num_prefixes, degree, prefix, own, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 30_000, (num_prefixes, prefix))
    prompts = [np.concatenate((row, rng.integers(0, 30_000, own))) for row in shared for _ in range(degree)]
    return [prompts[index] for index in rng.permutation(len(prompts))]


@pytest.mark.parametrize("engine", [StreamingEngine, RadixEngine])
def test_every_request_runs_once_whatever_the_memory(engine):
    requests = _requests(_micro(6, 4, 64, 16), max_tokens=20)
    for num_tokens in (128, 400, 4000):
        options = {"max_seqs": 8} if engine is StreamingEngine else {}
        memory = num_tokens * COST.kv_bytes_per_token
        run = engine(requests, [20] * 24, COST, max_batch_tokens=64, kv_memory_bytes=memory, **options).run()
        assert run.trace.num_rows.sum() == run.num_computed_tokens + 24 * 19
        assert run.trace.kv_tokens.max() <= num_tokens


def test_sorted_input_hits_where_shuffled_input_was_evicted():
    prompts = _micro(16, 8, 256, 16)
    memory = 1024 * COST.kv_bytes_per_token

    def saving(prompts):
        engine = StreamingEngine(
            _requests(prompts), [4] * 128, COST, max_seqs=4, max_batch_tokens=64, kv_memory_bytes=memory
        )
        return engine.run().token_saving

    assert saving(prompts) < 0.5 < 0.75 < saving(sorted(prompts, key=lambda prompt: prompt.tobytes()))


def test_longest_match_first_helps_only_when_few_wait():
    memory = 1024 * COST.kv_bytes_per_token

    def saving(degree):
        requests = _requests(_micro(16, degree, 256, 16))
        return (
            RadixEngine(requests, [4] * len(requests), COST, max_batch_tokens=512, kv_memory_bytes=memory)
            .run()
            .token_saving
        )

    assert saving(8) > 0.7 > 0.5 > saving(32)


@pytest.mark.parametrize(("is_v1", "num_computed"), [(False, 4 * 80), (True, 64 + 4 * 16)])
def test_only_the_newer_engine_hits_blocks_of_the_same_step(is_v1, num_computed):
    requests = _requests(_micro(1, 4, 64, 16))
    run = StreamingEngine(
        requests,
        [4] * 4,
        COST,
        max_seqs=8,
        max_batch_tokens=512,
        is_v1=is_v1,
        kv_memory_bytes=4096 * COST.kv_bytes_per_token,
    ).run()
    assert run.num_computed_tokens == num_computed
