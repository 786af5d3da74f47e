"""The reward gradient of a target: the policy gradient of minus the expected reward of the model's own answers.

For a prompt x with answers y_s drawn from the model and rewards r_s it is the sum over s of (r_s - b) times the gradient of
-log pi(y_s | x), summed over the answer's tokens (REINFORCE, Williams 1992). Its cosine with the gradient of a training
sample's loss is positive where training on the sample raises the reward.

Wang, Lin, Qiao, Koh, Foo, Low 2025, "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation
Metric", https://openreview.net/forum?id=2wt8m5HUBs (abstract [note]). Read: nice/data_selection/collect_grad_reps.py of
JTWang2000/NICE; checked on tests/vectors/nice_policy_gradient.json.
Departs from it: answers are drawn at temperature 1 from the untruncated model unless settings say otherwise; the generated
ids themselves are used, not their text tokenised again; rewards stay with the answer they are of.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import DataError
from dataflex_tools.data.tokenized import IGNORED
from dataflex_tools.score.answers import StoredAnswers
from dataflex_tools.score.batches import pad_batch, token_batches
from dataflex_tools.score.engine import Backoff, Columns, measure
from dataflex_tools.score.gradient import ProjectedGradients
from dataflex_tools.score.prompts import Prompt, Prompts
from dataflex_tools.score.rewards import RewardRequest, open_reward
from dataflex_tools.score.rewards.stored import StoredRewards
from dataflex_tools.score.settings import GradientSettings, RewardGradientSettings

# B prompts of a batch, S answers of a prompt, A answers of a batch, D projected dims, N target rows

logger = logging.getLogger("flextools")

_REWARDS = ("reward_mean", "reward_min", "reward_max")


def answer_weights(reward_S: np.ndarray, settings: RewardGradientSettings) -> np.ndarray:
    """Weight of each answer's gradient, (S,) float64: reward minus baseline, 0 for an answer that the variant drops.

    The baseline is the mean over all answers, dropped ones too. Of equal rewards the first answers are kept.
    """
    weight_S = reward_S.astype(np.float64)
    if settings.baseline == "mean":
        # said outright: the mean of equal rewards is off by a rounding, which a unit vector would blow up
        weight_S = np.zeros_like(weight_S) if np.ptp(reward_S) == 0 else weight_S - weight_S.mean()
    if settings.variant == "rejection":
        weight_S[reward_S <= 0] = 0
    elif settings.variant == "topk":
        weight_S[np.argsort(-reward_S, kind="stable")[settings.num_kept :]] = 0
    return weight_S


def reward_columns(gradient: pa.Schema) -> pa.Schema:
    """The stored columns: those of a gradient, and mean, least and greatest reward of the answers."""
    return pa.schema([*gradient, *(pa.field(name, pa.float64()) for name in _REWARDS)])


class RewardGradientSignal:
    """Draws, rewards and differentiates the answers to `prompts`, under the weights of `model` (never other weights).

    `policy`: digest of all that decides what the model says. Answers and rewards are kept under `cache` as they come in.
    Raises ConfigError for an Adam-scaled gradient (it is not linear in the answers) and what `open_reward` raises.
    """

    kind = "reward_gradient"

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts,
        gradient: GradientSettings,
        settings: RewardGradientSettings,
        *,
        policy: str,
        cache: Path,
    ) -> None:
        require(gradient.adam == "none", f"a reward gradient is not scaled by Adam; gradient.adam is {gradient.adam!r}")
        self.prompts, self._gradient, self._settings = prompts, gradient, settings
        self._gradients = ProjectedGradients(model, gradient)
        self._answers = StoredAnswers(model, settings.generation, policy=policy, cache=cache)
        self._rewards = StoredRewards(open_reward(settings.reward), settings.reward, cache)
        self._backoff = Backoff()
        if not settings.generation.is_on_policy and dist.is_main():
            logger.warning("answers are not drawn from the model itself (temperature, top_k or top_p): the reward gradient "
                           "is biased")  # fmt: skip

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for the signal's address."""
        return {"gradient": self._gradient.address(), **self._settings.address()}

    @property
    def columns(self) -> pa.Schema:
        """Those of `reward_columns`."""
        return reward_columns(self._gradients.columns)

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch at most, here of prompts and of answers with their prompts."""
        return self._gradients.token_budget

    @property
    def part_rows(self) -> int:
        """Prompts of a part."""
        return self._settings.part_rows

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """Gradient (value, norm) and rewards of each prompt; reads `rows` of the batch alone."""
        prompts = [self.prompts[row] for row in batch["rows"].tolist()]
        answers = [self._answers.of(prompt) for prompt in prompts]
        requests = [
            RewardRequest(prompt.messages, text, prompt.reference)
            for prompt, drawn in zip(prompts, answers, strict=True)
            for text in drawn.texts(prompt, self.prompts.tokenizer)
        ]
        reward_BS = self._rewards.of(requests).reshape(len(prompts), self._settings.generation.num_answers)
        weight_BS = np.stack([answer_weights(reward_S, self._settings) for reward_S in reward_BS])
        rows = _AnswerRows(prompts, [drawn.token_ids for drawn in answers])
        columns = self._gradients.stored(self._weighted(rows, weight_BS))
        return columns | dict(zip(_REWARDS, (reward_BS.mean(1), reward_BS.min(1), reward_BS.max(1)), strict=True))

    def _weighted(self, rows: "_AnswerRows", weight_BS: np.ndarray) -> torch.Tensor:
        """Sum over the answers of each prompt of weight x gradient of -log pi, (B, D); weights of 0 cost nothing."""
        weight_A, prompt_A = weight_BS.ravel(), np.repeat(np.arange(len(weight_BS)), weight_BS.shape[1])
        out_BD = torch.zeros(len(weight_BS), self._gradients.dim, device=self._gradients.device)

        def call(answers: np.ndarray) -> Columns:
            weight = torch.from_numpy(weight_A[answers]).to(out_BD)
            found = self._gradients.rows(pad_batch(rows, answers), lambda sum_A, _: sum_A * weight)
            for answer, row_D in zip(answers, found, strict=True):
                out_BD[prompt_A[answer]] += row_D
            return {}

        used = np.flatnonzero(weight_A)
        for batch in token_batches(rows.num_tokens_A[used], self.token_budget):
            for _ in self._backoff.run(call, used[batch], rows.num_tokens_A[used[batch]]):
                pass
        return out_BD


class _AnswerRows:
    """Prompts with their answers as token rows that `pad_batch` reads: labels on the answer alone."""

    def __init__(self, prompts: list[Prompt], answers: list[tuple[np.ndarray, ...]]) -> None:
        pairs = [(prompt.input_ids, ids) for prompt, drawn in zip(prompts, answers, strict=True) for ids in drawn]
        self._pairs = pairs
        self.num_tokens_A = np.array([len(asked) + len(answer) for asked, answer in pairs], dtype=np.int64)

    def input_ids(self, row: int) -> np.ndarray:
        """Prompt and answer."""
        return np.concatenate(self._pairs[row])

    def labels(self, row: int) -> np.ndarray:
        """The answer's ids, -100 at the prompt."""
        asked, answer = self._pairs[row]
        return np.concatenate([np.full(len(asked), IGNORED, dtype=np.int64), answer.astype(np.int64)])


def measure_rewards(signal: RewardGradientSignal, store: SignalStore, *, title: str) -> int:
    """Measure what `store` lacks, as `engine.measure` does; the number of prompts measured by all ranks.

    Raises DataError if not a single prompt has answers of different reward: there is nothing to learn from.
    """
    tokens = signal.prompts.tokens
    count = measure(signal, tokens, store, title=title)
    ids_N16 = tokens.ids_N16[tokens.rows_with_labels()]
    mean_N, least_N, most_N = (store.column(ids_N16, name) for name in _REWARDS)
    num_equal = int((least_N == most_N).sum())
    if num_equal == len(mean_N):
        raise DataError(
            f"all answers to each of the {len(mean_N)} target prompts got the same reward (mean {mean_N.mean():g}, from "
            f"{least_N.min():g} to {most_N.max():g}), so there is nothing to learn from; use a finer reward, draw more or "
            "longer answers (generation.num_answers, generation.max_new_tokens), or other prompts"
        )
    if dist.is_main():
        logger.info(
            "%s: mean reward %.4g over %s prompts; the answers to %s of them are all worth the same",
            title, mean_N.mean(), f"{len(mean_N):,}", f"{num_equal:,}",
        )  # fmt: skip
    return count
