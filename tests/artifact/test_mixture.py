"""A mixture artifact: what is written comes back to the bit, and selections and mixtures are told apart."""

from pathlib import Path

import datasets
import duckdb
import numpy as np
import polars
import pytest

from dataflex_tools.artifact import mixture as mixture_module
from dataflex_tools.artifact.manifest import facet_of, read_manifest, verify_artifact
from dataflex_tools.artifact.mixture import load_mixture, natural_share
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.mixing import Mixture
from tests.artifact.examples import contents, measure, mix, online_mixture, plan, random_ids


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, dtype=np.float64).tobytes()


@pytest.mark.parametrize("rows_per_group", [2**18, 5])
def test_a_mixture_comes_back_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int) -> None:
    monkeypatch.setattr(mixture_module, "_ROWS_PER_GROUP", rows_per_group)
    given = online_mixture(schedule=True)
    written = mix(tmp_path / "odm", given)
    loaded = load_mixture(tmp_path / "odm")
    back = loaded.mixture
    assert loaded.manifest == written
    assert back.names == given.names
    np.testing.assert_array_equal(back.step_S, given.step_S)
    assert bits(back.weight_SK) == bits(given.weight_SK)
    assert [state.step for state in back.trajectory] == [state.step for state in given.trajectory]
    for ours, theirs in zip(back.trajectory, given.trajectory, strict=True):
        assert bits(ours.weight_K) == bits(theirs.weight_K)
        assert bits(ours.score_K) == bits(theirs.score_K)  # NaN included
    for column, values in given.tables["averages"].items():
        np.testing.assert_array_equal(back.tables["averages"][column], values)
    assert dict(back.facts) == dict(given.facts)


def test_the_order_of_domains_is_kept_whatever_their_names(tmp_path: Path) -> None:
    for number, names in enumerate((("z", "a", "m"), ("b", "a"), ("only",))):
        weight_K = np.arange(1.0, len(names) + 1)
        mix(tmp_path / str(number), Mixture.constant(names, weight_K))
        back = load_mixture(tmp_path / str(number)).mixture
        assert back.names == names
        np.testing.assert_array_equal(back.weight_SK[0], weight_K / weight_K.sum())


def test_a_mixture_without_a_trajectory_has_one_table(tmp_path: Path) -> None:
    written = mix(tmp_path / "static", Mixture.constant(("a", "b"), np.array([1.0, 3.0])))
    assert [entry["path"] for entry in written["files"]] == ["mixture.parquet", "README.md"]
    assert load_mixture(tmp_path / "static").mixture.trajectory == ()


def test_the_manifest_says_how_concentrated_the_weights_are(tmp_path: Path) -> None:
    stats = mix(tmp_path / "even", Mixture.constant(("a", "b"), np.ones(2)))["stats"]
    assert stats["weights"] == {"a": 0.5, "b": 0.5}
    assert stats["entropy"] == pytest.approx(np.log(2))
    assert stats["entropy_share"] == pytest.approx(1)
    assert stats["schedule"] == {"entries": 1, "last_step": 0}
    assert stats["warnings"] == []
    assert stats["num_tokens"]["web"] == 600  # what the caller knows stays
    (warning,) = mix(tmp_path / "steep", Mixture.constant(("a", "b"), np.array([0.96, 0.04])))["stats"]["warnings"]
    assert "'a' has 96.0% of the weight" in warning
    assert warning in (tmp_path / "steep" / "README.md").read_text()
    alone = mix(tmp_path / "alone", Mixture.constant(("a",), np.ones(1)))["stats"]
    assert (alone["entropy_share"], alone["warnings"]) == (None, [])


def test_the_weights_in_the_manifest_are_those_after_the_last_step(tmp_path: Path) -> None:
    given = online_mixture(schedule=True)
    stats = mix(tmp_path / "odm", given)["stats"]
    assert list(stats["weights"].values()) == given.weight_SK[-1].tolist()
    assert stats["schedule"] == {"entries": len(given.step_S), "last_step": int(given.step_S[-1])}
    assert stats["updates"] == len(given.trajectory) - 1


