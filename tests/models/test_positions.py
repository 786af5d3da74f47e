"""A model's positions: where its table ends a longer row is refused, because reading it would fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dataflex_tools.models.load import max_positions, positions_end
from dataflex_tools.models.settings import ModelSettings

_GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
TYPES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 8},
    "codegen": {**_GPT, "n_head": 4, "rotary_dim": 4},
    "ctrl": {**_GPT, "dff": 48},
    "gpt_bigcode": _GPT,
    "openai-gpt": _GPT,
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
    "biogpt": {**_BERT, "intermediate_size": 48},
    "opt": {**_BERT, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "attention_types": [[["global"], 1]],
        "max_position_embeddings": 16,
    },
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "falcon": _BERT,
    "llama": {**_BERT, "intermediate_size": 48},
    "qwen2": {**_BERT, "intermediate_size": 48, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_longer_row_is_refused_exactly_where_the_model_cannot_read_it(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **TYPES[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    can_read = True
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, 30), 5), attention_mask=torch.ones(1, 30, dtype=torch.long), use_cache=False)
    except (IndexError, RuntimeError, ValueError):
        can_read = False
    assert max_positions(settings) == (None if kind == "bloom" else 16)
    assert positions_end(settings) != can_read
