"""The examples run as they stand, on the real models."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedding_models import minilm_dir
from tests.service import Service

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
GENERATING = ("few_shot_labelling", "document_qa", "structured_extraction")
EMBEDDING = ("reranking", "embeddings")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_every_example_is_short_and_is_run_here() -> None:
    examples = {path.stem: path for path in EXAMPLES.glob("*.py")}
    del examples["demo"]  # a whole job, service and all
    assert set(examples) == {*GENERATING, *EMBEDDING}
    for path in examples.values():
        assert len(path.read_text().splitlines()) < 60, path


@pytest.fixture(scope="module")
def generating(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[Service]:
    yield from serving(tmp_path_factory.mktemp("generating"), {})


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    names = {"BATCHLLM_MODEL": str(minilm_dir()), "BATCHLLM_MODEL_NAME": MINILM}
    yield from serving(tmp_path_factory.mktemp("embedding"), names)


def serving(data_dir: Path, environment: dict[str, str]) -> Iterator[Service]:
    service = Service(data_dir, environment)
    service.start()
    yield service
    assert service.stop() == 0


def output(name: str, service: Service) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    environment = os.environ | {"BATCHLLM_URL": service.url}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.long
def test_few_shot_labelling(generating: Service) -> None:
    said = output("few_shot_labelling", generating)
    labels = re.findall(r"^(good|bad) ", said, flags=re.MULTILINE)
    assert len(labels) == 6, said
    assert "tokens were not computed again" in said


@pytest.mark.long
def test_document_qa(generating: Service) -> None:
    said = output("document_qa", generating)
    assert "Ada Stone" in said
    assert said.count("\n    ") == 6
    saved = re.search(r"(\d+)% of the prompt tokens", said)
    assert saved is not None
    assert int(saved[1]) > 50


@pytest.mark.long
def test_structured_extraction(generating: Service) -> None:
    said = output("structured_extraction", generating)
    assert len(re.findall(r"^.+, \d+, .+$", said, flags=re.MULTILINE)) == 3, said


@pytest.mark.long
def test_reranking(embedding: Service) -> None:
    said = output("reranking", embedding)
    first = re.findall(r"^\S.*\n    [\d.]+ (.+)$", said, flags=re.MULTILINE)
    assert [text.split()[0] for text in first] == ["A", "Water", "The"], said


@pytest.mark.long
def test_embeddings(embedding: Service) -> None:
    said = output("embeddings", embedding)
    assert re.search(r"The cat sleeps on the sofa\. +A kitten is napping", said), said
    assert re.search(r"Stocks fell sharply on Tuesday\. +The market lost", said), said
