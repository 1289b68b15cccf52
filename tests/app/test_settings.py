"""Settings from flags and environment."""

from pathlib import Path

import pytest

from app.settings import DEFAULT_MODEL, StartupError, load_settings, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1_024),
        ("512MB", 512_000_000),
        ("2GiB", 2 * 1024**3),
        (" 1.5 g ", 3 * 512 * 1024**2),
        ("7kb", 7_000),
        ("7K", 7_168),
        ("1TiB", 1024**4),
        ("9b", 9),
        (77, 77),
    ],
)
def test_byte_counts(text: object, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "3XB", "1e3", "0x10"])
def test_byte_counts_that_are_none(text: str) -> None:
    with pytest.raises(StartupError, match="--kv-memory"):
        load_settings(kv_memory=text)


def test_defaults(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/batchllm.db"
    assert (settings.host, settings.port, settings.allow_remote) == ("127.0.0.1", 8000, False)
    assert settings.served_models == [DEFAULT_MODEL]
    assert settings.kv_memory is None


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHLLM_PORT", "9001")
    monkeypatch.setenv("BATCHLLM_KV_MEMORY", "1GiB")
    assert load_settings(port=None).port == 9001
    assert load_settings(port=9002).port == 9002
    assert load_settings().kv_memory == 1024**3


def test_names_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert load_settings(model=str(tmp_path / "my-model") + "/").served_models == ["my-model"]
    assert load_settings(model="org/name").served_models == ["org/name"]
    assert load_settings(model="org/name", model_name="gpt").served_models == ["gpt"]


def test_other_names_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(model="org/name", model_aliases=" gpt-4o, gpt-4o-mini,,org/name,gpt-4o")
    assert settings.served_models == ["org/name", "gpt-4o", "gpt-4o-mini"]
    assert settings.served_model == "org/name"
    monkeypatch.setenv("BATCHLLM_MODEL_ALIASES", "gpt-4o-mini")
    assert load_settings(model="org/name").served_models == ["org/name", "gpt-4o-mini"]
    assert load_settings(model="org/name", model_aliases="").served_models == ["org/name"]
    for wrong in ("two words", "größe", "x" * 129):
        with pytest.raises(StartupError, match="--model-aliases is wrong"):
            load_settings(model_aliases=wrong)


def test_a_wrong_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match=r"^The setting --port is wrong \(70000\): .*\.$"):
        load_settings(port=70_000)
    monkeypatch.setenv("BATCHLLM_LEASE_SECONDS", "soon")
    with pytest.raises(StartupError, match=r"^The setting BATCHLLM_LEASE_SECONDS is wrong \('soon'\)"):
        load_settings()
    monkeypatch.delenv("BATCHLLM_LEASE_SECONDS")
    with pytest.raises(StartupError, match="--no-such-thing"):
        load_settings(no_such_thing=1)
