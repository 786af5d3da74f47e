"""The embedding signal: a vector per sample, from the hidden states of a causal model or from a sentence-embedding model.

`weighted_mean` is the embedding of RDS+: Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning",
arXiv 2503.01807 [recall]; checked against the numbers of tests/vectors/adapt_weights.json. Departs from public code that
weighs by absolute position: positions count real tokens, so padding on the left changes nothing.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import torch

from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.ops.pooling import pool
from dataflex_tools.score.batches import model_inputs
from dataflex_tools.score.engine import Columns
from dataflex_tools.score.settings import EmbeddingSettings

# B samples of a batch, T tokens of the longest, H hidden size, D columns of an embedding

logger = logging.getLogger("flextools")

_CPU_TOKENS, _GPU_TOKENS = 2048, 16384  # those of gradients; a forward pass alone needs less memory


class EmbeddingSignal:
    """Pools the hidden states of one layer over a sample's tokens, prompt and answer; dropout is off while it does.

    `model`: a causal language model, with or without an adapter. Raises ConfigError for a layer it does not have.
    """

    kind = "embedding"

    def __init__(self, model: torch.nn.Module, settings: EmbeddingSettings) -> None:
        require(settings.model is None, f"embedding.model is {settings.model}: measure it with SentenceEmbeddingSignal")
        self._model, self._settings = model, settings
        self._backbone = _backbone(model)
        text_config = self._backbone.config.get_text_config()
        self._dim, num_layers = int(text_config.hidden_size), int(text_config.num_hidden_layers)
        layer = num_layers if settings.layer is None else settings.layer
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"embedding.layer is {layer}, the model has {num_layers} layers: wanted 0 (input embeddings) to {num_layers}"
            )
        self._layer = layer % (num_layers + 1)
        self._is_last = self._layer == num_layers

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for the signal's address."""
        return self._settings.address()

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, norm and value."""
        return vector_columns(self._dim, self._settings.storage)

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most."""
        return _token_budget(self._settings, self._device)

    @property
    def part_rows(self) -> int:
        """Samples of a part."""
        return self._settings.part_rows

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """value: (B, H) unit rows in the storage type; norm: (B,) float32."""
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                hidden_BTH = self._hidden(model_inputs(batch, self._device))
                z_BH = pool(hidden_BTH, _is_real(batch).to(hidden_BTH.device), self._settings.pooling or "mean")
                return _unit_columns(z_BH, self._settings)
        finally:
            self._model.train(was_training)

    def _hidden(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        # all layers are kept only if an inner one is asked for; the last is after the final norm in both cases
        output = self._backbone(**inputs, use_cache=False, output_hidden_states=not self._is_last)
        hidden_BTH: torch.Tensor = output.last_hidden_state if self._is_last else output.hidden_states[self._layer]
        if hidden_BTH.shape[2] != self._dim:
            raise ConfigError(
                f"embedding.layer {self._layer} is {hidden_BTH.shape[2]} wide, the model's hidden size is {self._dim}; "
                "choose another layer"
            )
        return hidden_BTH


class SentenceEmbeddingSignal:
    """Embeds each sample's text with a sentence-transformers model (`models.sentence.load_sentence_model`).

    `text_of(row)` gives the text of a row of the corpus that is measured (`corpus.text`). A text longer than the model
    reads is cut by the model at its end.
    """

    kind = "embedding"

    def __init__(self, encoder: Any, settings: EmbeddingSettings, text_of: Callable[[int], str]) -> None:
        require(settings.model is not None, "embedding.model is not set: measure hidden states with EmbeddingSignal")
        self._encoder, self._settings, self._text_of = encoder, settings, text_of
        self._dim = len(encoder.encode("x"))
        logger.info("%s reads at most %s tokens of a text", settings.model, encoder.max_seq_length)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for the signal's address; beside it stands the hash of the encoder."""
        return self._settings.address()

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, norm and value."""
        return vector_columns(self._dim, self._settings.storage)

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most, as the scored model's tokenizer counts them."""
        return _token_budget(self._settings, self._encoder.device)

    @property
    def part_rows(self) -> int:
        """Samples of a part."""
        return self._settings.part_rows

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """value: (B, D) unit rows in the storage type; norm: (B,) float32. Reads `rows` of the batch alone."""
        texts = [self._text_of(row) for row in batch["rows"].tolist()]
        raw_BD = self._encoder.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return _unit_columns(raw_BD.float(), self._settings)


def _unit_columns(raw_BD: torch.Tensor, settings: EmbeddingSettings) -> Columns:
    norm_B = torch.linalg.vector_norm(raw_BD, dim=1)
    value_BD = raw_BD / torch.where(norm_B > 0, norm_B, 1.0).unsqueeze(1)
    return {"value": value_BD.to(getattr(torch, settings.storage)).cpu().numpy(), "norm": norm_B.cpu().numpy()}


def _token_budget(settings: EmbeddingSettings, device: torch.device) -> int:
    return settings.token_budget or (_CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS)


def _is_real(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T) bool; a right-padded batch has no mask, its lengths tell."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.arange(batch["input_ids"].shape[1]) < batch["num_tokens"].unsqueeze(1)


def _backbone(model: torch.nn.Module) -> Any:
    """The model without its output layer; an adapter's layers are inside."""
    from peft import PeftModel

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.base_model is base:
        raise ConfigError(f"{type(base).__name__} has no part that gives hidden states; choose another model")
    return base.base_model
