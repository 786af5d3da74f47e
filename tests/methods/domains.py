"""Small domains for the tests of mixers."""

import numpy as np

from dataflex_tools.core.mixing import Domains

NAMES = ("wiki", "code", "math", "chat", "news", "law")


def domains(num_tokens, names=None, num_rows=None) -> Domains:
    """Domains of so many tokens, and as many rows unless said."""
    tokens_K = np.asarray(num_tokens, dtype=np.int64)
    rows_K = tokens_K if num_rows is None else np.asarray(num_rows, dtype=np.int64)
    return Domains(tuple(names or NAMES[: len(tokens_K)]), rows_K, tokens_K, vocab_size=100)


def mix(cls, given, **settings):
    """What a static mixer decides with a fixed seed."""
    return cls(cls.Settings(**settings)).mix(given, rng=np.random.default_rng(0))
