"""A keeper for the tests of the service."""

from pathlib import Path

import pytest

from app.db.session import Database
from app.keeper import Keeper
from app.settings import Settings, load_settings
from app.storage import Storage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", model_name="m", max_validation_errors=5)


@pytest.fixture
def keeper(database: Database, storage: Storage, settings: Settings) -> Keeper:
    return Keeper(database, storage, settings)
