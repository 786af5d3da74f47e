"""A reward that a sequence-classification model gives: its one output, for the conversation with the answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.models.load import device, local_folder, model_sha256
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.settings import RewardModelSettings

_TOKENIZER_FILES = ("tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges.txt", "*.model", "*.jinja")


class ModelReward:
    """The model's logit for one answer at a time, so that no padding and no other answer touches it.

    The text is the model's own chat template of prompt and answer; without one, prompt and answer as a pair. Weights are
    loaded when the first answer comes. Raises ConfigError if the model has not exactly one output or its head is not in
    its weights.
    """

    def __init__(self, settings: RewardModelSettings) -> None:
        local_folder(_as_model(settings))
        self._settings = settings
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place, reward) in order. Raises RewardError for an answer that is too long or whose reward is not finite."""
        for index, request in enumerate(requests):
            model, tokenizer = self._loaded = self._loaded or _load(self._settings)
            yield index, self._logit(model, _encoded(tokenizer, request), request)

    def _logit(self, model: Any, inputs: dict[str, torch.Tensor], request: RewardRequest) -> float:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and inputs["input_ids"].shape[1] > longest:
            raise RewardError(
                f"the answer {request.shown} makes {inputs['input_ids'].shape[1]} tokens with its prompt, the reward model "
                f"{self._settings.path} reads {longest}; lower generation.max_new_tokens or shorten the target"
            )
        with torch.inference_mode():
            value = float(model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits[0, 0])
        if not torch.isfinite(torch.tensor(value)):
            raise RewardError(f"the reward model {self._settings.path} gives {value} for the answer {request.shown}")
        return value


def content_sha256(settings: RewardModelSettings) -> str:
    """SHA-256 (64 hex digits) of the model's configuration, weights and tokenizer files."""
    model = _as_model(settings)
    folder = local_folder(model)
    files = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    return digest({"model": model_sha256(model), "tokenizer": {path.name: file_sha256(path) for path in files}})


def _as_model(settings: RewardModelSettings) -> ModelSettings:
    return ModelSettings(
        path=settings.path, revision=settings.revision, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
    )  # fmt: skip


def _load(settings: RewardModelSettings) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = local_folder(_as_model(settings))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"reward.model {settings.path} cannot be loaded: {' '.join(str(error).split())}") from None
    if model.config.num_labels != 1:
        raise ConfigError(f"reward.model {settings.path} has {model.config.num_labels} outputs, wanted one: the reward")
    # transformers would draw them at random and go on
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"reward.model {settings.path} lacks weights, e.g. {missing[0]}: it is no reward model")
    return model.eval().to(device()), tokenizer


def _encoded(tokenizer: Any, request: RewardRequest) -> dict[str, torch.Tensor]:
    if not tokenizer.chat_template:
        return dict(tokenizer(request.prompt, request.answer, return_tensors="pt"))
    turns = [*map(dict, request.messages), {"role": "assistant", "content": request.answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return dict(tokenizer(text, add_special_tokens=False, return_tensors="pt"))
