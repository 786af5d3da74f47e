"""Sentence-embedding models: built in code, their address, their size, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.models import sentence
from dataflex_tools.models.sentence import load_sentence_model, sentence_dim, sentence_sha256
from dataflex_tools.score.embedding import SentenceEmbeddingSignal
from dataflex_tools.score.settings import EmbeddingSettings

WORDS = ["<unk>", "<pad>", "red", "green", "blue", "cat", "dog"]


def save_bert(folder):
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["mean", "two modes", "dense"])
def folder(request, tmp_path_factory):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Dense, Pooling, Transformer

    root = tmp_path_factory.mktemp("sentence")
    body = Transformer(str(save_bert(root / "bert")))
    mode = ("cls", "mean") if request.param == "two modes" else "mean"
    modules = [body, Pooling(16, pooling_mode=mode)]
    if request.param == "dense":
        modules.append(Dense(16, 5))
    library.SentenceTransformer(modules=modules, device="cpu").save(str(root / "model"))
    return root / "model"


def test_size_is_read_from_the_settings_of_the_modules(folder, monkeypatch):
    expected = len(load_sentence_model(str(folder)).encode("red cat"))
    monkeypatch.setattr(sentence, "load_sentence_model", lambda _: pytest.fail("the model was loaded"))
    assert sentence_dim(str(folder)) == expected


def test_size_is_read_from_settings_of_older_versions(folder, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])
    )
    old = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True,
           "pooling_mode_max_tokens": False}  # fmt: skip
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(old))
    assert sentence_dim(str(tmp_path)) == 32


def test_embeddings_do_not_depend_on_the_batch(folder):
    texts = ["red cat", "green green dog blue red red", "blue", "dog cat"]
    signal = SentenceEmbeddingSignal(
        load_sentence_model(str(folder)), EmbeddingSettings(model=str(folder), storage="float32"), texts.__getitem__
    )
    whole = signal.measure_batch({"rows": torch.arange(4)})
    assert whole["value"].shape == (4, sentence_dim(str(folder)))
    for row in (2, 0, 3, 1):
        alone = signal.measure_batch({"rows": torch.tensor([row])})
        np.testing.assert_allclose(alone["value"][0], whole["value"][row], atol=1e-5)
        np.testing.assert_allclose(alone["norm"][0], whole["norm"][row], rtol=1e-5)


def test_hash_follows_what_is_loaded_and_not_the_name(folder, tmp_path):
    import shutil

    before = sentence_sha256(str(folder))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("another card")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "config.json").write_text("{}")
    assert sentence_sha256(str(copy)) == before
    settings = copy / "1_Pooling" / "config.json"
    settings.write_text(settings.read_text() + " ")
    assert sentence_sha256(str(copy)) != before


def test_missing_library_is_one_line_that_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr("dataflex_tools.models.sentence.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flextools\[embed\]'"):
        load_sentence_model(str(folder))


def test_folder_of_another_model_and_a_wrong_name_are_refused(tmp_path):
    save_bert(tmp_path / "bert")
    with pytest.raises(ConfigError, match="has no modules.json"):
        sentence_sha256(str(tmp_path / "bert"))
    with pytest.raises(ConfigError, match=r"embedding\.model ./absent"):
        sentence_dim("./absent")


def test_code_in_the_folder_and_pickled_weights_are_refused(tmp_path):
    def modules(kind):
        entry = {"idx": 0, "name": "0", "path": "", "type": kind}
        (tmp_path / "modules.json").write_text(json.dumps([entry]))

    modules("custom.Pooling")
    with pytest.raises(ConfigError, match=r"code of its own \(custom\.Pooling\)"):
        load_sentence_model(str(tmp_path))
    modules("sentence_transformers.models.Transformer")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="pickle"):
        load_sentence_model(str(tmp_path))
