"""Drawn answers: from the model's own distribution, the same whatever else is drawn, ended where they end."""

import itertools

import numpy as np
import pytest
import torch

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.score import answers as answers_module
from dataflex_tools.score.answers import StoredAnswers, draw_answers
from dataflex_tools.score.batches import pad_batch
from dataflex_tools.score.engine import Backoff
from dataflex_tools.score.losses import per_sample_loss
from dataflex_tools.score.reward_gradient import _AnswerRows
from dataflex_tools.score.settings import GenerationSettings
from tests.score.reward_builders import IidPolicy, SamePrompt, Target

SETTINGS = GenerationSettings(num_answers=6, max_new_tokens=8)
# float32 with and without a key-value cache, summed over an answer
CACHED = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Target(tmp_path_factory.mktemp("target"))


def ids_of(answers):
    return [ids.tolist() for ids in answers.token_ids]


def draw(model, prompt, settings=SETTINGS):
    return draw_answers(model, prompt, settings, Backoff())


def test_tokens_follow_the_models_distribution():
    policy, settings = IidPolicy([0.2, -0.1, 0.4]), GenerationSettings(num_answers=6000, max_new_tokens=2)
    prob = torch.tensor([0.2, -0.1, 0.4]).softmax(0).numpy()
    found = [tuple(ids) for ids in ids_of(draw(policy, SamePrompt()[0], settings))]
    expected = {(0,): prob[0]} | {(a, b): prob[a] * prob[b] for a, b in itertools.product((1, 2), range(3))}
    assert set(found) == set(expected)
    for answer, chance in expected.items():
        # 5 standard errors of a share of 6,000
        assert abs(found.count(answer) / 6000 - chance) < 5 * np.sqrt(chance * (1 - chance) / 6000)


def test_an_answer_does_not_depend_on_how_many_are_drawn_with_it(target, monkeypatch):
    model, prompt = target.model(), target.prompts[0]
    whole = draw(model, prompt)
    fewer = draw(model, prompt, GenerationSettings(num_answers=3, max_new_tokens=8))
    assert ids_of(fewer) == ids_of(whole)[:3]
    monkeypatch.setattr(answers_module, "_AT_ONCE", 1)
    assert ids_of(draw(model, prompt)) == ids_of(whole)


def test_out_of_memory_draws_the_same_answers_in_smaller_batches(target, monkeypatch):
    model, prompt = target.model(), target.prompts[0]
    whole, draws, sizes = draw(model, prompt), answers_module._draw, []

    def limited(base, prompt, settings, number_S):
        sizes.append(len(number_S))
        if len(number_S) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return draws(base, prompt, settings, number_S)

    monkeypatch.setattr(answers_module, "_draw", limited)
    assert ids_of(draw(model, prompt)) == ids_of(whole)
    assert sizes[0] == 6


def test_seed_sample_and_number_each_change_the_draws(target):
    model = target.model()
    first = ids_of(draw(model, target.prompts[0]))
    assert len({tuple(ids) for ids in first}) > 1
    assert ids_of(draw(model, target.prompts[0], GenerationSettings(num_answers=6, max_new_tokens=8, seed=1))) != first
    policy, same = IidPolicy([0.0] * 8), SamePrompt(end_ids=(7,))
    assert ids_of(draw(policy, same[0])) != ids_of(draw(policy, same[1]))


def test_an_answer_stops_with_the_first_token_that_ends_it():
    answers = draw(IidPolicy([0.0, 0.0, 0.0]), SamePrompt(end_ids=(0, 2))[0])
    assert any(len(ids) < 8 for ids in answers.token_ids)
    for ids, log_probs in zip(answers.token_ids, answers.log_probs, strict=True):
        assert not np.isin(ids[:-1], (0, 2)).any()
        assert len(ids) == 8 or ids[-1] in (0, 2)
        assert len(log_probs) == len(ids)


