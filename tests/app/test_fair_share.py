"""Tenants side by side on one worker: what they share, and that none waits for all that another brought."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from app.batch_engine import BatchEngine
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from engine.engine import Engine
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.scheduling.batch import StepBatch, StepTokens
from engine.scheduling.scheduler import Scheduler
from engine.text.tokenizer import Tokenizer
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.app.db.jobs import set_columns
from tests.app.test_worker import running, wait_until
from tests.fakes import ByteTokenizer, FakeEngine

MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(database: Database, storage: Storage, tmp_path: Path) -> MakeWorker:
    def make(engine: BatchEngine, **options: object) -> Worker:
        settings = Settings(data_dir=tmp_path, model="m", model_name="m").model_copy(update=options)
        return Worker(database, storage, settings, lambda: engine)

    return make


def _planning_engine(step_seconds: Callable[[], float], max_batch_tokens: int = 64) -> Engine:
    """The real engine, but for the model: it says A to everything."""

    def run_step(batch: StepBatch) -> StepTokens:
        time.sleep(step_seconds())
        return StepTokens(np.full(len(batch.sample_rows), 65, dtype=np.int32))

    pool = PagePool(2000, 16)
    scheduler = Scheduler(
        pool, max_batch_tokens=max_batch_tokens, eos_token_ids=frozenset({0}), lengths=LengthEstimator()
    )
    return Engine(
        run_step=run_step,
        scheduler=scheduler,
        pool=pool,
        tokenizer=cast(Tokenizer, ByteTokenizer()),
        max_context=2000,
        page_bytes=1,
    )


def _batch_of(database: Database, storage: Storage, owner: str, texts: list[str], max_tokens: int = 5) -> str:
    return batch_to_run(database.of(owner), storage, [chat(text, max_tokens=max_tokens) for text in texts])


@pytest.mark.parametrize(
    ("owner", "share_prefixes", "is_shared"),
    [("a", "tenant", True), ("b", "tenant", False), ("b", "all", True)],
)
def test_a_batch_that_joins_shares_within_its_tenant(
    database: Database,
    storage: Storage,
    make_worker: MakeWorker,
    owner: str,
    share_prefixes: str,
    is_shared: bool,
) -> None:
    num_prompt_tokens = 4 * 228
    # Slow until the second batch is in the engine.
    engine = _planning_engine(lambda: 0.01 if engine.stats.prompt_tokens == num_prompt_tokens else 0.0)
    prefix = "p" * 200 + "question "
    first = _batch_of(database, storage, "a", [f"{prefix}a{i}" for i in range(4)], max_tokens=1000)
    with running(make_worker(engine, claim_tokens=10**6, share_prefixes=share_prefixes)):
        wait_until(lambda: engine.stats.steps > 10)
        second = _batch_of(database, storage, owner, [f"{prefix}b{i}" for i in range(4)])
        for batch_id in (first, second):
            wait_until(lambda id_=batch_id: read_batch(database, id_).status == BatchStatus.FINALIZING)
    alone = 216 + 4 * 12  # what the four prompts have in common, and the rest of each
    more = engine.stats.computed_prompt_tokens - alone
    # Of the 215 tokens in common 208 are whole pages.
    assert 8 + 4 * 12 <= more <= 4 * 20 if is_shared else more == alone
    usages = [result["response"]["body"]["usage"] for result in results_of(database, second).values()]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert (min(cached) >= 208) == is_shared


def test_one_batch_does_not_wait_for_all_of_another_tenant(
    database: Database, storage: Storage, make_worker: MakeWorker
) -> None:
    engine = _planning_engine(lambda: 0.01, max_batch_tokens=16)
    many = [_batch_of(database, storage, "a", [f"{i}" for i in range(400)]) for _ in range(3)]
    with running(make_worker(engine, claim_tokens=1)):
        wait_until(lambda: read_batch(database, many[0]).completed)
        single = _batch_of(database, storage, "b", ["x", "y", "z"])
        wait_until(lambda: read_batch(database, single).status == BatchStatus.FINALIZING)
        assert read_batch(database, many[0]).status == BatchStatus.IN_PROGRESS
        assert read_batch(database, many[1]).lease_owner is None  # the budget of its tenant is used up


def test_claims_alternate_between_tenants(
    database: Database, storage: Storage, make_worker: MakeWorker
) -> None:
    owners = ["a", "a", "a", "b", "b", "a", "c"]
    batch_ids = [_batch_of(database, storage, owner, ["x"]) for owner in owners]
    set_columns(database, batch_ids[5], priority=1)
    engine = FakeEngine(per_step=1)
    # One is over before the next is claimed.
    make_worker(engine, claim_tokens=1).run(threading.Event(), until_idle=True)
    assert set(engine.starts.values()) == {1}
    place = {line.id: batch_id for batch_id in batch_ids for line in lines_of(database, batch_id)}
    started = [place[line_id] for line_id in engine.starts]
    assert started == [batch_ids[index] for index in (5, 3, 6, 0, 4, 1, 2)]
