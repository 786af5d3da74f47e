"""Embeddings equal the pooled hidden states of one sample at a time, for any batch, padding, rank count and restart."""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.embedding import EmbeddingSignal, SentenceEmbeddingSignal
from dataflex_tools.score.engine import measure
from dataflex_tools.score.settings import EmbeddingSettings
from tests.score.builders import FakeTokens, tiny_base, tiny_model

LENGTHS = [5, 17, 9, 12, 30, 4, 8, 11, 6, 21, 13]
POOLINGS = ("mean", "last", "weighted_mean")
# float32 sums in another order; unit rows
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def embedding(**settings):
    return EmbeddingSettings(**{"storage": "float32", "part_rows": 4, "token_budget": 40, **settings})


def one_by_one(model, tokens, rows, *, pooling="mean", layer=-1):
    """Raw embeddings, a loop over positions of one unpadded sample at a time, through the whole model."""
    found = []
    for row in rows:
        ids = torch.from_numpy(tokens.input_ids(row)).long()[None]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer][0].double()
        num = len(hidden)
        weight = {"mean": [1] * num, "last": [0] * (num - 1) + [1], "weighted_mean": range(1, num + 1)}[pooling]
        found.append((sum(w * h for w, h in zip(weight, hidden, strict=True)) / sum(weight)).numpy())
    return np.array(found)


def batch_of(tokens, rows, side="right"):
    return {
        **pad_batch(tokens, rows, side=side, pad_id=7),
        "rows": torch.tensor(list(rows)),
        "num_tokens": torch.tensor(np.asarray(tokens.num_tokens_N)[list(rows)]),
    }


def raw(columns):
    return columns["value"] * columns["norm"][:, None]


def open_store(folder, signal):
    return SignalStore(folder, {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)


def stored(store, tokens, dim=32):
    value = np.full((len(tokens), dim), np.nan)
    for row_B, value_BD, norm_B in store.rows(tokens.ids_N16, absent_ok=tokens.num_labels_N == 0).blocks():
        value[row_B] = value_BD * norm_B[:, None]
    return value


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [None, 0, 1, 2, -1, -2])
def test_batch_is_one_sample_at_a_time_for_any_padding(kind, side, pooling, layer):
    model, tokens = tiny_base(kind), FakeTokens([5, 17, 9, 1, 12])
    signal = EmbeddingSignal(model, embedding(pooling=pooling, layer=layer))
    found = signal.measure_batch(batch_of(tokens, range(5), side))
    expected = one_by_one(model, tokens, range(5), pooling=pooling, layer=-1 if layer is None else layer)
    np.testing.assert_allclose(raw(found), expected, **ROUNDING)
    assert np.linalg.norm(found["value"], axis=1) == pytest.approx(1, abs=1e-6)


def test_an_adapter_counts_and_is_off_for_nothing():
    adapted, tokens = tiny_model(), FakeTokens([5, 17, 9])
    found = raw(EmbeddingSignal(adapted, embedding()).measure_batch(batch_of(tokens, range(3))))
    np.testing.assert_allclose(found, one_by_one(adapted, tokens, range(3)), **ROUNDING)
    assert np.abs(found - one_by_one(tiny_base(), tokens, range(3))).max() > 1e-2


def test_default_is_the_mean_of_the_last_layer_and_the_head_is_not_run():
    model, tokens = tiny_base(), FakeTokens([5, 9])
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the output layer ran"))
    found = EmbeddingSignal(model, EmbeddingSettings()).measure_batch(batch_of(tokens, range(2)))
    model.lm_head._forward_pre_hooks.clear()
    np.testing.assert_allclose(raw(found), one_by_one(model, tokens, range(2)), rtol=2e-3, atol=2e-3)
    assert found["value"].dtype == np.float16
    assert found["norm"].dtype == np.float32


def test_float16_storage_rounds_unit_rows_only():
    model, batch = tiny_base(), batch_of(FakeTokens([5, 17, 9]), range(3))
    half, full = (EmbeddingSignal(model, embedding(storage=s)).measure_batch(batch) for s in ("float16", "float32"))
    np.testing.assert_array_equal(half["norm"], full["norm"])
    np.testing.assert_array_equal(half["value"], full["value"].astype(np.float16))


def test_dropout_is_off_and_training_mode_returns():
    model, batch = tiny_model(dropout=0.5), batch_of(FakeTokens([5, 17, 9]), range(3))
    signal = EmbeddingSignal(model, embedding())
    expected = signal.measure_batch(batch)["value"]
    model.train()
    np.testing.assert_array_equal(signal.measure_batch(batch)["value"], expected)
    assert model.training


