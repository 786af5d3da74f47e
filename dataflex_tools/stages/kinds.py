"""Kinds of signals: which settings each takes, what its address and columns are, and how it is measured.

A kind is made for one need, on one side, at one warm-up checkpoint or at the base model (checkpoint None).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.signals import Need
from dataflex_tools.stages.config import ScoreConfig
from dataflex_tools.stages.inputs import Side, Tokenizer
from dataflex_tools.stages.warmup import checkpoint_spec

LoadModel = Callable[[], Any]


@dataclass(frozen=True)
class Context:
    """What all kinds of one score stage share; `model`: {name, sha256, dtype}."""

    config: ScoreConfig
    model: Mapping[str, Any]
    tokenizer: Tokenizer
    cache: Path


@dataclass(frozen=True)
class Kind:
    """One signal to be had. Subclasses say how; `columns_read` are the numbers a method gets, none for vectors."""

    context: Context
    need: Need
    side: Side
    checkpoint: Path | None

    name: ClassVar[str]
    columns_read: ClassVar[tuple[str, ...]] = ()

    @property
    def settings(self) -> Any:
        """The stage's settings of this kind with what the method asks for on top."""
        return settings_of(self.need, self.context.config)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        where = {"checkpoint": self._files()} if self.checkpoint else {}
        return {
            "kind": self.name, "model": self.context.model["sha256"], "dtype": self.context.model["dtype"], **where,
            "render": self.side.tokens.render_digest, "settings": self.settings.address(),
        }  # fmt: skip

    def _files(self) -> dict[str, str]:
        assert self.checkpoint is not None
        files = checkpoint_spec(self.checkpoint, self.context.cache)
        del files["moments"]  # only an Adam-scaled gradient depends on them
        return files

    def columns(self) -> pa.Schema:
        """The stored columns beyond row and sample_id."""
        raise NotImplementedError

    def signal(self, load: LoadModel) -> Any:
        """What the engine measures; `load` gives the model at this checkpoint, on its device."""
        raise NotImplementedError


class GradientKind(Kind):
    """Projected per-sample gradients."""

    name = "gradient"

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on, and the way of measuring where an earlier version's was wrong."""
        return super().spec() | _way_of(self.context.config)

    def _files(self) -> dict[str, str]:
        assert self.checkpoint is not None
        return super()._files() if self.settings.adam == "none" else checkpoint_spec(self.checkpoint, self.context.cache)

    def columns(self) -> pa.Schema:
        """num_tokens, norm, value."""
        dim = _adapter_size(self.checkpoint) if self.settings.projection == "none" else self.settings.dim
        return vector_columns(dim, self.settings.storage)

    def signal(self, load: LoadModel) -> Any:
        """Adam-scaled with the checkpoint's moments, or plain."""
        from dataflex_tools.score.gradient import GradientSignal, load_moments

        assert self.checkpoint is not None
        is_plain = self.settings.adam == "none"
        moments = None if is_plain else load_moments(self.checkpoint / "moments.safetensors")
        return GradientSignal(load(), self.settings, moments)


class LossKind(Kind):
    """Mean and summed loss over label tokens."""

    name = "loss"
    columns_read = ("loss", "loss_sum", "num_labels")

    def columns(self) -> pa.Schema:
        """num_tokens, num_labels, loss, loss_sum."""
        from dataflex_tools.score.loss import LOSS_COLUMNS

        return LOSS_COLUMNS

    def signal(self, load: LoadModel) -> Any:
        """Forward passes only."""
        from dataflex_tools.score.loss import LossSignal

        return LossSignal(load(), self.settings)


class TokenLossKind(Kind):
    """The loss of every label token."""

    name = "token_loss"

    def columns(self) -> pa.Schema:
        """num_tokens, num_labels, token_loss."""
        from dataflex_tools.score.loss import token_loss_columns

        return token_loss_columns(self.settings.storage)

    def signal(self, load: LoadModel) -> Any:
        """Forward passes only."""
        from dataflex_tools.score.loss import TokenLossSignal

        return TokenLossSignal(load(), self.settings)


