"""Jobs for the simulator, as token ids: the paper's shapes, others that stress one thing each, real files.

Random tokens stand for text. `scale` keeps a share of a job's requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from benchmarks.workloads import read_evals
from engine.planning.forest import Ints
from engine.request import Request, SamplingParams, TokenIds

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """prompts: in the order of their arrival.
    output_lengths: int64, what each request generates.
    max_tokens: what it may generate at most; None: it says its length beforehand (ignore_eos).
    """

    name: str
    prompts: list[TokenIds]
    output_lengths: Ints
    max_tokens: int | None

    def requests(self) -> list[Request]:
        limits = (
            self.output_lengths if self.max_tokens is None else np.full(len(self.prompts), self.max_tokens)
        )
        ignore_eos = self.max_tokens is None
        return [
            Request(index, prompt, SamplingParams(max_tokens=limit, ignore_eos=ignore_eos))
            for index, (prompt, limit) in enumerate(zip(self.prompts, limits.tolist(), strict=True))
        ]

    def reordered(self, order: Sequence[int]) -> "Job":
        """The same requests arriving in another order."""
        index = np.array(order, dtype=np.int64)
        return Job(
            self.name,
            [self.prompts[i] for i in order],
            self.output_lengths[index],
            self.max_tokens,
        )

    def sorted(self) -> "Job":
        """The same requests, equal prefixes adjacent."""
        keys = [prompt.tobytes() for prompt in self.prompts]
        return self.reordered(sorted(range(len(keys)), key=keys.__getitem__))


def shared_prefixes(
    name: str, num_requests: int, prefix: int, own: int, output: int, degree: int, *, seed: int, scale: float
) -> Job:
    """`degree` requests to a random prefix, shuffled."""
    rng = np.random.default_rng(seed)
    num_prefixes = max(round(num_requests * scale) // degree, 1)
    prompts = [
        np.concatenate((shared, _random(rng, own)))
        for shared in (_random(rng, prefix) for _ in range(num_prefixes))
        for _ in range(degree)
    ]
    lengths = np.full(len(prompts), output)
    return _shuffled(rng, Job(name, prompts, lengths, None))


def hierarchy(*, seed: int, scale: float) -> Job:
    """2000 tokens over 20 documents of 200 over 10 questions of 50 each, 20 times; 50 tokens of answer."""
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(max(round(20 * scale), 1)):
        root = _random(rng, 2000)
        for _ in range(20):
            document = np.concatenate((root, _random(rng, 200)))
            prompts += [np.concatenate((document, _random(rng, 50))) for _ in range(10)]
    lengths = np.full(len(prompts), 50)
    return _shuffled(rng, Job("hierarchy", prompts, lengths, None))


def spread_outputs(*, seed: int, scale: float, known: bool) -> Job:
    """Groups of 8 over 500 tokens whose outputs spread 10 : 1 between groups, 30 to 300 tokens.

    known: the request says its length (max_tokens); otherwise it may write 512 and stops by itself.
    """
    rng = np.random.default_rng(seed)
    prompts, lengths = [], []
    for _ in range(max(round(4000 * scale) // 8, 1)):
        shared, typical = _random(rng, 500), 30 * 10 ** rng.random()
        for _ in range(8):
            prompts.append(np.concatenate((shared, _random(rng, 100))))
            lengths.append(int(np.clip(typical * rng.uniform(0.8, 1.25), 30, 300)))
    name = "spread-known" if known else "spread"
    return _shuffled(rng, Job(name, prompts, np.array(lengths), None if known else 512))


def mixed(*, seed: int, scale: float) -> Job:
    """Half long prompts with short answers (1500 tokens, 10 of output), half the reverse (100 and 300), all
    without sharing and saying their lengths: what an order that mixes both is for."""
    rng = np.random.default_rng(seed)
    half = max(round(3000 * scale) // 2, 1)
    prompts = [_random(rng, 1500) for _ in range(half)] + [_random(rng, 100) for _ in range(half)]
    lengths = np.repeat([10, 300], half)
    return _shuffled(rng, Job("mixed", prompts, lengths, None))


def real_file(name: str, member: str, *, output: int, seed: int, scale: float) -> Job:
    """All prompts of a file of the `evals` package through the default model's chat template, shuffled."""
    rows = list(read_evals(member))
    ids = _tokenized(member, [row["input"] for row in rows])
    count = max(round(len(ids) * scale), 1)
    job = Job(name, ids[:count], np.full(count, output), None)
    return _shuffled(np.random.default_rng(seed), job)


def _tokenized(member: str, chats: list[list[dict[str, str]]]) -> list[TokenIds]:
    """Rendered prompts; kept in the cache, since the tokenizer is slow to load."""
    cached = Path(platformdirs.user_cache_dir("batchllm")) / "evals" / f"{member}.npz"
    if not cached.exists():
        from engine.execution.resolve import resolve_model
        from engine.text.tokenizer import Tokenizer

        tokenizer = Tokenizer(resolve_model(DEFAULT_MODEL))
        prompts = [tokenizer.render_chat(chat) for chat in chats]
        lengths = np.array([len(prompt) for prompt in prompts])
        np.savez(cached, tokens=np.concatenate(prompts), lengths=lengths)
    stored = np.load(cached)
    return np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])


def _random(rng: np.random.Generator, num_tokens: int) -> NDArray[np.int32]:
    return rng.integers(0, 100_000, num_tokens, dtype=np.int32)


def _shuffled(rng: np.random.Generator, job: Job) -> Job:
    return job.reordered(rng.permutation(len(job.prompts)).tolist())


# name -> make(seed=, scale=)
JOBS: dict[str, Callable[..., Job]] = {
    # (requests, prefix, own, output, degree): the paper's two micro benchmarks and its industry task.
    "micro": partial(shared_prefixes, "micro", 6400, 2000, 200, 100, 16),
    "micro-16k": partial(shared_prefixes, "micro-16k", 6400, 16000, 200, 100, 16),
    "industry": partial(shared_prefixes, "industry", 8000, 1570, 30, 100, 3),
    "hierarchy": hierarchy,
    "instruction": partial(shared_prefixes, "instruction", 4000, 800, 100, 20, 4000),
    "no-sharing": partial(shared_prefixes, "no-sharing", 4000, 0, 500, 100, 1),
    "spread": partial(spread_outputs, known=False),
    "mixed": mixed,
    "spread-known": partial(spread_outputs, known=True),
    "logiqa": partial(real_file, "logiqa", "logiqa/logiqa.jsonl", output=32),
    "spider_sql": partial(real_file, "spider_sql", "sql/spider_sql.jsonl", output=32),
    "mazes": partial(real_file, "mazes", "mazes/10x10-mazes.jsonl", output=32),
}
