"""A plan artifact from Python: read its scores, select rows with a budget, get a sampler for any Trainer or DataLoader.

plan = load_artifact("artifacts/less")
plan.check(my_dataset)
loader = DataLoader(my_dataset, batch_size=8, sampler=plan.sampler(fraction=0.05))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch.utils.data import Subset

from dataflex_tools.artifact.plan import LoadedPlan, load_plan
from dataflex_tools.core.plan import Budget
from dataflex_tools.sampler.content import PlanContent
from dataflex_tools.sampler.plan_sampler import PlanSampler


@dataclass(frozen=True)
class PlanArtifact:
    """A finished plan on disk, opened."""

    folder: Path
    plan: LoadedPlan

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The whole manifest: method, settings, corpus, model, tokenizer, files, digest."""
        return self.plan.manifest

    def scores(self) -> pa.Table:
        """Columns row, sample_id (16 bytes), domain, num_tokens, score and the method's own; one row per sample."""
        return self.plan.table

    def select(
        self,
        *,
        fraction: float | None = None,
        num_samples: int | None = None,
        num_tokens: int | None = None,
        unit: str = "samples",
    ) -> np.ndarray:
        """The pool rows a budget buys, best first, (k,) int64; of rows with the same content one is taken and counted.

        Raises ConfigError unless exactly one of fraction, num_samples, num_tokens is given, or if the pool has less.
        """
        budget = Budget(fraction=fraction, num_samples=num_samples, num_tokens=num_tokens, unit=unit)
        return self.plan.pick(budget)

    def sampler(
        self,
        *,
        fraction: float | None = None,
        num_samples: int | None = None,
        num_tokens: int | None = None,
        unit: str = "samples",
        seed: int = 0,
    ) -> PlanSampler:
        """A sampler over the rows a budget buys; they are row numbers of the corpus the plan was made from.

        A trainer with `PlanTrainerMixin` compares its data set with the plan by content; elsewhere call `check` yourself.
        """
        row_k = self.select(fraction=fraction, num_samples=num_samples, num_tokens=num_tokens, unit=unit)
        return PlanSampler(row_k, seed=seed, content=PlanContent.of(self.plan))

    def check(self, dataset: Any) -> None:
        """Raise ArtifactError unless `dataset` is the data the plan was made for: as many rows, the same content in order.

        `dataset`: of `datasets` or torch, rows as mappings. Compared are a column `sample_id` (16 bytes) if it has one, else
        the records as the plan's were read, else the number of `input_ids`. Raises DataError for a record without content.
        """
        PlanContent.of(self.plan).check(dataset)

    def dataset(
        self,
        dataset: Any,
        *,
        fraction: float | None = None,
        num_samples: int | None = None,
        num_tokens: int | None = None,
        unit: str = "samples",
        seed: int = 0,
    ) -> Any:
        """The rows of `dataset` that a budget buys, in the order of a training's first epoch: for a trainer that packs.

        A `datasets.Dataset` gives one, any other a `torch.utils.data.Subset`. Chosen rows are compared as in `check`.
        """
        row_k = self.select(fraction=fraction, num_samples=num_samples, num_tokens=num_tokens, unit=unit)
        PlanContent.of(self.plan).check(dataset, row_k)
        order = PlanSampler(row_k, seed=seed).rows_at(0, len(row_k)).tolist()
        if isinstance(dataset, datasets.Dataset):
            return dataset.select(order)
        return Subset(dataset, order)


def load_artifact(folder: str | Path) -> PlanArtifact:
    """Open a plan artifact. Raises ArtifactError if the score stage has not finished or the folder holds no plan."""
    folder = Path(folder)
    return PlanArtifact(folder, load_plan(folder))
