"""Held-out rows that decide: the same each time, equally many of each domain, never those that report."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflex_tools.core.errors import DataError
from dataflex_tools.score.held_out import decides, deciding_rows, held_out_losses
from dataflex_tools.score.losses import sample_losses
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import build
from tests import tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tiny.make_texts(tmp_path_factory.mktemp("held") / "project")
    config = build("score", tiny.mix_config(root))
    tokenizer = inputs.Tokenizer.of(config.model)
    return config, inputs.read_text(config.data, tokenizer, config.render, config.pack, Path(root) / "cache")


def test_each_domain_has_equally_many_rows_all_of_the_deciding_half(text: Any) -> None:
    tokens = text[1].held_out
    parts = deciding_rows(tokens, 1000)
    available = [int((decides(tokens.ids_N16) & (tokens.group_N == k)).sum()) for k in range(3)]
    assert [len(part) for part in parts] == [min(available)] * 3
    for code, part in enumerate(parts):
        assert (tokens.group_N[part] == code).all()
        assert decides(tokens.ids_N16[part]).all()
    fewer = deciding_rows(tokens, 2)
    assert all(set(few) <= set(many) for few, many in zip(fewer, parts, strict=True))


def test_losses_are_those_of_the_rows_one_by_one(text: Any) -> None:
    from dataflex_tools.models.load import load_model

    config, tokens = text[0], text[1].held_out
    model = load_model(config.model)
    seen = held_out_losses(model, tokens, num_rows=3)
    for code, part in enumerate(deciding_rows(tokens, 3)):
        sums = [sample_losses(model, tokens, np.array([row]))[0][0] for row in part]
        np.testing.assert_allclose(seen.sum_K[code], sum(sums), rtol=1e-6)
        assert seen.num_tokens_K[code] == tokens.num_labels_N[part].sum()


def test_a_domain_with_nothing_to_decide_by_is_named(text: Any) -> None:
    class Emptied:
        def __getattr__(self, name: str) -> Any:
            return getattr(text[1].held_out, name)

        def rows_with_labels(self) -> np.ndarray:
            rows = text[1].held_out.rows_with_labels()
            return rows[text[1].held_out.group_N[rows] != 1]

    with pytest.raises(DataError, match=r"'say'.*pack\.held_out"):
        deciding_rows(Emptied(), 3)


def test_documents_that_do_not_see_each_other_are_measured_so(tmp_path: Path) -> None:
    """The loss of a block of whole documents is the sum of the losses of each document alone."""
    from dataflex_tools.models.load import load_model
    from dataflex_tools.score.losses import sample_losses as losses

    root = tiny.make_texts(tmp_path)
    config = build("score", tiny.mix_config(root, pack={"block_size": 64, "attend_across_documents": False}))
    tokenizer = inputs.Tokenizer.of(config.model)
    tokens = inputs.read_text(config.data, tokenizer, config.render, config.pack, tmp_path / "cache").train
    model = load_model(config.model).double()
    sum_N, _ = losses(model, tokens, np.arange(len(tokens)))
    for row in range(0, len(tokens), 7):
        ids, edges = tokens.input_ids(row), sorted({0, *tokens.starts(row).tolist(), 64})
        alone = 0.0
        for start, stop in pairwise(edges):
            part = torch.tensor(ids[start:stop][None].astype(np.int64))
            if stop - start > 1:
                with torch.no_grad():
                    logits = model(input_ids=part, use_cache=False).logits[0, :-1]
                alone += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
        assert sum_N[row] == pytest.approx(alone, rel=1e-5)
