"""Measuring with the real store: resumed, appended, spread over ranks and short of memory, the rows are the same."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import DataError
from dataflex_tools.score.engine import measure
from dataflex_tools.score.gradient import GradientSettings, GradientSignal
from tests.score.builders import FakeTokens, gradients_one_by_one, random_moments, tiny_model

LENGTHS = [5, 17, 9, 12, 30, 4, 8, 11, 6, 21, 13]
SETTINGS = GradientSettings(dim=64, storage="float32", part_rows=4, token_budget=40)


def open_store(folder, signal):
    return SignalStore(folder, {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)


@pytest.fixture
def signal():
    model = tiny_model()
    return GradientSignal(model, SETTINGS, random_moments(model))


def stored(store, tokens):
    rows = store.rows(tokens.ids_N16, absent_ok=tokens.num_labels_N == 0)
    value = np.full((len(tokens), 64), np.nan)
    for row_B, value_BD, norm_B in rows.blocks():
        value[row_B] = value_BD * norm_B[:, None]
    return value


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


def test_rows_are_those_of_one_sample_at_a_time_in_corpus_order(tmp_path):
    model, tokens = tiny_model(), FakeTokens(LENGTHS, unlabelled=[2])
    settings = GradientSettings(adam="none", projection="none", storage="float32", part_rows=4, token_budget=40)
    signal = GradientSignal(model, settings)
    store = open_store(tmp_path / "s", signal)
    assert measure(signal, tokens, store, title="test") == 10
    labelled = tokens.rows_with_labels()
    expected = torch.cat(list(gradients_one_by_one(model, tokens, labelled).values()), dim=1).numpy()
    seen = []
    for row_B, value_BD, norm_B in store.rows(tokens.ids_N16, absent_ok=tokens.num_labels_N == 0).blocks():
        seen += row_B.tolist()
        where = np.searchsorted(labelled, row_B)
        np.testing.assert_allclose(value_BD * norm_B[:, None], expected[where], atol=2e-5, rtol=1e-4)
    assert sorted(seen) == labelled.tolist()


@pytest.mark.parametrize("budget", [1, 25, 10_000])
@pytest.mark.parametrize("part_rows", [1, 100])
def test_batch_and_part_size_change_nothing_beyond_rounding(tmp_path, signal, budget, part_rows):
    model, tokens = tiny_model(), FakeTokens(LENGTHS)
    other = GradientSettings(dim=64, storage="float32", part_rows=part_rows, token_budget=budget)
    found = []
    for index, each in enumerate((signal, GradientSignal(model, other, random_moments(model)))):
        store = open_store(tmp_path / str(index), each)
        measure(each, tokens, store, title="test")
        found.append(stored(store, tokens))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_killed_run_resumes_to_the_same_bytes(tmp_path, signal):
    tokens = FakeTokens(LENGTHS)
    measure(signal, tokens, open_store(tmp_path / "whole", signal), title="test")
    batch_of, calls = signal.measure_batch, []

    def killed(batch):
        calls.append(len(batch["labels"]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_of(batch)

    signal.measure_batch = killed
    with pytest.raises(KeyboardInterrupt):
        measure(signal, tokens, open_store(tmp_path / "killed", signal), title="test")
    assert 0 < len(bytes_of(tmp_path / "killed")) < len(bytes_of(tmp_path / "whole"))
    signal.measure_batch = batch_of
    measure(signal, tokens, open_store(tmp_path / "killed", signal), title="test")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_ranks_together_write_what_one_rank_writes(tmp_path, signal, monkeypatch):
    tokens = FakeTokens(LENGTHS)
    measure(signal, tokens, open_store(tmp_path / "one", signal), title="test")
    here, meeting = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: here.rank)
    monkeypatch.setattr(dist, "barrier", meeting.wait)

    models = [tiny_model(), tiny_model()]

    def run(rank):
        here.rank = rank
        own = GradientSignal(models[rank], SETTINGS, random_moments(models[rank]))
        return measure(own, tokens, open_store(tmp_path / "two", own), title="test")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [11, 11]
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_only_new_samples_are_measured_and_duplicates_once(tmp_path, signal):
    tokens = FakeTokens([5, 9, 12, 7])
    tokens.ids_N16[3] = tokens.ids_N16[0]
    tokens._ids[3], tokens.num_tokens_N[3], tokens.num_labels_N[3] = tokens._ids[0], 5, tokens.num_labels_N[0]
    store = open_store(tmp_path / "s", signal)
    assert measure(signal, tokens, store, title="test") == 3
    value = stored(store, tokens)
    np.testing.assert_array_equal(value[0], value[3])
    before = bytes_of(tmp_path / "s")
    assert measure(signal, tokens, open_store(tmp_path / "s", signal), title="test") == 0
    assert bytes_of(tmp_path / "s") == before


def test_out_of_memory_halves_batches_until_they_fit(tmp_path, signal, caplog):
    tokens = FakeTokens([8] * 12)
    big = GradientSettings(dim=64, storage="float32", part_rows=8, token_budget=1000)
    model = tiny_model()
    large = GradientSignal(model, big, random_moments(model))
    measure(signal, tokens, small := open_store(tmp_path / "a", signal), title="test")
    batch_of, sizes = large.measure_batch, []

    def limited(batch):
        sizes.append(len(batch["labels"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return batch_of(batch)

    large.measure_batch = limited
    measure(large, tokens, store := open_store(tmp_path / "b", large), title="test")
    np.testing.assert_allclose(stored(store, tokens), stored(small, tokens), atol=1e-4, rtol=1e-4)
    # what did not fit once is not tried again
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    assert "halving" in caplog.text


def test_an_error_that_is_not_memory_and_memory_at_one_sample_are_raised(tmp_path, signal):
    tokens = FakeTokens([8] * 4)
    for error in (RuntimeError("shape mismatch"), torch.OutOfMemoryError("CUDA out of memory. Tried")):

        def fails(batch, error=error):
            raise error

        signal.measure_batch = fails
        with pytest.raises(RuntimeError, match=str(error)):
            measure(signal, tokens, open_store(tmp_path / "s", signal), title="test")


def test_sample_whose_gradient_is_not_finite_is_named(tmp_path):
    model, tokens = tiny_model(), FakeTokens([6, 7, 8])
    signal = GradientSignal(model, SETTINGS, random_moments(model))
    for row in range(3):
        tokens._ids[row] = np.where(tokens._ids[row] == 63, 0, tokens._ids[row])
    tokens._ids[1][0] = 63
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = float("nan")
    with pytest.raises(DataError, match=r"gradient of row 1 has norm nan \(1 of 3 rows"):
        measure(signal, tokens, open_store(tmp_path / "s", signal), title="test")
