"""A categorical policy whose gradient is known, and a tiny real target with its model, for the tests of reward gradients."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings, tokenize_corpus
from dataflex_tools.models.load import tokenizer_sha256
from dataflex_tools.models.lora import add_lora
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.score.prompts import Prompt, Prompts
from tests.tiny import make_model, records, write_jsonl


class IidPolicy(PreTrainedModel, GenerationMixin):
    """Every token is drawn from softmax(theta), whatever came before."""

    config_class = PreTrainedConfig

    def __init__(self, theta):
        super().__init__(PreTrainedConfig(num_hidden_layers=1, hidden_size=1, num_attention_heads=1))
        self.theta = torch.nn.Linear(1, len(theta), bias=False)
        self.theta.weight.data = torch.tensor(theta, dtype=torch.float32)[:, None]

    def get_output_embeddings(self):
        return None

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False, return_dict=True):
        return CausalLMOutput(logits=self.theta(torch.ones(*input_ids.shape, 1)))


class Words:
    """Decodes ids to the numbers they are."""

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(str(int(index)) for index in ids)


class SamePrompt:
    """Any number of samples with one prompt; `end_ids` end an answer."""

    tokenizer = Words()

    def __init__(self, end_ids=(0,)):
        self._end_ids = end_ids

    def __getitem__(self, row):
        turns = ({"role": "user", "content": f"prompt {row}"},)
        return Prompt(row, f"{row:032x}", np.array([1], np.int32), self._end_ids, turns, "reference")


class Target:
    """Six samples with a chat template's turns, their tokens, and a model with a random adapter."""

    def __init__(self, folder, *, order=None, num=6):
        rows = records(num, seed=1, kind="say")
        rows = rows if order is None else [rows[index] for index in order]
        if not (folder / "model").exists():
            make_model(folder / "model")
        name = "target.jsonl" if order is None else "turned.jsonl"
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        spec = SourceSpec(path=str(write_jsonl(folder / name, rows)))
        self.corpus = open_corpus([spec], folder / "cache", group="subtask")
        self.tokens = tokenize_corpus(
            self.corpus, self.tokenizer, RenderSettings(cutoff_len=64), folder / "cache",
            tokenizer_sha256=tokenizer_sha256(self.tokenizer),
        )  # fmt: skip
        self.prompts = Prompts(self.corpus, self.tokens, self.tokenizer)
        self.folder = folder

    def model(self):
        """Llama with a LoRA whose B is not zero."""
        base = AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)
        model = add_lora(base, LoraSettings(r=4, alpha=8), seed=1)
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1, generator=generator)
        return model.eval()
