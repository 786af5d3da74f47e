"""Settings of rewards and of the answers they are of: what has no effect or could leak is refused."""

import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.score.settings import EndpointSettings, GenerationSettings, RewardGradientSettings, RewardSettings

EXACT = RewardSettings(kind="exact_match")
LOCAL = {"base_url": "http://127.0.0.1:1/v1", "model": "judge"}


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "function"}, "reward.function is missing"),
        ({"kind": "endpoint"}, "reward.endpoint is missing"),
        ({"kind": "rouge_l", "function": "a:b"}, "reward.function has no effect with reward.kind 'rouge_l'"),
        ({"kind": "function", "function": "a.b"}, "wanted package.module:function"),
        ({"kind": "model", "model": {"path": ""}}, "reward.model.path is empty"),
        ({"kind": "bleu"}, "kind"),
    ],
)
def test_reward_without_its_source_or_with_another_is_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        from_mapping(RewardSettings, values, where="reward")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"base_url": "127.0.0.1:8000"}, "wanted e.g. http://"),
        ({"base_url": "https://me:secret@host/v1"}, "holds a password or a query"),
        ({"base_url": "https://host/v1?key=secret"}, "holds a password or a query"),
        ({"prompt": "rate it"}, "wanted 'answer'"),
        ({"prompt": "{answer} {gold}"}, "'gold'"),
        ({"prompt": "{answer} {"}, "cannot be read"),
        ({"pattern": "Score"}, "has 0 groups"),
        ({"pattern": "("}, "cannot be read"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_endpoint_settings_that_cannot_work_are_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        EndpointSettings(**{**LOCAL, **values})


def test_a_refused_password_is_not_repeated():
    with pytest.raises(ConfigError) as error:
        EndpointSettings(base_url="https://me:sesame@host/v1", model="judge")
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_answers": 1}, "at least 2"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": 0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_generation_settings_out_of_range_are_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        GenerationSettings(**values)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"topk": 3}, "no effect with variant 'vanilla'"),
        ({"variant": "topk", "topk": 20}, "20 of 20 answers, wanted fewer"),
        ({"variant": "topk", "topk": 0}, "at least 1"),
        ({"part_rows": 0}, "part_rows"),
    ],
)
def test_reward_gradient_settings_without_effect_are_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        RewardGradientSettings(reward=EXACT, **values)


def test_address_holds_what_changes_the_numbers_only():
    base = RewardGradientSettings(reward=EXACT).address()
    assert base == RewardGradientSettings(reward=EXACT, part_rows=3).address()
    seed = GenerationSettings(seed=1)
    for other in ({"baseline": "mean"}, {"variant": "rejection"}, {"variant": "topk"}, {"generation": seed}):
        assert RewardGradientSettings(reward=EXACT, **other).address() != base
    ten = RewardGradientSettings(reward=EXACT, variant="topk", topk=10)
    assert ten.address() == RewardGradientSettings(reward=EXACT, variant="topk").address()


def test_endpoints_key_patience_and_parallelism_are_no_part_of_the_address():
    base = EndpointSettings(**LOCAL)
    other = EndpointSettings(**LOCAL, key_variable="KEY", timeout=1, max_retries=0, concurrency=1)
    assert other.address() == base.address()
    for changes in ({"model": "other"}, {"prompt": "{answer}"}, {"pattern": "(1)"}, {"temperature": None}):
        assert EndpointSettings(**{**LOCAL, **changes}).address() != base.address()


def test_settings_come_back_from_their_mapping():
    settings = RewardGradientSettings(
        reward=RewardSettings(kind="endpoint", endpoint=EndpointSettings(**LOCAL)), variant="topk", topk=2
    )
    assert from_mapping(RewardGradientSettings, to_mapping(settings), where="reward_gradient") == settings
