import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex_tools.core.errors import DataError
from dataflex_tools.data.columnar import read_arrow, read_parquet
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec, read_records

TEXTS = [f"number {index} of a list" for index in range(3000)]
NO_DATE = pa.array([9 * 10**18], pa.timestamp("us"))
NO_ZONE = pa.array([10**9], pa.timestamp("us", tz="Nowhere/Land"))
# "abc" and two letters with bytes that are no UTF-8
NO_UTF8 = pa.Array.from_buffers(
    pa.string(),
    2,
    [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0\7\0\0\0"), pa.py_buffer(b"abcab\xff\xfe")],
)


def fail(number, message):
    raise AssertionError(f"row {number} {message}")


def write(path, table, **options):
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    opening = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
    with opening(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return path


def corpus(path, tmp_path, **settings):
    return open_corpus([SourceSpec(path=str(path), **settings)], tmp_path / "cache", group="domain")


ENDINGS = (".parquet", ".arrow", ".feather")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere_is_one_line_that_says_so(tmp_path, ending, share):
    path = write(tmp_path / f"x{ending}", pa.table({"text": TEXTS}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut off.*fetch it again$") as caught:
        corpus(path, tmp_path, skip_bad=True)
    assert "rename" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_cut_between_two_batches_is_not_read_in_part(tmp_path):
    path, table = tmp_path / "x.arrow", pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table[:1000])
        end = sink.tell()
        writer.write_table(table[1000:])
    path.write_bytes(path.read_bytes()[:end])
    with pa.memory_map(str(path)) as mapped:
        assert pa.ipc.open_stream(mapped).read_all().num_rows == 1000  # and no error
    with pytest.raises(DataError, match="is an Arrow stream without its end"):
        list(read_arrow(path, fail))


def test_a_damaged_page_stops_only_who_asks_for_its_column(tmp_path):
    table = pa.table({"text": TEXTS, "junk": [text.upper() for text in TEXTS]})
    path = write(tmp_path / "x.parquet", table, compression="snappy")
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 40 : start + 200] = b"\xff" * 160
    path.write_bytes(data)
    assert len(corpus(path, tmp_path)) == len(TEXTS)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        corpus(path, tmp_path, domain_column="junk")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("odd", [NO_DATE, NO_ZONE, NO_UTF8[1:], pa.array([b"\xff"])])
def test_a_value_that_python_cannot_hold_stops_only_who_asks_for_its_column(tmp_path, ending, odd):
    path = write(tmp_path / f"x{ending}", pa.table({"text": ["fine"], "odd": odd}))
    assert corpus(path, tmp_path).text(0) == "fine"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_row_that_cannot_be_read_is_a_bad_row(tmp_path, ending):
    path = write(tmp_path / f"x{ending}", pa.table({"text": NO_UTF8}))
    with pytest.raises(DataError, match=r"row 2 has a value in column 'text' that cannot be read .*--skip-bad"):
        corpus(path, tmp_path)
    found = corpus(path, tmp_path, skip_bad=True)
    assert ([found.text(row) for row in range(len(found))], found.reports[0].num_bad) == (
        ["abc"],
        1,
    )
    dated = write(tmp_path / f"y{ending}", pa.table({"text": ["a"], "when": NO_DATE}))
    with pytest.raises(DataError, match=r"row 1 has a value in column 'when'"):
        corpus(dated, tmp_path, domain_column="when")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_texts_of_any_arrow_type_are_read(tmp_path, ending, kind):
    values = pa.array(["a", "b" * 40, None])
    column = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    path = write(tmp_path / f"x{ending}", pa.table({"text": column}))
    reader = read_parquet if ending == ".parquet" else read_arrow
    assert [record["text"] for _, record in reader(path, fail)] == ["a", "b" * 40, None]


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_of_one_name_are_refused_only_where_they_are_asked_for(tmp_path, ending):
    columns = [pa.array(["x"]), pa.array(["p"]), pa.array(["q"])]
    twice = write(tmp_path / f"twice{ending}", pa.table(columns, names=["n", "text", "text"]))
    with pytest.raises(DataError, match="has 2 columns called 'text'; rename all but one"):
        corpus(twice, tmp_path)
    other = write(tmp_path / f"other{ending}", pa.table(columns, names=["text", "n", "n"]))
    assert corpus(other, tmp_path).text(0) == "x"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_without_rows_or_without_a_known_column_is_named(tmp_path, ending):
    table = pa.table({"text": ["a"], "n": [1]})
    with pytest.raises(DataError, match="holds no record that can be used; give one with records"):
        corpus(write(tmp_path / f"x{ending}", table.slice(0, 0)), tmp_path)
    with pytest.raises(DataError, match="row 1: the columns n fit no form"):
        corpus(write(tmp_path / f"y{ending}", table.select(["n"])), tmp_path)
    (tmp_path / f"z{ending}").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        corpus(tmp_path / f"z{ending}", tmp_path)


def test_parquet_without_row_groups_or_with_an_encrypted_footer_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    pq.ParquetWriter(path, pa.schema([("text", pa.string())])).close()
    with pytest.raises(DataError, match="holds no record that can be used"):
        corpus(path, tmp_path)
    data = write(path, pa.table({"text": TEXTS})).read_bytes()
    path.write_bytes(b"PARE" + data[4:-4] + b"PARE")
    with pytest.raises(DataError, match="Parquet with an encrypted footer: decrypt it"):
        corpus(path, tmp_path)


def test_offsets_outside_of_an_arrow_file_are_an_error_and_no_crash(tmp_path):
    path = write(tmp_path / "x.feather", pa.table({"text": ["abc", "defg"]}))
    data, offsets = path.read_bytes(), b"\0\0\0\0\3\0\0\0\7\0\0\0"
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, b"\0\0\0\0\3\0\0\0\xff\xff\xff\x0f"))
    with pytest.raises(DataError, match="cannot be read as Arrow IPC"):
        corpus(path, tmp_path)


def test_columns_that_are_not_asked_for_are_named_and_not_read(tmp_path):
    path = write(tmp_path / "x.parquet", pa.table({"n": [1], "text": ["a"], "m": [2]}))
    assert list(read_parquet(path, fail, {"text"})) == [(1, {"n": None, "text": "a", "m": None})]
    assert list(read_parquet(path, fail)) == [(1, {"n": 1, "text": "a", "m": 2})]
    assert list(read_parquet(path, fail, {"x"})) == [(1, {"n": None, "text": None, "m": None})]


def test_a_saved_dataset_is_read_as_its_files_would_be(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "image": [b"\xff", b"x"]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "image"))
    found = [record["text"] for _, record in read_records(SourceSpec(path=str(tmp_path / "image")))]
    assert found == ["a", "b"]
    file = next((tmp_path / "image").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="is an Arrow stream without its end"):
        corpus(tmp_path / "image", tmp_path)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(DataError, match="cannot be loaded as a saved dataset") as caught:
        corpus(tmp_path / "image", tmp_path)
    assert "\n" not in str(caught.value)
    datasets.Dataset(pa.table({"text": NO_UTF8})).save_to_disk(str(tmp_path / "utf8"))
    assert len(corpus(tmp_path / "utf8", tmp_path, skip_bad=True)) == 1
    with pytest.raises(DataError, match=r"utf8 row 2 has a value that cannot be read"):
        corpus(tmp_path / "utf8", tmp_path)
