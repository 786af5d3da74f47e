"""What is trained on are the planned rows of the data set given, whatever the trainer made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import Trainer

from dataflex_tools.artifact.plan import PlanRows, write_plan
from dataflex_tools.core.errors import ArtifactError, ConfigError, DataError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.plan import Selection
from dataflex_tools.data.records import sample_id
from dataflex_tools.sampler.api import PlanArtifact, load_artifact
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.train.data import PadCollator
from dataflex_tools.train.trainer import PlanTrainerMixin
from tests.train.conftest import make_model
from tests.train.test_trainer import arguments, consumed

TEXTS = [f"item {chr(97 + row % 26)}{row}" for row in range(30)]
PLANNED = np.array([1, 5, 8, 12, 13, 20, 27, 29])
# tokens say which row they are of: 2 labels of row i are 2 + i
TOKENS = [[1, 2 + row, 2 + row] for row in range(30)]


class Making(Trainer):
    """A trainer that makes its own data set out of the one it is given, and notes the rows it trains on."""

    def __init__(self, model: Any, args: Any, data_collator: Any = None, train_dataset: Any = None, **kwargs: Any) -> None:
        self.seen: list[int] = []
        super().__init__(model, args, data_collator, self.made(train_dataset), **kwargs)

    def made(self, dataset: Any) -> Any:
        def tokens(record: dict[str, Any]) -> dict[str, Any]:
            ids = TOKENS[TEXTS.index(record["text"])]
            return {"input_ids": ids, "labels": ids}

        return dataset.map(tokens)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.seen += (inputs["input_ids"][:, 1] - 2).tolist()
        return super().training_step(model, inputs, num_items_in_batch)


class Shuffling(Making):
    def made(self, dataset: Any) -> Any:
        return super().made(dataset).shuffle(seed=3)


class Dropping(Making):
    dropped = (0, 2, 28)

    def made(self, dataset: Any) -> Any:
        gone = [TEXTS[row] for row in self.dropped]
        return super().made(dataset.filter(lambda record: record["text"] not in gone))


class DroppingPlanned(Dropping):
    dropped = (0, 5, 20)


class DroppingAll(Dropping):
    dropped = tuple(range(30))


class Packing(Making):
    def made(self, dataset: Any) -> Any:
        return super().made(dataset).select_columns(["input_ids", "labels"]).select(range(0, 30, 2))


class Repeating(Making):
    def made(self, dataset: Any) -> Any:
        return super().made(dataset).select([*range(30), 5])


class Hidden(Shuffling):
    """Passes its arguments on without naming them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Swapping(Making):
    """Turns its rows round once it is made, at the last moment."""

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._get_dataloader(dataset.select(range(len(dataset) - 1, -1, -1)), *args, **kwargs)


def trainer_of(base: type, folder: Path, *, sampler: Any = None, dataset: Any = None, by_name: bool = True) -> Any:
    class Mine(PlanTrainerMixin, base):  # type: ignore[misc, valid-type]
        pass

    dataset = Dataset.from_dict({"text": TEXTS}) if dataset is None else dataset
    sampler = sampler or PlanSampler(PLANNED, seed=4)
    args = arguments(folder, num_train_epochs=1, remove_unused_columns=True)
    if by_name:
        return Mine(make_model(), args, data_collator=PadCollator(), train_dataset=dataset, sampler=sampler)
    return Mine(make_model(), args, PadCollator(), dataset, sampler=sampler)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("base", [Making, Shuffling, Dropping, Hidden])
def test_planned_rows_are_trained_on_wherever_they_stand(tmp_path: Path, base: type, by_name: bool) -> None:
    trainer = trainer_of(base, tmp_path, by_name=by_name)
    trainer.train()
    expected = PlanSampler(PLANNED, seed=4).rows_at(0, 8).tolist()
    assert trainer.seen == expected
    assert consumed(trainer) == expected
    assert "plan_row_number" not in trainer.train_dataset.column_names


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (DroppingPlanned, r"dropped 2 of the 8 rows that the plan picked \(first: row 5\)"),
        (DroppingAll, "dropped 8 of the 8 rows"),
        (Packing, r"was given 30 rows and trains on 15 it made.*plan\.dataset"),
        (Repeating, "some twice"),
    ],
)
def test_rows_that_are_gone_or_cannot_be_told_are_refused_before_the_first_step(
    tmp_path: Path, base: type, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(base, tmp_path)


def test_a_loader_that_reads_other_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the loader reads 30 rows that are not those of train_dataset"):
        trainer_of(Swapping, tmp_path).train()


def test_a_data_set_put_in_later_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(Making, tmp_path)
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=0)
    with pytest.raises(ConfigError, match="train_dataset was replaced"):
        trainer.train()


