"""Loading models and tokenizers, their hashes, and the errors found before any weight is read."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.models.load import (
    check_model,
    load_model,
    load_tokenizer,
    local_folder,
    model_sha256,
    tokenizer_sha256,
)
from dataflex_tools.models.lora import add_lora, load_adapter, seeded
from dataflex_tools.models.settings import LoraSettings, ModelSettings

CONFIG = Qwen2Config(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def build_tokenizer(**special):
    words = {word: index for index, word in enumerate(["<unk>", "</s>", "<pad>", "a", "b", "c"])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


@pytest.fixture
def folder(tmp_path):
    with seeded(0):
        AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path / "model")
    build_tokenizer(eos_token="</s>").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def settings_of(folder, **changes):
    return ModelSettings(path=str(folder), **changes)


def test_loaded_model_is_the_saved_one_in_eval_mode_and_the_asked_dtype(folder):
    with seeded(0):
        expected = AutoModelForCausalLM.from_config(CONFIG).state_dict()
    model = load_model(settings_of(folder))
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert load_model(settings_of(folder, dtype="bfloat16")).dtype == torch.bfloat16


def test_random_weights_need_a_configuration_only_and_follow_the_seed(tmp_path):
    CONFIG.save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    first, again, other = (load_model(settings_of(tmp_path, random_weights=True, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert torch.equal(state, torch.random.get_rng_state())
    digests = {model_sha256(settings_of(tmp_path, random_weights=True, seed=seed)) for seed in (0, 0, 1)}
    assert len(digests) == 2
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load_model(settings_of(tmp_path))


def test_model_hash_follows_content_not_place_or_adapter_settings(folder, tmp_path):
    before = model_sha256(settings_of(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    assert model_sha256(settings_of(moved, lora=LoraSettings(r=2))) == before
    (moved / "README.md").write_text("notes")
    assert model_sha256(settings_of(moved)) == before
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert model_sha256(settings_of(moved)) != before


def test_sharded_weights_are_hashed_loaded_and_missed(folder, tmp_path):
    load_model(settings_of(folder)).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert len(model_sha256(settings_of(tmp_path / "shards"))) == 64
    load_model(settings_of(tmp_path / "shards"))
    shards[0].unlink()
    with pytest.raises(ConfigError, match=f"lacks 1 of {len(shards)} weight files, e.g. {shards[0].name}"):
        check_model(settings_of(tmp_path / "shards"))


def test_tokenizer_without_pad_token_pads_with_the_end_of_text(tmp_path):
    def loaded(name, **special):
        build_tokenizer(**special).save_pretrained(tmp_path / name)
        return load_tokenizer(settings_of(tmp_path / name))

    assert loaded("eos", eos_token="</s>").pad_token == "</s>"
    assert loaded("both", eos_token="</s>", pad_token="<pad>").pad_token == "<pad>"
    with pytest.raises(ConfigError, match="neither a pad nor an end-of-text token"):
        loaded("none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_tokenizer(settings_of(tmp_path / "empty"))


def test_tokenizer_hash_follows_template_and_specials_not_past_calls():
    tokenizer = build_tokenizer(eos_token="</s>", pad_token="<pad>")
    before = tokenizer_sha256(tokenizer)
    tokenizer(["a b c", "a"], padding="max_length", truncation=True, max_length=2)
    assert tokenizer_sha256(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_sha256(tokenizer) != before
    assert tokenizer_sha256(build_tokenizer(eos_token="</s>")) != before


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), r".*layers\.1\.mlp\.up_proj"])
def test_targets_that_exist_pass(folder, targets):
    check_model(settings_of(folder, lora=LoraSettings(target_modules=targets)))


def test_what_does_not_exist_is_found_before_weights_are_read(folder, tmp_path):
    with pytest.raises(ConfigError, match="no layer is called 'q_porj'; did you mean 'q_proj'"):
        check_model(settings_of(folder, lora=LoraSettings(target_modules=("k_proj", "q_porj"))))
    with pytest.raises(ConfigError, match="matches no layer"):
        check_model(settings_of(folder, lora=LoraSettings(target_modules="xyz.*")))
    with pytest.raises(ConfigError, match="is not a folder"):
        check_model(settings_of(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="has no effect"):
        check_model(settings_of(folder, revision="main"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        check_model(settings_of(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigError, match="is a vit model; a causal"):
        check_model(settings_of(folder, random_weights=True))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be used"):
        check_model(settings_of(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model(settings_of(folder))


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_an_adapter_given_as_a_model_is_said_to_be_one(tmp_path, with_tokenizer):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if with_tokenizer:
        build_tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    for look in (load_tokenizer, check_model, model_sha256):
        with pytest.raises(ConfigError, match="is a LoRA adapter for org/base, no model; give the model it belongs to"):
            look(settings_of(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ConfigError, match="is a LoRA adapter, no model"):
        local_folder(settings_of(tmp_path))


def test_hub_name_that_cannot_be_had_is_one_clear_line(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ConfigError, match="no folder, not in the Hub cache, and the Hub cannot be reached"):
        local_folder(ModelSettings(path="org/name"))


def test_adapter_follows_its_seed_and_comes_back_from_its_folder(folder, tmp_path):
    lora, settings = LoraSettings(r=2, alpha=4), settings_of(folder)
    state = torch.random.get_rng_state()
    first, again, other = (add_lora(load_model(settings), lora, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    key = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    add_lora(load_model(settings), lora, seed=0).save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(load_model(settings), tmp_path / "adapter")
    assert torch.equal(loaded.state_dict()[key], first[key])
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    frozen = load_adapter(load_model(settings), tmp_path / "adapter", trainable=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no adapter_model\.safetensors"):
        load_adapter(load_model(settings), tmp_path / "adapter")


def test_adapter_on_layers_that_do_not_exist_is_refused(folder):
    with pytest.raises(ConfigError, match="lora: "):
        add_lora(load_model(settings_of(folder)), LoraSettings(target_modules=("nothing",)), seed=0)


@pytest.mark.parametrize("change", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": ()}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=f"lora.{next(iter(change))}"):
        LoraSettings(**change)
