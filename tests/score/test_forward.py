"""Every signal without a backward pass: the same rows for any batch size, order, rank count, and after a kill."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.score.engine import measure
from dataflex_tools.score.loss import LossSignal, TokenLossSignal
from dataflex_tools.score.settings import LossSignalSettings, TokenLossSignalSettings, ZerothSignalSettings
from dataflex_tools.score.zeroth import ZerothSignal
from tests.score.builders import FakeTokens, tiny_model

LENGTHS = [5, 17, 9, 12, 30, 4, 8, 11, 6, 21, 13]
# float32 sums in another order; a difference of losses divided by 2e-3 magnifies that
ROUNDING = {"loss": 1e-5, "token_loss": 1e-5, "zeroth": 3e-3}


def make(kind, *, part_rows=4, token_budget=40):
    sizes = {"part_rows": part_rows, "token_budget": token_budget}
    if kind == "loss":
        return LossSignal(tiny_model(), LossSignalSettings(**sizes))
    if kind == "token_loss":
        return TokenLossSignal(tiny_model(), TokenLossSignalSettings(storage="float32", **sizes))
    return ZerothSignal(tiny_model(), ZerothSignalSettings(num_directions=3, storage="float32", **sizes))


def open_store(folder, signal):
    return SignalStore(folder, {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)


def stored(store, tokens):
    """Row -> numbers, whatever the signal stores."""
    kind, ids_N16 = store.spec["kind"], tokens.ids_N16
    if kind == "loss":
        names = ("num_tokens", "num_labels", "loss", "loss_sum")
        return dict(enumerate(np.stack([store.column(ids_N16, name) for name in names], axis=1)))
    if kind == "zeroth":
        rows = store.rows(ids_N16).blocks()
        return {int(row): unit * norm for block in rows for row, unit, norm in zip(*block, strict=True)}
    return {
        int(row): value_S[start:end]
        for row_B, start_B1, value_S in store.lists(ids_N16, "token_loss").blocks()
        for row, start, end in zip(row_B, start_B1[:-1], start_B1[1:], strict=True)
    }


def assert_same(found, expected, kind):
    assert sorted(found) == sorted(expected)
    for row, numbers in expected.items():
        np.testing.assert_allclose(found[row], numbers, rtol=ROUNDING[kind], atol=ROUNDING[kind])


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


pytestmark = pytest.mark.parametrize("kind", list(ROUNDING))


def test_batch_size_part_size_and_corpus_order_change_nothing_beyond_rounding(tmp_path, kind):
    tokens = FakeTokens(LENGTHS)
    measure(signal := make(kind), tokens, store := open_store(tmp_path / "a", signal), title="test")
    expected = stored(store, tokens)
    for number, (budget, part_rows) in enumerate([(1, 1), (25, 100), (10_000, 3)]):
        signal = make(kind, part_rows=part_rows, token_budget=budget)
        measure(signal, tokens, store := open_store(tmp_path / str(number), signal), title="test")
        assert_same(stored(store, tokens), expected, kind)
    order = np.random.default_rng(0).permutation(len(tokens))
    turned = FakeTokens([LENGTHS[row] for row in order])
    turned._ids, turned.ids_N16 = [tokens._ids[row] for row in order], tokens.ids_N16[order]
    measure(signal := make(kind), turned, store := open_store(tmp_path / "turned", signal), title="test")
    assert_same(stored(store, tokens), expected, kind)


def test_killed_run_resumes_to_the_same_bytes(tmp_path, kind):
    tokens, signal = FakeTokens(LENGTHS), make(kind)
    measure(signal, tokens, open_store(tmp_path / "whole", signal), title="test")
    batch_of, calls = signal.measure_batch, []

    def killed(batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_of(batch)

    signal.measure_batch = killed
    with pytest.raises(KeyboardInterrupt):
        measure(signal, tokens, open_store(tmp_path / "killed", signal), title="test")
    assert 0 < len(bytes_of(tmp_path / "killed")) < len(bytes_of(tmp_path / "whole"))
    again = make(kind)
    measure(again, tokens, open_store(tmp_path / "killed", again), title="test")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_ranks_together_write_what_one_rank_writes(tmp_path, kind, monkeypatch):
    tokens, signal = FakeTokens(LENGTHS), make(kind)
    measure(signal, tokens, open_store(tmp_path / "one", signal), title="test")
    here, meeting = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: here.rank)
    monkeypatch.setattr(dist, "barrier", meeting.wait)
    signals = [make(kind), make(kind)]

    def run(rank):
        here.rank = rank
        return measure(signals[rank], tokens, open_store(tmp_path / "two", signals[rank]), title="test")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [11, 11]
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_only_new_samples_are_measured(tmp_path, kind):
    tokens, signal = FakeTokens(LENGTHS), make(kind)
    fewer = FakeTokens(LENGTHS)
    fewer._ids, fewer.ids_N16 = fewer._ids[:6], tokens.ids_N16[:6]
    fewer.num_tokens_N, fewer.num_labels_N = fewer.num_tokens_N[:6], fewer.num_labels_N[:6]
    store = open_store(tmp_path / "s", signal)
    assert measure(signal, fewer, store, title="test") == 6
    before = bytes_of(tmp_path / "s")
    assert measure(signal, tokens, store, title="test") == 5
    assert before.items() <= bytes_of(tmp_path / "s").items()
    assert sorted(stored(store, tokens)) == list(range(11))
