"""Logits in chunks are the model's own logits at those positions, whatever follows its layers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GraniteConfig

from dataflex_tools.models.lora import add_lora
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.score import chunks
from dataflex_tools.score.chunks import logits_in_chunks
from tests.score.builders import VOCAB, tiny_base, tiny_model

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.arange(24).view(3, 8)
INDEX = torch.tensor([0, 3, 7, 8, 13, 20, 23])


def soft_capped():
    return AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.05))


def scaled():
    return AutoModelForCausalLM.from_config(GraniteConfig(**SMALL, logits_scaling=7.0))


def gpt2():
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=16))


def head_with_adapter():
    model = add_lora(tiny_base(), LoraSettings(r=4, alpha=8, target_modules=("q_proj", "lm_head")), seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    return model


class Bigrams(nn.Module):
    """No transformers model: nothing tells its layers from its head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.table(input_ids))


BUILDERS = [tiny_base, tiny_model, head_with_adapter, soft_capped, scaled, gpt2, Bigrams]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("positions", [1, 3, 100])
def test_chunks_are_the_logits_of_one_whole_forward(build, positions, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_LOGITS", positions * VOCAB)
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)[INDEX]
        found = list(logits_in_chunks(model, {"input_ids": IDS}, INDEX))
    assert [len(chunk) for chunk in found] == {1: [1] * 7, 3: [3, 3, 1], 100: [7]}[positions]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-6)


def test_the_layers_run_once_and_the_head_sees_no_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_LOGITS", 3 * VOCAB)
    model, runs, widths = tiny_model(), [], []
    model.get_base_model().model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    model.get_base_model().lm_head.register_forward_hook(lambda _, args, out: widths.append(tuple(out.shape[:2])))
    with torch.no_grad():
        list(logits_in_chunks(model, {"input_ids": IDS}, INDEX))
    assert (runs, widths) == ([1], [(1, 3), (1, 3), (1, 1)])


@pytest.mark.parametrize("is_patched", [False, True])
def test_the_model_is_left_as_it_was_even_after_an_error(is_patched):
    model = tiny_base()
    if is_patched:  # as accelerate does
        model.model.forward = model.model.forward
    before = vars(model.model).get("forward")
    with torch.no_grad(), pytest.raises(IndexError):
        list(logits_in_chunks(model, {"input_ids": IDS}, torch.tensor([24])))
    assert vars(model.model).get("forward") is before
    assert model(input_ids=IDS).logits.shape == (3, 8, VOCAB)