@pytest.mark.parametrize("budget", [1, 25, 10_000])
@pytest.mark.parametrize("part_rows", [1, 100])
def test_stored_rows_do_not_depend_on_batch_and_part_size_or_order(tmp_path, budget, part_rows):
    model, tokens = tiny_base(), FakeTokens(LENGTHS, unlabelled=[2])
    signal = EmbeddingSignal(model, embedding(pooling="weighted_mean", token_budget=budget, part_rows=part_rows))
    store = open_store(tmp_path / "s", signal)
    assert measure(signal, tokens, store, title="test") == 10
    expected = one_by_one(model, tokens, range(len(LENGTHS)), pooling="weighted_mean")
    expected[2] = np.nan  # no label: not measured
    np.testing.assert_allclose(stored(store, tokens), expected, **ROUNDING)


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    tokens, signal = FakeTokens(LENGTHS), EmbeddingSignal(tiny_base(), embedding())
    measure(signal, tokens, open_store(tmp_path / "whole", signal), title="test")
    batch_of, calls = signal.measure_batch, []

    def killed(batch):
        calls.append(len(batch["rows"]))
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


def test_two_ranks_write_the_bytes_of_one(tmp_path, monkeypatch):
    tokens, models = FakeTokens(LENGTHS), [tiny_base(), tiny_base()]
    signal = EmbeddingSignal(models[0], embedding())
    measure(signal, tokens, open_store(tmp_path / "one", signal), title="test")
    here, meeting = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: here.rank)
    monkeypatch.setattr(dist, "barrier", meeting.wait)

    def run(rank):
        here.rank = rank
        own = EmbeddingSignal(models[rank], embedding())
        return measure(own, tokens, open_store(tmp_path / "two", own), title="test")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [11, 11]
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_the_model_does_not_have_is_refused(layer):
    with pytest.raises(ConfigError, match=rf"embedding\.layer is {layer}, the model has 2 layers"):
        EmbeddingSignal(tiny_base(), embedding(layer=layer))


def test_address_holds_what_changes_the_numbers_only():
    base = EmbeddingSettings()
    assert base.address() == EmbeddingSettings(token_budget=7, part_rows=3, pooling="mean", layer=-1).address()
    others = [{"pooling": "last"}, {"layer": 3}, {"storage": "float32"}, {"model": "a"}]
    assert len({str(EmbeddingSettings(**other).address()) for other in [{}, *others]}) == 5
    # another name of the same files: the hash of their content stands beside it
    assert EmbeddingSettings(model="a").address() == EmbeddingSettings(model="b").address()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "m", "pooling": "mean"}, r"embedding.pooling 'mean' has no effect with embedding.model m"),
        ({"model": "m", "layer": -1}, r"embedding.layer -1 has no effect"),
        ({"model": ""}, r"embedding.model is empty"),
        ({"token_budget": 0}, r"embedding.token_budget is 0"),
        ({"part_rows": 0}, r"embedding.part_rows is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EmbeddingSettings(**settings)


class FakeEncoder:
    """Counts letters; embeds what it is given, as the library does."""

    device, max_seq_length = torch.device("cpu"), 128

    def encode(self, texts, **settings):
        if isinstance(texts, str):
            return np.array(self._row(texts))
        assert settings["batch_size"] == len(texts)
        return torch.tensor([self._row(text) for text in texts])

    @staticmethod
    def _row(text):
        return [float(text.count(letter)) for letter in "abcd"]


def test_sentence_embedding_is_of_the_text_of_the_row(tmp_path, caplog):
    texts = ["a" * row + "bc" for row in range(len(LENGTHS))]
    tokens, settings = FakeTokens(LENGTHS), embedding(model="letters")
    with caplog.at_level(logging.INFO, logger="flextools"):
        signal = SentenceEmbeddingSignal(FakeEncoder(), settings, texts.__getitem__)
    assert "letters reads at most 128 tokens" in caplog.text
    store = open_store(tmp_path / "s", signal)
    measure(signal, tokens, store, title="test")
    np.testing.assert_allclose(stored(store, tokens, 4), [[row, 1, 1, 0] for row in range(len(LENGTHS))], **ROUNDING)


def test_text_the_encoder_finds_nothing_in_is_a_zero_row():
    signal = SentenceEmbeddingSignal(FakeEncoder(), embedding(model="letters"), ["xyz", "ab"].__getitem__)
    found = signal.measure_batch({"rows": torch.tensor([0, 1])})
    assert found["norm"].tolist() == [0, pytest.approx(2**0.5)]
    assert not found["value"][0].any()


def test_each_signal_refuses_the_settings_of_the_other():
    with pytest.raises(ConfigError, match="SentenceEmbeddingSignal"):
        EmbeddingSignal(tiny_base(), EmbeddingSettings(model="m"))
    with pytest.raises(ConfigError, match="EmbeddingSignal"):
        SentenceEmbeddingSignal(FakeEncoder(), EmbeddingSettings(), str)
