"""Tiny models with a random adapter, and token rows, for the tests of scoring."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from dataflex_tools.models.lora import add_lora, seeded
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.ops.adam import Moments

VOCAB = 64
# float32 sums in another order
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def tiny_base(kind="qwen2", *, tie=False, seed=0):
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tie,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def tiny_model(kind="qwen2", *, tie=False, targets=("q_proj", "k_proj", "v_proj", "o_proj"), rslora=False, dropout=0.0):
    """B is drawn as well: at the start of training it is zero, and so is every gradient of A."""
    lora = LoraSettings(r=4, alpha=8, dropout=dropout, target_modules=targets, use_rslora=rslora)
    model = add_lora(tiny_base(kind, tie=tie), lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def random_moments(model, *, step=10, seed=3):
    generator = torch.Generator().manual_seed(seed)
    first, second = {}, {}
    for name, parameter in trainable(model).items():
        first[name] = torch.randn(parameter.shape, generator=generator) * 1e-2
        second[name] = torch.rand(parameter.shape, generator=generator) * 1e-3 + 1e-5
    return Moments(step=step, exp_avg=first, exp_avg_sq=second)


class FakeTokens:
    """Random rows; the first half of each is a prompt. `unlabelled` rows carry no label."""

    def __init__(self, lengths, *, unlabelled=(), seed=0):
        rng = np.random.default_rng(seed)
        self._ids = [rng.integers(0, VOCAB, size=length).astype(np.int32) for length in lengths]
        self.num_tokens_N = np.array(lengths, dtype=np.int32)
        self.ids_N16 = rng.integers(0, 256, size=(len(lengths), 16)).astype(np.uint8)
        self.num_labels_N = np.array([length - length // 2 for length in lengths], dtype=np.int32)
        self.num_labels_N[list(unlabelled)] = 0

    def __len__(self):
        return len(self._ids)

    def input_ids(self, row):
        return self._ids[row]

    def labels(self, row):
        labels = self._ids[row].astype(np.int64)
        labels[: len(labels) - self.num_labels_N[row]] = -100
        return labels

    def rows_with_labels(self):
        return np.flatnonzero(self.num_labels_N > 0)


def mean_loss(model, tokens, row):
    """Mean completion-token loss of one sample, as written in the paper: no batch, no padding."""
    ids = torch.from_numpy(tokens.input_ids(row)).long()[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    labels = tokens.labels(row)
    terms = [
        -torch.log_softmax(logits[position - 1], dim=0)[labels[position]]
        for position in range(1, len(labels))
        if labels[position] != -100
    ]
    return torch.stack(terms).mean()


def gradients_one_by_one(model, tokens, rows):
    """Parameter name -> (B, P): one backward pass per sample."""
    found = {name: [] for name in trainable(model)}
    for row in rows:
        values = torch.autograd.grad(mean_loss(model, tokens, row), list(trainable(model).values()))
        for name, value in zip(found, values, strict=True):
            found[name].append(value.flatten())
    return {name: torch.stack(values) for name, values in found.items()}


_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# what each type changes: experts in fused weights, layers that see positions in a row, weights the other way round
TYPES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def tiny_of_type(kind):
    """A tiny model of one of TYPES with random weights and two experts a token where there are experts."""
    changes = {"num_experts_per_tok": 2, **TYPES[kind]} if "moe" in kind or "experts" in str(TYPES[kind]) else TYPES[kind]
    with seeded(0):
        config = AutoConfig.for_model(kind, **{**_SMALL, **changes})
        return AutoModelForCausalLM.from_config(config).eval()
