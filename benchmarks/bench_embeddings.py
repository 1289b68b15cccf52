"""2,000 texts embedded by our engine and by sentence-transformers, tokenising included, by turns.

    python -m benchmarks.bench_embeddings --threads 2

Both have loaded MiniLM before the clock starts, and the vectors are compared before a time is told.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.encoder_engine import EncoderEngine
from engine.request import Request, SamplingParams
from tests.embedding_models import minilm_dir

_WORDS = [
    *(
        "time",
        "people",
        "water",
        "question",
        "answer",
        "river",
        "city",
        "music",
        "history",
        "science",
        "market",
    ),
    *(
        "market",
        "window",
        "garden",
        "letter",
        "summer",
        "winter",
        "paper",
        "travel",
        "engine",
        "family",
        "number",
    ),
    *("system", "village", "morning", "evening", "because", "although", "between"),
]


def make_texts(num_texts: int) -> list[str]:
    """Different texts of 3 to 120 words, short ones more often."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.2, 0.8, num_texts), 3, 120).astype(int)
    return [" ".join(rng.choice(_WORDS, length)) for length in lengths]


def embed(engine: EncoderEngine, texts: list[str]) -> np.ndarray:
    """float32 [texts, size], in order."""
    sampling = SamplingParams(max_tokens=0)
    engine.add([Request(i, engine.tokenizer.encode(text), sampling) for i, text in enumerate(texts)])
    vectors: list[np.ndarray | None] = [None] * len(texts)
    while engine.has_work:
        for completion in engine.step():
            vectors[completion.request_id] = completion.embedding
    return np.stack(vectors)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    texts = make_texts(arguments.texts)
    path = str(minilm_dir())
    engine = build_engine(EngineConfig(path, num_threads=arguments.threads))
    assert isinstance(engine, EncoderEngine)
    torch.set_num_threads(arguments.threads)
    peer = SentenceTransformer(path, device="cpu")
    difference = np.abs(embed(engine, texts[:200]) - peer.encode(texts[:200])).max()
    print(f"largest difference of a number, 200 texts: {difference:.1e}")
    seconds: dict[str, list[float]] = {"ours": [], "sentence-transformers": []}
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        embed(engine, texts)
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        peer.encode(texts)
        seconds["sentence-transformers"].append(time.perf_counter() - started)
    for name, times in seconds.items():
        all_times = ", ".join(f"{one:.2f}" for one in times)
        print(f"{name}: median {statistics.median(times):.2f} s of {all_times}")


if __name__ == "__main__":
    main()