class EmbeddingKind(Kind):
    """Hidden states of the scored model, or vectors of a sentence-transformers model."""

    name = "embedding"

    def spec(self) -> dict[str, Any]:
        """A sentence model's vectors depend on it and the text, not on the scored model or its tokenizer."""
        if self.settings.model is None:
            return super().spec()
        from dataflex_tools.models.sentence import sentence_sha256

        sha256 = sentence_sha256(self.settings.model)
        return {"kind": self.name, "model": sha256, "settings": self.settings.address()}

    def columns(self) -> pa.Schema:
        """num_tokens, norm, value."""
        from dataflex_tools.models.load import hidden_size
        from dataflex_tools.models.sentence import sentence_dim

        encoder = self.settings.model
        dim = hidden_size(self.context.config.model) if encoder is None else sentence_dim(encoder)
        return vector_columns(dim, self.settings.storage)

    def signal(self, load: LoadModel) -> Any:
        """Of tokens, or of the corpus's text."""
        from dataflex_tools.score.embedding import EmbeddingSignal, SentenceEmbeddingSignal

        if self.settings.model is None:
            return EmbeddingSignal(load(), self.settings)
        from dataflex_tools.models.sentence import load_sentence_model

        return SentenceEmbeddingSignal(load_sentence_model(self.settings.model), self.settings, self.side.corpus.text)


class ZerothKind(Kind):
    """Finite differences along random directions."""

    name = "zeroth"

    def columns(self) -> pa.Schema:
        """num_tokens, norm, value."""
        return vector_columns(self.settings.num_directions, self.settings.storage)

    def signal(self, load: LoadModel) -> Any:
        """2 q forward passes a batch."""
        from dataflex_tools.score.zeroth import ZerothSignal

        return ZerothSignal(load(), self.settings)


def _way_of(config: ScoreConfig) -> dict[str, str]:
    """Named for adapters on fused experts and routers, whose gradients an earlier version took for zero."""
    from dataflex_tools.models.load import has_fused_adapters

    return {"gradients": "of each sample alone"} if has_fused_adapters(config.model) else {}


class RewardGradientKind(Kind):
    """NICE's policy gradient of a reward."""

    name = "reward_gradient"

    @property
    def _gradient(self) -> Any:
        return replace(self.context.config.gradient, adam="none")

    def spec(self) -> dict[str, Any]:
        """The projection's settings too."""
        settings = {"gradient": self._gradient.address(), **self.settings.address()}
        return super().spec() | {"settings": settings} | _way_of(self.context.config)

    def columns(self) -> pa.Schema:
        """Those of a gradient, and the rewards."""
        from dataflex_tools.score.reward_gradient import reward_columns

        dim = _adapter_size(self.checkpoint) if self._gradient.projection == "none" else self._gradient.dim
        return reward_columns(vector_columns(dim, self._gradient.storage))

    def signal(self, load: LoadModel) -> Any:
        """Draws answers from the model at the checkpoint and asks for their rewards."""
        from dataflex_tools.score.prompts import Prompts
        from dataflex_tools.score.reward_gradient import RewardGradientSignal

        base = super().spec()
        policy = digest({key: base.get(key) for key in ("model", "dtype", "checkpoint", "render")})
        prompts = Prompts(self.side.corpus, self.side.tokens, self.context.tokenizer.value)
        return RewardGradientSignal(
            load(), prompts, self._gradient, self.settings, policy=policy, cache=self.context.cache
        )  # fmt: skip


class LossAloneKind(LossKind):
    """The loss of the answer without its prompt; the side's tokens are rendered that way."""


KINDS: dict[str, type[Kind]] = {
    "gradient": GradientKind, "loss": LossKind, "loss_alone": LossAloneKind, "token_loss": TokenLossKind,
    "embedding": EmbeddingKind, "zeroth": ZerothKind, "reward_gradient": RewardGradientKind,
}  # fmt: skip


def settings_of(need: Need, config: ScoreConfig) -> Any:
    """The stage's settings of a signal with what the method asks for on top. Raises ConfigError if they do not fit."""
    if need.kind == "reward_gradient":
        if config.reward_gradient is None:
            raise ConfigError(
                f"method {config.method!r} needs a reward: --set reward_gradient.reward.kind=exact_match (or rouge_l, "
                "function, model, endpoint)"
            )
        return config.reward_gradient
    base = getattr(config, KINDS[need.kind].name)
    return from_mapping(type(base), {**to_mapping(base), **need.settings}, where=KINDS[need.kind].name)


def _adapter_size(checkpoint: Path | None) -> int:
    from safetensors import safe_open

    assert checkpoint is not None
    with safe_open(checkpoint / "adapter_model.safetensors", framework="np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 - not a mapping
