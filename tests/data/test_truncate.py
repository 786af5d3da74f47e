import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex_tools.data.truncate import CUT_ANSWER, CUT_PROMPT, cut


def spans(*lengths):
    """Token spans: prompt, answer, prompt, answer, ..."""
    parts = [np.full(n, (i + 1) // 2 if i % 2 else 0) for i, n in enumerate(lengths)]
    return np.concatenate(parts)


# prompt, answer -> kept prompt, kept answer, at a limit of 10
SHARES = [
    (6, 4, 6, 4, 0),
    (20, 4, 6, 4, CUT_PROMPT),  # a short answer stays whole
    (4, 20, 4, 6, CUT_ANSWER),  # a short prompt stays whole
    (20, 20, 5, 5, CUT_PROMPT | CUT_ANSWER),
    (10, 30, 3, 7, CUT_PROMPT | CUT_ANSWER),
    (1000, 5, 5, 5, CUT_PROMPT),  # not 0 as the bare proportion has it
    (0, 30, 0, 10, CUT_ANSWER),
]


@pytest.mark.parametrize(("prompt", "answer", "kept_prompt", "kept_answer", "how"), SHARES)
def test_one_answer_follows_the_shares(prompt, answer, kept_prompt, kept_answer, how):
    kept, bits = cut(spans(prompt, answer), 10, keep_first=False)
    assert kept.tolist() == [*range(prompt - kept_prompt, prompt), *range(prompt, prompt + kept_answer)]
    assert bits == how


def test_the_begin_token_stays_in_front_of_a_cut_prompt():
    assert cut(spans(20, 4), 10, keep_first=True)[0].tolist() == [0, 15, 16, 17, 18, 19, 20, 21, 22, 23]


def test_several_answers_lose_the_end_unless_the_first_would_go():
    kept, bits = cut(spans(3, 4, 3, 4), 10, keep_first=False)
    assert (kept.tolist(), bits) == (list(range(10)), CUT_ANSWER)
    kept, bits = cut(spans(15, 4, 3, 4), 10, keep_first=False)
    assert (kept.tolist(), bits) == ([*range(9, 15), *range(15, 19)], CUT_PROMPT | CUT_ANSWER)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6), st.integers(2, 30), st.booleans())
def test_the_limit_holds_and_an_answer_is_never_lost_without_a_word(lengths, limit, keep_first):
    span_T = spans(*lengths)
    kept, bits = cut(span_T, limit, keep_first=keep_first)
    assert len(kept) == min(limit, len(span_T))
    assert (np.diff(kept) > 0).all()
    if span_T.any():
        assert span_T[kept].any()
    assert bool(bits & CUT_ANSWER) == ((span_T[kept] > 0).sum() < (span_T > 0).sum())
    assert bool(bits & CUT_PROMPT) == ((span_T[kept] == 0).sum() < (span_T == 0).sum())
