"""Rewards of answers: by text, by a function, by a reward model, by a judge behind HTTP; each stored as it comes in."""

from dataflex_tools.score.rewards.base import Reward, RewardRequest
from dataflex_tools.score.settings import RewardSettings

__all__ = ["Reward", "RewardRequest", "open_reward"]


def open_reward(settings: RewardSettings) -> Reward:
    """The reward that `settings` name. Raises ConfigError for what can be found wrong before the first answer."""
    if settings.function is not None:
        from dataflex_tools.score.rewards.function import FunctionReward

        return FunctionReward(settings.function)
    if settings.model is not None:
        from dataflex_tools.score.rewards.model import ModelReward

        return ModelReward(settings.model)
    if settings.endpoint is not None:
        from dataflex_tools.score.rewards.endpoint import EndpointReward

        return EndpointReward(settings.endpoint)
    from dataflex_tools.score.rewards.text import ExactMatch, RougeL

    return ExactMatch() if settings.kind == "exact_match" else RougeL()