def test_log_probabilities_are_those_the_gradient_is_taken_of(target):
    model, prompt = target.model(), target.prompts[1]
    answers = draw(model, prompt)
    rows = _AnswerRows([prompt], [answers.token_ids])
    with torch.no_grad():
        nll, _ = per_sample_loss(model, pad_batch(rows, range(6)))
    np.testing.assert_allclose(-nll.numpy(), [each.sum() for each in answers.log_probs], **CACHED)


def test_temperature_and_truncation_change_the_distribution_drawn_from():
    policy, prompt = IidPolicy([0.0, 1.0, 2.0]), SamePrompt(end_ids=(0,))[0]
    options = {"num_answers": 20, "max_new_tokens": 2}
    best = draw(policy, prompt, GenerationSettings(top_k=1, **options))
    assert {tuple(ids) for ids in ids_of(best)} == {(2, 2)}
    assert all((each == 0).all() for each in best.log_probs)
    kept = draw(policy, prompt, GenerationSettings(top_p=0.8, **options))  # 0.67 and 0.24 of the three
    assert {token for ids in ids_of(kept) for token in ids} == {1, 2}
    warm = draw(policy, prompt, GenerationSettings(temperature=2.0, **options))
    expected = torch.tensor([0.0, 0.5, 1.0]).log_softmax(0).numpy()
    for ids, log_probs in zip(warm.token_ids, warm.log_probs, strict=True):
        np.testing.assert_allclose(log_probs, expected[ids], rtol=1e-6)


def test_the_checkpoints_own_generation_settings_have_no_effect(target):
    model, prompt = target.model(), target.prompts[0]
    expected, own = ids_of(draw(model, prompt)), model.get_base_model().generation_config
    own.repetition_penalty, own.suppress_tokens, own.max_length = 9.0, list(range(7, 20)), 3
    assert ids_of(draw(model, prompt)) == expected
    assert model.get_base_model().generation_config is own
    own.repetition_penalty, own.suppress_tokens, own.max_length = None, None, None


def test_dropout_is_off_and_training_mode_returns(target):
    model, prompt = target.model(), target.prompts[0]
    expected = ids_of(draw(model, prompt))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert ids_of(draw(model, prompt)) == expected
    assert model.training


def test_stored_answers_come_back_bit_for_bit_and_are_not_drawn_again(target, tmp_path):
    stored = StoredAnswers(target.model(), SETTINGS, policy="p", cache=tmp_path)
    first = stored.of(target.prompts[0])
    again = StoredAnswers(None, SETTINGS, policy="p", cache=tmp_path).of(target.prompts[0])
    for one, other in zip((*first.token_ids, *first.log_probs), (*again.token_ids, *again.log_probs), strict=True):
        np.testing.assert_array_equal(one, other)
    assert StoredAnswers(None, SETTINGS, policy="q", cache=tmp_path).folder != stored.folder
    other = GenerationSettings(num_answers=6, max_new_tokens=8, seed=1)
    assert StoredAnswers(None, other, policy="p", cache=tmp_path).folder != stored.folder


def test_text_leaves_the_ending_out(target):
    answers = draw(target.model(), target.prompts[0], GenerationSettings(num_answers=40, max_new_tokens=30))
    texts = answers.texts(target.prompts[0], target.tokenizer)
    ended = [text for text, ids in zip(texts, answers.token_ids, strict=True) if ids[-1] in target.prompts[0].end_ids]
    assert ended
    assert not any("<|end|>" in text for text in texts)


def test_prompt_too_long_for_the_model_names_its_row(target):
    with pytest.raises(ConfigError, match=r"target row 2 has a prompt of \d+ tokens.*128"):
        draw(target.model(), target.prompts[2], GenerationSettings(num_answers=2, max_new_tokens=120))


def test_probabilities_that_are_not_finite_name_the_row(target):
    model = target.model()
    with torch.no_grad():
        model.get_base_model().lm_head.weight[3] = float("nan")
    with pytest.raises(DataError, match="target row 3"):
        draw(model, target.prompts[3])