def test_equal_mixtures_have_equal_bytes_and_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    for name in ("a", "b"):
        first = mix(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
    assert mix(tmp_path / "b") == first
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == before
    assert verify_artifact(tmp_path / "a") == []


def test_another_artifact_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "doremi"
    mix(folder)
    before = contents(folder)
    with pytest.raises(ArtifactError, match=r"holds another artifact.*plan doremi.*or give --overwrite"):
        mix(folder, settings={"eta": 2})
    assert contents(folder) == before
    mix(folder, settings={"eta": 2}, overwrite=True)
    assert read_manifest(folder)["settings"] == {"eta": 2}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds files that no artifact lists \(notes\.txt\)"):
        mix(folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["doremi"]


def test_selections_and_mixtures_are_told_apart(tmp_path: Path) -> None:
    selection, mixture = plan(tmp_path / "less"), mix(tmp_path / "doremi")
    assert "facet" not in selection
    assert (facet_of(selection), facet_of(mixture)) == ("select", "mix")
    with pytest.raises(ArtifactError, match=r"doremi is a mixture, wanted a selection; give"):
        load_plan(tmp_path / "doremi")
    with pytest.raises(ArtifactError, match=r"less is a selection \(method less\), wanted a mixture; give"):
        load_mixture(tmp_path / "less")
    measure(tmp_path / "signal", random_ids(4))
    with pytest.raises(ArtifactError, match="kind 'signal', wanted a mixture"):
        load_mixture(tmp_path / "signal")
    with pytest.raises(ArtifactError, match="facet 'order'.*update flextools"):
        facet_of({"facet": "order"})


@pytest.mark.parametrize("name", ["mixture", "trajectory", "averages"])
def test_a_changed_table_is_not_loaded(tmp_path: Path, name: str) -> None:
    mix(tmp_path / "doremi")
    path = tmp_path / "doremi" / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}\.parquet was changed.*--overwrite"):
        load_mixture(tmp_path / "doremi")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("a", "a")}, "not distinct"),
        ({"tables": {"mixture": {"x": np.ones(1)}}}, "named 'mixture'"),
        ({"tables": {"../up": {"x": np.ones(1)}}}, "named '../up'"),
        ({"tables": {"swarm": {"x": np.ones(1), "y": np.ones(2)}}}, "not vectors of one length"),
        ({"tables": {"swarm": {"x": np.ones((2, 2))}}}, "not vectors of one length"),
    ],
)
def test_what_a_reader_could_not_tell_apart_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    given = {"names": ("a", "b"), "step_S": np.zeros(1, dtype=np.int64), "weight_SK": np.full((1, 2), 0.5), **changed}
    with pytest.raises(ValueError, match=message):
        mix(tmp_path / "wrong", Mixture(**given))
    assert list(tmp_path.iterdir()) == []


def test_other_tools_read_it_as_it_is(tmp_path: Path) -> None:
    given = online_mixture(schedule=True)
    folder = tmp_path / "odm"
    mix(folder, given)
    rows = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.column_names == ["step", "domain", "weight"]
    np.testing.assert_array_equal(rows["weight"][:], given.weight_SK.reshape(-1))
    further = datasets.load_dataset(str(folder), "trajectory", cache_dir=str(tmp_path / "cache"))["train"]
    assert further.column_names == ["step", "domain", "weight", "score"]
    query = f"select domain, weight from '{folder}/mixture.parquet' order by step desc, weight desc limit 1"
    (last,) = duckdb.sql(query).fetchall()
    top = int(given.weight_SK[-1].argmax())
    assert last == (given.names[top], given.weight_SK[-1, top])
    assert polars.read_parquet(folder / "averages.parquet")["domain"].to_list() == list(given.names)


def test_the_natural_share_is_of_tokens_where_they_are_known(tmp_path: Path) -> None:
    manifest = mix(tmp_path / "doremi")
    share_K, unit = natural_share(manifest, ("web", "code"))
    assert unit == "tokens"
    np.testing.assert_array_equal(share_K, [0.75, 0.25])
    share_K, unit = natural_share({**manifest, "stats": {}}, ("web", "code"))
    assert unit == "rows"
    np.testing.assert_array_equal(share_K, [0.4, 0.6])
    assert natural_share(manifest, ("web", "unheard")) is None
    assert natural_share({}, ("web",)) is None
