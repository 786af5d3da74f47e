"""Rewards that compare the answer's text with the reference.

ROUGE-L: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", https://aclanthology.org/W04-1013, section 3.1,
by the rouge-score package (no stemming), which sees runs of a-z and 0-9 only.
"""

from collections.abc import Iterator, Sequence

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.score.rewards.base import RewardRequest


class ExactMatch:
    """1 for an answer that is the reference but for white space around it, else 0."""

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place, reward) in order."""
        for index, request in enumerate(requests):
            yield index, float(request.answer.strip() == request.reference.strip())


class RougeL:
    """F-measure of the longest common subsequence of words with the reference, in [0, 1]."""

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise ConfigError("reward.kind rouge_l needs rouge-score: pip install 'flextools[reward]'") from None
        self._scorer = RougeScorer(["rougeL"])

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place, reward) in order. Raises DataError for a reference without a single word ROUGE-L can see."""
        for index, request in enumerate(requests):
            if self._scorer.score(request.reference, request.reference)["rougeL"].fmeasure == 0:
                raise DataError(
                    f"the target answer {request.reference[:60]!r} has no word of a-z and 0-9, and ROUGE-L sees no other: "
                    "every answer would get 0; choose another reward"
                )
            yield index, float(self._scorer.score(request.reference, request.answer)["rougeL"].fmeasure)
