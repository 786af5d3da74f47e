"""The checked-in artifact of format 1 stays readable for ever; it is never rewritten to make a test pass."""

import numpy as np

from dataflex_tools.artifact.manifest import verify_artifact
from dataflex_tools.artifact.plan import check_corpus, load_plan
from dataflex_tools.report.inspect import describe
from tests.golden.example import FOLDER, expected


def test_format_1_verifies_and_reads_as_it_was_written() -> None:
    assert verify_artifact(FOLDER) == []
    plan, fields = load_plan(FOLDER), expected()
    assert plan.manifest["format"] == 1
    for key in ("method", "settings", "corpus", "model", "tokenizer", "parents", "stats", "config", "licence"):
        assert plan.manifest[key] == fields[key], key
    np.testing.assert_array_equal(plan.score_N, fields["selection"].score_N)
    np.testing.assert_array_equal(plan.num_tokens_N, fields["num_tokens_N"])
    np.testing.assert_array_equal(plan.domain_N, fields["domain_N"])
    assert plan.domain_names == fields["domain_names"]
    check_corpus(plan, fields["corpus"]["fingerprint"], fields["ids_N16"])
    assert "plan random, 12 rows" in describe(FOLDER)