@pytest.fixture
def plan(tmp_path: Path) -> PlanArtifact:
    ids = b"".join(sample_id({"text": text}) for text in TEXTS)
    ids_N16 = np.frombuffer(ids, dtype=np.uint8).reshape(-1, 16)
    source = {"path": "pool.jsonl", "domain": "pool", "form": "text", "rows": 30, "sha256": "0" * 64}
    facts = {
        "method": "random", "settings": {}, "model": None, "tokenizer": None, "parents": [], "stats": {},
        "config": {"data": [{"path": "pool.jsonl", "columns": {}, "tags": {}}]},
        "corpus": {"fingerprint": ids_digest(ids_N16), "rows": 30, "domains": ["pool"], "sources": [source]},
    }  # fmt: skip
    rows = PlanRows(ids_N16, np.zeros(30, np.int32), ("pool",), np.arange(30) % 5 + 2)
    score_N = np.zeros(30)
    score_N[PLANNED] = 1.0 + np.arange(8)
    write_plan(tmp_path / "plan", Selection(score_N), rows=rows, facts=facts)
    return load_artifact(tmp_path / "plan")


def data(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


SWAPPED = [*TEXTS[:5], TEXTS[6], TEXTS[5], *TEXTS[7:]]


def test_the_plans_own_data_passes(plan: PlanArtifact) -> None:
    plan.check(data(TEXTS))
    plan.check([{"text": text} for text in TEXTS])
    plan.check(Dataset.from_dict({"input_ids": [[0] * (row % 5 + 2) for row in range(30)]}))
    ids = plan.scores()["sample_id"].to_pylist()
    plan.check(Dataset.from_dict({"input_ids": [[0]] * 30, "sample_id": ids}))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([*TEXTS, "one more"], "made for 30 rows, the data set has 31"),
        (TEXTS[:-1], "made for 30 rows, the data set has 29"),
        (SWAPPED, r"2 of the 30 rows looked at .*\(first: row 5, 'item g6'\); they are other rows of the plan: do not"),
        ([*TEXTS[:29], "another"], r"1 of the 30 rows .*\(first: row 29, 'another'\); give the data the plan was made for"),
    ],
)
def test_other_data_is_refused_by_content(plan: PlanArtifact, texts: list[str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        plan.check(data(texts))


def test_tokens_that_are_not_the_plans_cannot_be_told(plan: PlanArtifact) -> None:
    with pytest.raises(ArtifactError, match="keep the columns of the text beside the tokens"):
        plan.check(Dataset.from_dict({"input_ids": [[0] * (row % 5 + 3) for row in range(30)]}))


def test_records_without_content_are_named(plan: PlanArtifact) -> None:
    with pytest.raises(DataError, match="fit no form"):
        plan.check(Dataset.from_dict({"body": TEXTS}))


def test_a_trainer_compares_its_data_with_the_plan(plan: PlanArtifact, tmp_path: Path) -> None:
    sampler = plan.sampler(num_samples=8, seed=4)
    trainer = trainer_of(Shuffling, tmp_path, sampler=sampler)
    trainer.train()
    assert sorted(trainer.seen) == PLANNED.tolist()
    for wrong in ([*TEXTS, "one more"], SWAPPED):
        with pytest.raises(ArtifactError, match="plan"):
            trainer_of(Making, tmp_path, sampler=sampler, dataset=data(wrong))


def test_chosen_rows_come_as_a_data_set_in_the_order_of_the_first_epoch(plan: PlanArtifact) -> None:
    order = plan.sampler(num_samples=8, seed=2).rows_at(0, 8)
    chosen = plan.dataset(data(TEXTS), num_samples=8, seed=2)
    assert chosen["text"][:] == [TEXTS[row] for row in order]
    subset = plan.dataset([{"text": text} for text in TEXTS], num_samples=8, seed=2)
    assert [record["text"] for record in subset] == [TEXTS[row] for row in order]
    with pytest.raises(ArtifactError, match="do not shuffle it"):
        plan.dataset(data(SWAPPED), num_samples=8)


def test_a_mixture_knows_its_rows_too() -> None:
    from dataflex_tools.sampler.mixture_sampler import MixtureSampler

    sampler = MixtureSampler([range(3), np.array([9, 7])], (np.zeros(1, np.int64), np.array([[0.5, 0.5]])))
    assert sampler.chosen_rows.tolist() == [0, 1, 2, 7, 9]
