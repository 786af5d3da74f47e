"""Which tokens of a row that is too long are kept, so that its answer is never lost without a word."""

import numpy as np

CUT_PROMPT, CUT_ANSWER = 1, 2  # bits of what was cut


def cut(span_T: np.ndarray, cutoff_len: int, *, keep_first: bool) -> tuple[np.ndarray, int]:
    """(positions kept, ascending; bits of what was cut) of a row with at most `cutoff_len` tokens.

    `span_T`: (T,) number of the answer a token belongs to, 0 for none. In a row with one answer, one under
    half of the limit stays whole and the prompt loses its start; else a prompt under half of it stays whole and the
    answer loses its end; else both keep their proportion (LLaMA-Factory's shares), the answer at least half of the
    limit. A row with several answers loses its end; if the first of them would be lost too, the row is reduced to that
    one. `keep_first` spares the begin-of-sequence token.
    """
    if len(span_T) <= cutoff_len:
        return np.arange(len(span_T)), 0
    kept = _kept(span_T, cutoff_len)
    if keep_first and kept[0] > 0 and span_T[kept[0]] == 0:
        kept[0] = 0
    is_lost_T = np.ones(len(span_T), dtype=bool)
    is_lost_T[kept] = False
    how = CUT_PROMPT * (is_lost_T & (span_T == 0)).any() + CUT_ANSWER * (is_lost_T & (span_T > 0)).any()
    return kept, int(how)


def _kept(span_T: np.ndarray, cutoff_len: int) -> np.ndarray:
    labelled = np.flatnonzero(span_T)
    if len(labelled) == 0:
        return np.arange(cutoff_len)
    first_answer = labelled[span_T[labelled] == span_T[labelled[0]]]
    num_prompt, end = int(first_answer[0]), int(first_answer[-1]) + 1
    if end <= cutoff_len or (end <= labelled[-1] and num_prompt < cutoff_len):
        return np.arange(cutoff_len)
    num_answer = end - num_prompt
    if num_answer * 2 < cutoff_len:
        most = cutoff_len
    elif num_prompt * 2 < cutoff_len:
        most = cutoff_len - num_prompt
    else:
        # the bare proportion gives a 1,024-token answer after a very long prompt nothing, and a 1,023-token one all
        most = max(cutoff_len // 2, cutoff_len * num_answer // (num_prompt + num_answer))
    kept_answer = min(most, num_answer)
    kept_prompt = min(cutoff_len - kept_answer, num_prompt)
    return np.arange(num_prompt - kept_prompt, num_prompt + kept_answer)
