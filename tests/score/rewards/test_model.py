"""Rewards by a sequence-classification model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.rewards.model import ModelReward
from dataflex_tools.score.settings import RewardModelSettings, RewardSettings
from tests.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("rm"))
    save(folder, num_labels=1)
    return folder


def save(folder, *, num_labels, seed=0):
    config = AutoConfig.from_pretrained(folder)
    config.num_labels, config.pad_token_id = num_labels, 0
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def requests(*answers):
    return [RewardRequest(({"role": "user", "content": "red cat"},), answer, "dog") for answer in answers]


def test_reward_is_the_models_output_for_its_own_rendering(folder):
    found = dict(ModelReward(RewardModelSettings(path=str(folder)))(requests("blue dog", "run")))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for index, answer in enumerate(("blue dog", "run")):
        text = f"<|user|>\nred cat<|end|>\n<|assistant|>\n{answer}<|end|>\n"
        with torch.no_grad():
            expected = model(torch.tensor([tokenizer.encode(text)])).logits.item()
        assert found[index] == pytest.approx(expected, rel=1e-6)
    assert found[0] != found[1]


def test_without_a_chat_template_prompt_and_answer_are_a_pair(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    ((_, found),) = ModelReward(RewardModelSettings(path=str(tmp_path)))(requests("run"))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([tokenizer("red cat", "run")["input_ids"]])).logits.item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_models_that_are_no_reward_model_are_refused(tmp_path):
    make_model(tmp_path / "causal")
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "causal").config.num_labels, int)
    config = AutoConfig.from_pretrained(tmp_path / "causal")
    config.num_labels = 1
    config.save_pretrained(tmp_path / "causal")
    with pytest.raises(ConfigError, match=r"lacks weights, e\.g\. score\.weight: it is no reward model"):
        list(ModelReward(RewardModelSettings(path=str(tmp_path / "causal")))(requests("a")))
    make_model(tmp_path / "two")
    save(tmp_path / "two", num_labels=3)
    with pytest.raises(ConfigError, match="has 3 outputs, wanted one"):
        list(ModelReward(RewardModelSettings(path=str(tmp_path / "two")))(requests("a")))
    with pytest.raises(ConfigError, match="is not a folder"):
        ModelReward(RewardModelSettings(path=str(tmp_path / "none")))


def test_answer_longer_than_the_model_reads_is_an_error(folder):
    with pytest.raises(RewardError, match=r"makes 1\d\d tokens with its prompt.* reads 128"):
        list(ModelReward(RewardModelSettings(path=str(folder)))(requests("run " * 125)))


def test_address_is_the_content_of_weights_and_tokenizer(folder, tmp_path):
    def address(path):
        return RewardSettings(kind="model", model=RewardModelSettings(path=str(path))).address()

    copy = make_model(tmp_path / "copy")
    save(copy, num_labels=1)
    assert address(copy) == address(folder)
    save(copy, num_labels=1, seed=1)
    changed = address(copy)
    assert changed != address(folder)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    tokenizer.save_pretrained(copy)
    assert address(copy) not in (changed, address(folder))
