"""Content under a valid digest: what no method, mixer or measurement writes is refused, whoever signed it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.artifact.plan import load_plan
from dataflex_tools.artifact.signal import SignalStore, list_column
from dataflex_tools.core.errors import ArtifactError
from tests.artifact.examples import DIM, measure, mix, online_mixture, plan, random_ids
from tests.artifact.hostile import change_table, sign, with_column

ORDER = np.random.default_rng(0).permutation(12)
SCORES = np.linspace(-1, 1, 12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.take(ORDER), "not in the order of the corpus"),
        (lambda t: t.take(ORDER).set_column(0, "row", t["row"]), "ids are not those of its corpus"),
        (lambda t: t.slice(0, 6), "6 rows, its corpus has 12"),
        (lambda t: pa.concat_tables([t, t]), "24 rows, its corpus has 12"),
        (with_column("sample_id", [b"x" * 16] * 12), "ids are not those of its corpus"),
        (with_column("score", [np.nan, *SCORES[1:]]), "NaN or positive infinity"),
        (with_column("score", [np.inf, *SCORES[1:]]), "NaN or positive infinity"),
        (with_column("score", [None, *SCORES[1:]]), "'score' has values that are null"),
        (with_column("score", pa.array(SCORES.astype(np.float32))), "column 'score' is float, wanted double"),
        (with_column("score", pa.array([str(s) for s in SCORES])), "column 'score' is string, wanted double"),
        (with_column("num_tokens", [-1, *range(2, 13)]), "number of tokens is negative"),
        (with_column("domain", pa.array(["web"] * 12)), "column 'domain' is string, wanted dictionary"),
        (with_column("domain", pa.DictionaryArray.from_arrays([0] * 12, ["x" * 5000])), "has 5,000 characters"),
        (lambda t: t.drop_columns(["num_tokens"]), "'num_tokens' is no such column"),
        (lambda t: t.append_column("row", t["row"]), "'row' is int64, int64"),
    ],
)  # fmt: skip
def test_a_plan_that_no_method_wrote_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    plan(tmp_path / "p")
    change_table(tmp_path / "p", "scores.parquet", change)
    with pytest.raises(ArtifactError, match=match):
        load_plan(tmp_path / "p")


@pytest.mark.parametrize(
    ("corpus", "match"),
    [({"tokens": 77}, "78 tokens, its corpus has 77"), ({"domains": {"web": 5, "code": 7}}, "6 rows of domain web")],
)
def test_a_plan_with_other_counts_than_its_corpus_is_refused(tmp_path: Path, corpus: Any, match: str) -> None:
    plan(tmp_path / "p")
    sign(tmp_path / "p", corpus={**read_manifest(tmp_path / "p")["corpus"], **corpus})
    with pytest.raises(ArtifactError, match=match):
        load_plan(tmp_path / "p")


def test_rows_that_are_never_selected_are_part_of_a_plan(tmp_path: Path) -> None:
    plan(tmp_path / "p")
    change_table(tmp_path / "p", "scores.parquet", with_column("score", [-np.inf] * 12))
    assert np.isneginf(load_plan(tmp_path / "p").score_N).all()


@pytest.mark.parametrize("name", ["mixture.parquet", "trajectory.parquet"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.slice(1), "rows, wanted one for each step and domain|same domains at every step"),
        (lambda t: t.slice(0, 0), "has 0 rows"),
        (lambda t: t.take(np.arange(len(t))[::-1]), "do not ascend from 0|last weights are not|other domains"),
        (lambda t: with_column("weight", -np.asarray(t["weight"]))(t), "negative or not finite"),
        (lambda t: with_column("weight", np.full(len(t), np.nan))(t), "negative or not finite"),
        (lambda t: with_column("weight", np.full(len(t), 0.5))(t), "do not sum to 1"),
        (lambda t: with_column("step", np.full(len(t), 3))(t), "last weights are not|other domains than"),
        (lambda t: with_column("step", pa.array(np.asarray(t["step"], float)))(t), "'step' is double, wanted int64"),
        (lambda t: with_column("domain", pa.DictionaryArray.from_arrays([0] * len(t), ["a"]))(t),
         "a domain stands twice|other domains than"),
    ],
)  # fmt: skip
def test_a_mixture_that_no_mixer_wrote_is_refused(tmp_path: Path, name: str, change: Any, match: str) -> None:
    mix(tmp_path / "m", online_mixture(schedule=True))
    change_table(tmp_path / "m", name, change)
    with pytest.raises(ArtifactError, match=match):
        load_mixture(tmp_path / "m")


def test_weights_that_the_manifest_does_not_state_are_refused(tmp_path: Path) -> None:
    mix(tmp_path / "m")
    change_table(tmp_path / "m", "mixture.parquet", with_column("weight", [0.5, 0.25, 0.25]))
    with pytest.raises(ArtifactError, match="last weights are not those of the manifest"):
        load_mixture(tmp_path / "m")


def vector(first: float, dtype: Any = np.float16) -> pa.Array:
    value_BD = np.tile(np.eye(1, DIM, dtype=dtype), (4, 1))
    value_BD[1, 0] = first
    return pa.FixedSizeListArray.from_arrays(pa.array(value_BD.reshape(-1)), DIM)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_column("value", vector(np.nan)), "value that is not a vector of length 1"),
        (with_column("value", vector(np.inf)), "value that is not a vector of length 1"),
        (with_column("value", vector(3.0)), "value that is not a vector of length 1"),
        (with_column("value", vector(1.0, np.float32)), "column 'value' is .*float.*, wanted .*halffloat"),
        (with_column("norm", [1, np.nan, 1, 1]), "norm that is not finite"),
        (with_column("row", [0, 1, 3, 2]), "rows are not in their order"),
        (with_column("sample_id", [b"y" * 16] * 4), "its ids are not those it states"),
        (with_column("norm", [1, None, 1, 1]), "'norm' has values that are null"),
    ],
)  # fmt: skip
def test_a_part_that_no_measurement_wrote_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    ids_N16 = random_ids(4)
    measure(tmp_path, ids_N16)
    change_table(tmp_path, "part-00000.parquet", change)
    with pytest.raises(ArtifactError, match=match):
        list(measure(tmp_path, ids_N16).rows(ids_N16).blocks())


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_stored_loss_that_is_not_finite_is_refused(tmp_path: Path, number: float) -> None:
    spec, ids_N16 = {"kind": "token_loss"}, random_ids(2)
    columns = pa.schema([list_column("token_loss", "float16")])
    signal = SignalStore(tmp_path, spec, columns)
    signal.plan_parts(ids_N16, 2)
    lists = np.empty(2, object)
    lists[:] = [np.ones(3), np.ones(2)]
    signal.write_part(0, ids_N16, {"token_loss": lists})
    signal.finish({})
    change_table(tmp_path, "part-00000.parquet", with_column("token_loss", [[1.0, number, 1.0], [1.0, 1.0]]))
    with pytest.raises(ArtifactError, match="token_loss that is not finite"):
        list(SignalStore(tmp_path, spec, columns).lists(ids_N16, "token_loss").blocks())


def test_a_part_numbered_beyond_all_others_does_not_hang(tmp_path: Path) -> None:
    measure(tmp_path, random_ids(4))
    (tmp_path / "part-00000.parquet").rename(tmp_path / "part-9999999.parquet")
    with pytest.raises(ArtifactError, match="does not say where its rows stand"):
        measure(tmp_path, random_ids(4))


def test_a_plan_of_far_too_many_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    plan(tmp_path / "p")
    path, count = tmp_path / "p" / "scores.parquet", 20_000_000
    columns = {"row": pa.array(np.zeros(count, np.int64)), "score": pa.array(np.zeros(count))}
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 200_000
    sign(tmp_path / "p")
    with pytest.raises(ArtifactError, match=r"20,000,000 rows would take 320,\d+,\d+ bytes"):
        load_plan(tmp_path / "p")


def test_a_name_of_many_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    plan(tmp_path / "p")
    long = pa.DictionaryArray.from_arrays([0] * 12, ["x" * (40 * 2**20)])
    change_table(tmp_path / "p", "scores.parquet", with_column("domain", long))
    with pytest.raises(ArtifactError, match="bytes of text in one column of names"):
        load_plan(tmp_path / "p")
