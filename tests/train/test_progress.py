"""A training off a terminal says where it is, and its log can be read while it runs."""

import logging
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import TrainerCallback

from dataflex_tools.core.progress import Progress, time_text
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.run import FitOptions, run_training
from tests.train.conftest import make_model, make_settings, make_tokens


class _Look(TrainerCallback):
    """Reads the run's log after each line of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[int] = []

    def on_log(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if self.path.exists():
            self.found.append(pq.read_table(self.path).num_rows)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("flextools"), "propagate", True)
    caplog.set_level(logging.INFO, logger="flextools")
    return caplog


def test_each_logging_step_is_a_line_and_the_log_grows(
    tmp_path: Path, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflex_tools.train.progress._SECONDS", 0.0)
    look = _Look(tmp_path / "log.parquet")
    options = FitOptions(callbacks=[look])
    settings = make_settings(max_steps=6, logging_steps=2)
    run_training(make_model, make_tokens(30), PlanSampler(np.arange(12)), settings, tmp_path, options=options)
    said = [record.getMessage() for record in lines.records if record.getMessage().startswith("step ")]
    assert [re.match(r"step (\d) of 6: loss \d", line)[1] for line in said] == ["2", "4", "6"]  # type: ignore[index]
    assert all(re.search(r"samples/s, [\d,]+ tokens/s, .* left$", line) for line in said)
    assert pq.read_table(tmp_path / "log.parquet").num_rows == 3
    assert set(look.found) <= {1, 2, 3}
    assert len(look.found) >= 2


def test_long_work_off_a_terminal_says_how_far_it_is(
    lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflex_tools.core.progress._LINE_SECONDS", -1.0)
    with Progress("gradient of pool", 10) as progress:
        progress.advance(4, 100)
    said = [record.getMessage() for record in lines.records]
    assert re.match(r"gradient of pool: 4 of 10, .* samples/s, [\d,]+ tokens/s, 0 s left", said[0])


def test_times_are_said_as_a_person_says_them() -> None:
    assert [time_text(seconds) for seconds in (45, 99, 150, 7200)] == ["45 s", "99 s", "2 min", "2 h 0 min"]
