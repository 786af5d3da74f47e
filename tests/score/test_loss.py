"""Losses equal a loop over label positions, with and without an adapter, and come back from their store."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings, tokenize_corpus
from dataflex_tools.score import chunks
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.engine import measure
from dataflex_tools.score.loss import LossSignal, TokenLossSignal
from dataflex_tools.score.settings import LossSignalSettings, TokenLossSignalSettings
from tests.score.builders import ROUNDING, VOCAB, FakeTokens, tiny_base, tiny_model
from tests.tiny import WORDS, make_model, write_jsonl

LENGTHS = [5, 17, 9, 30, 4, 12]


def loop(model, tokens, row):
    """-log p of each label token of one sample, float64: no batch, no padding, no chunk."""
    ids, labels = torch.from_numpy(tokens.input_ids(row)).long()[None], tokens.labels(row)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
    positions = [position for position in range(1, len(labels)) if labels[position] != -100]
    return np.array([-torch.log_softmax(logits[position - 1], 0)[labels[position]].item() for position in positions])


def open_store(folder, signal):
    return SignalStore(folder, {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)


@pytest.mark.parametrize("positions", [1, 7, 1000])
@pytest.mark.parametrize("build", [tiny_base, tiny_model])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_losses_are_the_loop_over_label_positions_for_any_chunk(kind, build, positions, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_LOGITS", positions * VOCAB)
    model, tokens = build(kind), FakeTokens(LENGTHS)
    found = LossSignal(model, LossSignalSettings()).measure_batch(pad_batch(tokens, range(6)))
    listed = TokenLossSignal(model, TokenLossSignalSettings(storage="float32")).measure_batch(pad_batch(tokens, range(6)))
    for row in range(6):
        expected = loop(model, tokens, row)
        np.testing.assert_allclose(listed["token_loss"][row], expected, **ROUNDING)
        np.testing.assert_allclose(found["loss"][row], expected.mean(), **ROUNDING)
        np.testing.assert_allclose(found["loss_sum"][row], expected.sum(), **ROUNDING)
        assert found["num_labels"][row] == listed["num_labels"][row] == len(expected) == tokens.num_labels_N[row]


def test_labels_between_prompts_are_listed_in_token_order():
    model, tokens = tiny_base(), FakeTokens([12, 6])
    labels = tokens.labels(0)
    labels[[3, 4, 9]], labels[6:9] = tokens.input_ids(0)[[3, 4, 9]], -100
    tokens.labels = lambda row: labels if row == 0 else np.full(6, -100)
    found = TokenLossSignal(model, TokenLossSignalSettings(storage="float32")).measure_batch(pad_batch(tokens, [1, 0]))
    assert len(found["token_loss"][0]) == 0
    np.testing.assert_allclose(found["token_loss"][1], loop(model, tokens, 0), **ROUNDING)
    assert found["num_labels"].tolist() == [0, 5]


def test_lists_of_one_length_stay_lists():
    found = TokenLossSignal(tiny_base(), TokenLossSignalSettings()).measure_batch(pad_batch(FakeTokens([6, 6]), [0, 1]))
    assert found["token_loss"].shape == (2,)
    assert [(len(item), item.dtype) for item in found["token_loss"]] == [(3, np.float16)] * 2


def test_dropout_is_off_no_gradient_is_kept_and_training_mode_returns():
    model, tokens = tiny_model(dropout=0.5), FakeTokens(LENGTHS)
    signal, batch = LossSignal(model, LossSignalSettings()), pad_batch(tokens, range(6))
    expected = signal.measure_batch(batch)
    model.train()
    for name, array in signal.measure_batch(batch).items():
        np.testing.assert_array_equal(array, expected[name])
    assert model.training
    assert torch.is_grad_enabled()
    assert all(weight.grad is None for weight in model.parameters())


def test_numbers_and_lists_come_back_from_the_store_row_by_row(tmp_path):
    model, tokens = tiny_model(), FakeTokens([*LENGTHS, 8], unlabelled=[2])
    absent_ok = tokens.num_labels_N == 0
    signal = LossSignal(model, LossSignalSettings(part_rows=4, token_budget=40))
    store = open_store(tmp_path / "loss", signal)
    assert measure(signal, tokens, store, title="test") == 6
    lists = TokenLossSignal(model, TokenLossSignalSettings(storage="float32", part_rows=4, token_budget=40))
    list_store = open_store(tmp_path / "token_loss", lists)
    assert measure(lists, tokens, list_store, title="test") == 6
    loss_N = store.column(tokens.ids_N16, "loss", absent_ok)
    assert np.isnan(loss_N[2])
    seen = []
    for row_B, start_B1, value_S in list_store.lists(tokens.ids_N16, "token_loss", absent_ok).blocks():
        for row, start, end in zip(row_B, start_B1[:-1], start_B1[1:], strict=True):
            seen.append(int(row))
            np.testing.assert_allclose(value_S[start:end], loop(model, tokens, row), **ROUNDING)
            np.testing.assert_allclose(loss_N[row], value_S[start:end].astype(float).mean(), **ROUNDING)
    assert sorted(seen) == [0, 1, 3, 4, 5, 6]


def test_the_loss_of_an_answer_alone_is_that_of_header_and_answer(tmp_path):
    words = AutoTokenizer.from_pretrained(make_model(tmp_path / "model"))
    path = write_jsonl(tmp_path / "pool.jsonl", [{"instruction": f"sing {a} cat", "output": f"{a} dog"} for a in WORDS[:4]])
    corpus = open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")
    render = RenderSettings(answer_only=True)
    tokens = tokenize_corpus(corpus, words, render, tmp_path / "cache", tokenizer_sha256="0" * 64)
    model = tiny_base()
    found = LossSignal(model, LossSignalSettings()).measure_batch(pad_batch(tokens, range(4)))
    for row in range(4):
        header, answer = (words(text, add_special_tokens=False)["input_ids"]
                          for text in ("<|assistant|>\n", f"{WORDS[row]} dog<|end|>\n"))  # fmt: skip
        alone = FakeTokens([len(header + answer)])
        alone._ids[0], alone.num_labels_N[0] = np.array(header + answer), len(answer)
        np.testing.assert_allclose(found["loss"][row], loop(model, alone, 0).mean(), **ROUNDING)


def test_a_loss_that_is_not_finite_is_named_with_its_row(tmp_path):
    model, tokens = tiny_base(), FakeTokens([6, 7, 8])
    for row in range(3):
        tokens._ids[row] = np.where(tokens._ids[row] == 63, 0, tokens._ids[row])
    tokens._ids[1][0] = 63
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = float("nan")
    for signal in (LossSignal(model, LossSignalSettings()), TokenLossSignal(model, TokenLossSignalSettings())):
        with pytest.raises(DataError, match=rf"the {signal.kind} of row 1 has .*loss nan \(1 of 3 rows"):
            measure(signal, tokens, open_store(tmp_path / signal.kind, signal), title="test")


def test_the_address_holds_what_changes_the_numbers_only():
    assert LossSignalSettings(token_budget=3, part_rows=2).address() == LossSignalSettings().address() == {}
    assert TokenLossSignalSettings(token_budget=3).address() == {"storage": "float16"}
    with pytest.raises(ConfigError, match=r"loss\.token_budget is 0"):
        LossSignalSettings(token_budget=0)
    with pytest.raises(ConfigError, match=r"token_loss\.part_rows is 0"):
        TokenLossSignalSettings(part_rows=0)
