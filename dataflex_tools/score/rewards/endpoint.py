"""A reward that a judge behind an OpenAI-compatible HTTP endpoint gives as text."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.rewards.base import RewardError, RewardRequest
from dataflex_tools.score.settings import EndpointSettings


class EndpointReward:
    """Asks the judge for each answer, several at a time, with the back-off and time-outs of the `openai` client.

    Raises ConfigError if the client is not installed or the variable that holds the key is not set.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError("reward.kind endpoint needs openai: pip install 'flextools[reward]'") from None
        self._settings, self._key = settings, _key(settings.key_variable)
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=self._key or "unused",  # None would take the one of OPENAI_API_KEY
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )

    def __call__(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, float]]:
        """(place, reward) as replies come in. After a failure nothing new is asked; what was asked is waited for."""
        failure = None
        pool = ThreadPoolExecutor(self._settings.concurrency)
        try:
            place_of = {pool.submit(self._ask, request): place for place, request in enumerate(requests)}
            for future in as_completed(place_of):
                if future.cancelled():
                    continue
                if isinstance(error := future.exception(), RewardError):
                    failure = failure or error
                    for other in place_of:
                        other.cancel()
                else:
                    yield place_of[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    def _ask(self, request: RewardRequest) -> float:
        text = self._reply(request)
        match = re.search(self._settings.pattern, text)
        try:
            value = float(match[1]) if match else math.nan
        except (ValueError, TypeError):  # a pattern of the user's may find no number, or leave its group out
            value = math.nan
        if not math.isfinite(value):
            raise self._error(
                f"replied {self._shown(text)!r} for the answer {request.shown}, in which reward.endpoint.pattern "
                f"{self._settings.pattern!r} finds no number; change the prompt or the pattern"
            )
        return value

    def _reply(self, request: RewardRequest) -> str:
        import openai

        settings = self._settings
        text = settings.prompt.format(prompt=request.prompt, answer=request.answer, reference=request.reference)
        options: dict[str, Any] = {} if settings.temperature is None else {"temperature": settings.temperature}
        try:
            reply = self._client.chat.completions.create(
                model=settings.model, messages=[{"role": "user", "content": text}], **options
            )
        except openai.APITimeoutError:
            raise self._error(
                f"did not reply within {settings.timeout:g} s, asked {settings.max_retries + 1} times; raise "
                "reward.endpoint.timeout or look at the server"
            ) from None
        except openai.APIStatusError as error:
            raise self._error(f"answers with status {error.status_code}: {self._shown(error.response.text)}") from None
        except openai.APIConnectionError as error:
            raise self._error(f"cannot be reached: {self._shown(str(error.__cause__ or error))}") from None
        except ValueError as error:  # a body that calls itself JSON and is not
            raise self._error(f"sends a body that is no JSON: {error}") from None
        # the client hands on whatever else came: text, lists, objects without choices
        if not isinstance(reply, openai.types.chat.ChatCompletion) or not reply.choices:
            raise self._error(f"sends no chat completion but {self._shown(str(reply))!r}; does base_url end in /v1?")
        return reply.choices[0].message.content or ""

    def _shown(self, text: str) -> str:
        """The beginning of what the server sent; some repeat a key that they refuse."""
        return (text.replace(self._key, "***") if self._key else text)[:200]

    def _error(self, what: str) -> RewardError:
        return RewardError(
            f"the reward endpoint {self._settings.base_url} {what}. Rewards that came in are stored: run the same command "
            "again to go on"
        )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ConfigError(f"reward.endpoint.key_variable names {variable}, which is not set; export {variable}=...")
    return os.environ[variable]
