"""The table of peers, and that every setting has something to run."""

from pathlib import Path

from benchmarks import peers
from benchmarks.bench_peers import SETTINGS, table
from benchmarks.peers.environments import ENVIRONMENTS


def _run(setting: str, seconds: float, texts: list[str]) -> dict[str, object]:
    floor = {"floor_seconds": 10.0, "others": 0.01}
    return {"workload": "A", "setting": setting, "seconds": seconds, "texts": texts, **floor}


def test_every_setting_names_an_environment_that_has_a_script() -> None:
    folder = Path(peers.__file__).parent
    of_peers = {setting.peer for setting in SETTINGS.values() if setting.peer is not None}
    assert of_peers == set(ENVIRONMENTS)
    assert all((folder / f"run_{peer}.py").is_file() for peer in of_peers)


def test_the_table_divides_medians_by_our_median_and_counts_equal_texts() -> None:
    ours = [_run("ours", seconds, ["a", "b"]) for seconds in (11.0, 12.0, 40.0)]
    theirs = [_run("vllm-eager", seconds, ["a", "c"]) for seconds in (17.0, 18.0, 19.0)]
    _, _, first, second = table(ours + theirs).splitlines()
    assert first == "| A | ours | 3 | 12.0 | 1.20 | 1.00 | 2/2 | 1.0% |"
    assert second == "| A | vllm-eager | 3 | 18.0 | 1.80 | 1.50 | 1/2 | 1.0% |"


def test_without_our_own_runs_nothing_is_compared() -> None:
    assert "| A | vllm-eager | 1 | 17.0 | 1.70 | - | - | 1.0% |" in table([_run("vllm-eager", 17.0, ["a"])])
