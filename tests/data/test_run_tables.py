"""Tables of runs: joined by name or order, scaled, and refused with file, run and column."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.run_tables import named_numbers, read_run_tables
from tests.helpers import FLOAT64

RATIOS = "index,web,code\n1,0.5,0.5\n2,0.75,0.25\n3,0.2,0.8\n"
METRICS = "index,loss,acc\n3,3.5,0.3\n1,1.5,0.1\n2,2.5,0.2\n"


def tables(tmp_path: Path, ratios: str = RATIOS, metrics: str = METRICS, **options):
    (tmp_path / "a.csv").write_text(ratios)
    (tmp_path / "b.csv").write_text(metrics)
    return read_run_tables(tmp_path / "a.csv", tmp_path / "b.csv", **options)


def test_runs_are_joined_by_their_names_whatever_their_order(tmp_path: Path) -> None:
    found = tables(tmp_path)
    assert (found.ids, found.names, found.metrics) == (("1", "2", "3"), ("web", "code"), ("loss", "acc"))
    np.testing.assert_array_equal(found.weight_SK, [[0.5, 0.5], [0.75, 0.25], [0.2, 0.8]])
    np.testing.assert_array_equal(found.metric_SM, [[1.5, 0.1], [2.5, 0.2], [3.5, 0.3]])
    assert found.notes == ("the tables are joined by 'index'",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("index", "run"),
        ("", ""),
        ("Unnamed: 0", "Unnamed: 0"),
        ("Unnamed: 0,index", "index"),
        ("Run_ID", "run_id"),
    ],
)
def test_a_first_column_that_is_called_so_names_the_runs_and_is_no_domain(tmp_path: Path, first: str, second: str) -> None:
    number = "9," if "," in first else ""
    ratios = f"{first},web,code\n{number}1,0.5,0.5\n{number}2,0.75,0.25\n{number}3,0.2,0.8\n"
    found = tables(tmp_path, ratios, METRICS.replace("index", second))
    assert found.names == ("web", "code")
    np.testing.assert_array_equal(found.metric_SM[:, 0], [1.5, 2.5, 3.5])


def test_text_in_the_first_column_names_the_runs(tmp_path: Path) -> None:
    ratios = "mix,web,code\nn1,0.5,0.5\nn2,0.75,0.25\n"
    found = tables(tmp_path, ratios, "exp,loss\nn2,2.5\nn1,1.5\n")
    assert found.metric_SM[:, 0].tolist() == [1.5, 2.5]
    assert found.notes == ("the tables are joined by 'mix' and 'exp'",)


def test_without_names_in_both_the_order_of_rows_joins_and_is_told(tmp_path: Path) -> None:
    found = tables(tmp_path, "web,code\n0.5,0.5\n0.75,0.25\n0.2,0.8\n")
    assert found.metric_SM[:, 0].tolist() == [3.5, 1.5, 2.5]
    assert "joined by the order of their rows" in found.notes[0]
    assert found.ids == ("0", "1", "2")


def test_the_index_can_be_named(tmp_path: Path) -> None:
    found = tables(tmp_path, RATIOS.replace("index", "seed"), METRICS.replace("index", "seed"), index="seed")
    assert found.metric_SM[:, 0].tolist() == [1.5, 2.5, 3.5]
    with pytest.raises(ConfigError, match=r"has no column 'sead' \(--index\); did you mean 'seed'"):
        tables(tmp_path, RATIOS.replace("index", "seed"), METRICS.replace("index", "seed"), index="sead")


def test_parquet_and_compressed_and_other_delimiters_say_the_same(tmp_path: Path) -> None:
    wanted = tables(tmp_path)
    frame = {"__index_level_0__": [3, 1, 2], "loss": [3.5, 1.5, 2.5], "acc": pa.array([0.3, 0.1, 0.2], pa.float32())}
    pq.write_table(pa.table(frame), tmp_path / "b.parquet")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + RATIOS.encode()))
    (tmp_path / "a.tsv").write_text(RATIOS.replace(",", "\t"))
    (tmp_path / "semicolons.csv").write_text(RATIOS.replace(",", ";"))
    for name in ("a.csv.gz", "a.tsv", "semicolons.csv"):
        found = read_run_tables(tmp_path / name, tmp_path / "b.parquet")
        np.testing.assert_array_equal(found.weight_SK, wanted.weight_SK)
        np.testing.assert_allclose(found.metric_SM, wanted.metric_SM, rtol=1e-6)


def test_percentages_and_rounded_shares_are_scaled_and_told(tmp_path: Path) -> None:
    found = tables(tmp_path, "index,web,code\n1,50,50\n2,75,25\n3,20,80\n")
    np.testing.assert_allclose(found.weight_SK, tables(tmp_path).weight_SK, **FLOAT64)
    assert "percentages sum to 100 to 100 and are scaled" in found.notes[1]
    found = tables(tmp_path, RATIOS.replace("0.5,0.5", "0.497,0.499"))
    np.testing.assert_allclose(found.weight_SK[0], [0.497 / 0.996, 0.499 / 0.996], **FLOAT64)
    assert "shares sum to 0.996 to 1 and are scaled" in found.notes[1]


def test_runs_of_one_mixture_are_told(tmp_path: Path) -> None:
    found = tables(tmp_path, RATIOS + "4,0.5,0.5\n", METRICS + "4,1.4,0.1\n")
    assert "1 runs repeat the mixture of another one" in found.notes[-1]


def test_a_metric_that_is_not_there_is_nan_and_text_is_no_metric(tmp_path: Path) -> None:
    found = tables(tmp_path, metrics="index,model,loss\n3,a,\n1,b,1.5\n2,c,NaN\n")
    assert found.metrics == ("loss",)
    np.testing.assert_array_equal(found.metric_SM, [[1.5], [np.nan], [np.nan]])


@pytest.mark.parametrize(
    ("ratios", "metrics", "said"),
    [
        (RATIOS.replace("0.75,0.25", "0.75,0.35"), METRICS, "shares of run 2 sum to 1.1, wanted 1"),
        (RATIOS.replace("0.5,0.5", "50,50"), METRICS, "shares of run 1 sum to 100, wanted 1"),
        (RATIOS.replace("0.75,0.25", ",0.25"), METRICS, "share of 'web' in run 2 is missing; write 0 for none"),
        (RATIOS.replace("0.75,0.25", "1.25,-0.25"), METRICS, "share of 'code' in run 2 is -0.25, wanted 0 or more"),
        (RATIOS.replace("0.75,", '"0,75",'), METRICS, "column 'web' holds '0,75', wanted numbers"),
        (RATIOS.replace("0.75", "75%"), METRICS, "column 'web' holds '75%', wanted numbers"),
        ("index,web,code,law\n1,.5,.5,0\n2,.7,.3,0\n3,.2,.8,0\n", METRICS, "share of 'law' is 0 in all 3 runs"),
        ("index,web,code,law\n1,.5,.4,.1\n2,.7,.2,.1\n3,.2,.7,.1\n", METRICS, "share of 'law' is 0.1 in all 3 runs"),
        (RATIOS.replace("3,0.2", "2,0.2"), METRICS, "'index' names the run 2 twice"),
        (RATIOS.replace("web,code", "web,web"), METRICS, "has the column 'web' twice"),
        (RATIOS, METRICS.replace("3,3.5", "4,3.5"), r"1 of the 3 runs of .*a.csv \(index 3\) are not in .*b.csv"),
        (RATIOS, METRICS + "4,1,1\n", r"1 of the 4 runs of .*b.csv \(index 4\) are not in .*a.csv"),
        ("web,code\n0.5,0.5\n0.2,0.8\n", METRICS, "a.csv has 2 rows and .*b.csv 3, and no column names the runs in both"),
        (RATIOS, "index,model\n1,a\n2,b\n3,c\n", "has no column of numbers"),
        (RATIOS, "index\n1\n2\n3\n", "has no columns besides 'index'"),
        ("index,web,code\n", METRICS, "has no rows"),
        ("", METRICS, "cannot be read"),
        (RATIOS + "4,0.5\n", METRICS, "cannot be read"),
    ],
)
def test_what_cannot_be_fitted_is_said_with_its_place(tmp_path: Path, ratios: str, metrics: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        tables(tmp_path, ratios, metrics)


def test_a_file_that_is_no_table_is_said(tmp_path: Path) -> None:
    tables(tmp_path)
    (tmp_path / "c.csv").write_bytes(RATIOS.encode("utf-16"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    for name, said in (
        ("c.csv", "cannot be read"),
        ("c.parquet", "cannot be read"),
        ("a.cvs", "did you mean"),
        (".", "folder"),
    ):
        with pytest.raises(DataError, match=said):
            read_run_tables(tmp_path / name, tmp_path / "b.csv")


def test_natural_shares_come_as_a_row_or_as_two_columns(tmp_path: Path) -> None:
    (tmp_path / "row.csv").write_text("code,web\n30,70\n")
    (tmp_path / "pairs.csv").write_text("domain,share\nweb,70\ncode,30\n")
    (tmp_path / "other.csv").write_text("x,y,z\n1,2,3\n")
    for name in ("row.csv", "pairs.csv"):
        assert named_numbers(tmp_path / name, ("web", "code")) == {"web": 70, "code": 30}
    with pytest.raises(DataError, match="has 1 rows and 3 columns, wanted a column for each domain"):
        named_numbers(tmp_path / "other.csv", ("web", "code"))
