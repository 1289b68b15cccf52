"""/v1/models, and files that ask for the model by another name."""

import threading
from pathlib import Path

import openai
import pytest

from app.db.session import Database
from app.keeper import Keeper
from app.storage import Storage
from app.worker import Worker
from tests.app.api.conftest import running
from tests.app.batches import chat, input_file
from tests.fakes import FakeEngine

ALIAS = "gpt-4o-mini"


def test_a_file_for_another_model_runs_under_an_alias(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    with running(database, storage, tmp_path, model_name="local/model", model_aliases=(ALIAS,)) as server:
        listed = server.client.models.list().data
        assert [model.id for model in listed] == ["local/model", ALIAS]
        assert [model.to_dict()["alias_of"] for model in listed] == [None, "local/model"]
        assert server.client.models.retrieve(ALIAS).id == ALIAS
        with pytest.raises(openai.NotFoundError):
            server.client.models.retrieve("gpt-4o")

        bodies = [chat("a", model=ALIAS), chat("b", model="local/model")]
        file = server.client.files.create(file=input_file(bodies), purpose="batch")
        batch = server.client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        keeper = Keeper(database, storage, server.settings)
        keeper.tick()
        Worker(database, storage, server.settings, FakeEngine).run(threading.Event(), until_idle=True)
        keeper.tick()
        done = server.client.batches.retrieve(batch.id)
        assert done.status == "completed"
        assert done.output_file_id is not None
        answers = server.client.files.content(done.output_file_id).text
        assert f'"model":"{ALIAS}"' in answers
        assert '"model":"local/model"' in answers


def test_a_name_that_is_not_configured_fails_the_batch(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    with running(database, storage, tmp_path, model_name="local/model", model_aliases=(ALIAS,)) as server:
        bodies = [chat("a", model=ALIAS), chat("b", model="gpt-4o")]
        file = server.client.files.create(file=input_file(bodies), purpose="batch")
        batch = server.client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        Keeper(database, storage, server.settings).tick()
        failed = server.client.batches.retrieve(batch.id)
        assert failed.status == "failed"
        assert failed.errors is not None
        assert failed.errors.data is not None
        error = failed.errors.data[0]
        assert (error.code, error.line, error.param) == ("model_not_found", 2, "body.model")
        assert error.message.endswith("Served here: gpt-4o-mini, local/model.")
