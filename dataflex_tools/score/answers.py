"""Answers drawn from a causal model: token ids and log-probabilities, the same for any batch, order and rank count.

Each answer has its own stream of uniform numbers, keyed by (seed, sample, number of the answer), and each of its tokens is
the inverse of the model's cumulative distribution at the next one. All answers of a prompt are drawn together and none of
another prompt, so nothing is padded and the arithmetic is a function of the prompt alone (short of memory they are drawn in
smaller batches, the same but for rounding).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.rng import generator
from dataflex_tools.data.ipc import not_whole, read_ipc, write_ipc
from dataflex_tools.score.engine import Backoff, Columns
from dataflex_tools.score.prompts import Prompt
from dataflex_tools.score.settings import GenerationSettings

# S answers of a prompt, T tokens of an answer, V vocabulary

_AT_ONCE = 64  # rows of 150,000 float64 probabilities: 77 MB
_SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32())), ("log_probs", pa.list_(pa.float32()))])


@dataclass(frozen=True, eq=False)
class Answers:
    """The S answers to one prompt. `token_ids[s]`: (T,) int32, the token that ended it included; `log_probs[s]`: (T,)
    float32 nats under the distribution each token was drawn from."""

    token_ids: tuple[np.ndarray, ...]
    log_probs: tuple[np.ndarray, ...]

    def texts(self, prompt: Prompt, tokenizer: Any) -> list[str]:
        """The answers as text, special tokens left out."""
        return [
            tokenizer.decode(ids[:-1] if ids[-1] in prompt.end_ids else ids, skip_special_tokens=True)
            for ids in self.token_ids
        ]


class StoredAnswers:
    """Answers by prompt, kept in `cache`/answers/<address>/<sample id>.arrow.

    `policy` is the digest of all that decides what the model says: weights, adapter, dtype, tokenizer and rendering.
    """

    def __init__(self, model: Any, settings: GenerationSettings, *, policy: str, cache: Path) -> None:
        self._model, self._settings = model, settings
        self.folder = cache / "answers" / digest({"policy": policy, "generation": settings.address()})[:16]
        self._backoff, self._digests = Backoff(), digests_in(cache)

    def of(self, prompt: Prompt) -> Answers:
        """The answers to a prompt, drawn if they are not there. Raises what `draw_answers` raises."""
        path = self.folder / f"{prompt.sample_id}.arrow"
        if not_whole([path], self._digests):
            answers = draw_answers(self._model, prompt, self._settings, self._backoff)
            columns = {"token_ids": list(answers.token_ids), "log_probs": list(answers.log_probs)}
            write_ipc(path, _SCHEMA, [pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)])
        table = read_ipc(path)
        token_ids, log_probs = ([row.values.to_numpy() for row in table[name]] for name in _SCHEMA.names)
        return Answers(tuple(token_ids), tuple(log_probs))


def draw_answers(model: Any, prompt: Prompt, settings: GenerationSettings, backoff: Backoff) -> Answers:
    """`settings.num_answers` answers of the model in eval mode; of the model's own generation settings nothing is used.

    Raises ConfigError if prompt and answer are longer than the model reads, DataError for probabilities that are not finite.
    """
    base, length = _base(model), len(prompt.input_ids) + settings.max_new_tokens
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ConfigError(
            f"target row {prompt.row} has a prompt of {len(prompt.input_ids)} tokens; with generation.max_new_tokens "
            f"{settings.max_new_tokens} that is more than the {longest} the model reads; lower it or render.cutoff_len"
        )

    def call(number_S: np.ndarray) -> Columns:
        return _draw(base, prompt, settings, number_S)

    token_ids, log_probs = [], []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, settings.num_answers, _AT_ONCE):
            number_S = np.arange(start, min(start + _AT_ONCE, settings.num_answers))
            for _, drawn in backoff.run(call, number_S, np.full(len(number_S), length)):
                for ids_T, log_prob_T in zip(drawn["token_ids"], drawn["log_probs"], strict=True):
                    stop = _length(ids_T, prompt.end_ids)
                    token_ids.append(ids_T[:stop])
                    log_probs.append(log_prob_T[:stop])
    finally:
        model.train(was_training)
    if not all(np.isfinite(log_prob_T).all() for log_prob_T in log_probs):
        raise DataError(
            f"the model's probabilities at target row {prompt.row} are not finite; check the weights and model.dtype"
        )
    return Answers(tuple(token_ids), tuple(log_probs))


def _draw(base: Any, prompt: Prompt, settings: GenerationSettings, number_S: np.ndarray) -> Columns:
    uniform_ST = np.stack([
        generator(settings.seed, "answer", prompt.sample_id, int(number)).random(settings.max_new_tokens)
        for number in number_S
    ])  # fmt: skip
    device = next(base.parameters()).device
    draws = _Draws(torch.from_numpy(uniform_ST).to(device), len(prompt.input_ids), settings)
    input_ids = torch.from_numpy(prompt.input_ids.astype(np.int64)).to(device).repeat(len(number_S), 1)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=settings.max_new_tokens, eos_token_id=list(prompt.end_ids),
        pad_token_id=prompt.end_ids[0],
    )  # fmt: skip
    with _own_generation_settings_unused(base):
        out = base.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config,
            logits_processor=LogitsProcessorList([draws]),
        )  # fmt: skip
    ids = out[:, input_ids.shape[1] :].cpu().numpy().astype(np.int32)
    return {"token_ids": ids, "log_probs": draws.log_prob_ST[:, : ids.shape[1]].float().cpu().numpy()}


class _Draws(LogitsProcessor):  # type: ignore[misc]
    """Leaves the drawn token alone possible, so that a greedy search takes it; remembers its log-probability."""

    def __init__(self, uniform_ST: torch.Tensor, prompt_length: int, settings: GenerationSettings) -> None:
        self._uniform_ST, self._prompt_length = uniform_ST, prompt_length
        self.log_prob_ST = torch.zeros_like(uniform_ST)
        self._warpers = LogitsProcessorList()
        if settings.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k is not None:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # generate may look one step further than it uses
        step = min(input_ids.shape[1] - self._prompt_length, self._uniform_ST.shape[1] - 1)
        # float64: the last digits of a float32 sum over 100,000 tokens would be the order of summation
        prob_SV = self._warpers(input_ids, scores).double().softmax(1)
        cumulative_SV = prob_SV.cumsum(1)
        at_S1 = self._uniform_ST[:, step : step + 1] * cumulative_SV[:, -1:]
        token_S1 = torch.searchsorted(cumulative_SV, at_S1, right=True).clamp(max=scores.shape[1] - 1)
        self.log_prob_ST[:, step] = prob_SV.gather(1, token_S1).log()[:, 0]
        return torch.full_like(scores, -torch.inf).scatter_(1, token_S1, 0.0)


def _base(model: Any) -> Any:
    """The model itself; an adapter's layers are inside."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _own_generation_settings_unused(base: Any) -> Iterator[None]:
    """A checkpoint's generation_config.json may bring a repetition penalty, suppressed tokens and the like."""
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _length(ids_T: np.ndarray, end_ids: tuple[int, ...]) -> int:
    """Tokens up to and with the first that ends an answer."""
    ends = np.flatnonzero(np.isin(ids_T, end_ids))
    return int(ends[0]) + 1 if len(ends) else len(ids_T)
