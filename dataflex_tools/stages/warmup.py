"""The warm-up model: found if it exists, trained if not; an artifact of its own."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex_tools.artifact.files import remove_leftovers
from dataflex_tools.artifact.manifest import (
    MANIFEST,
    check_file,
    check_files,
    file_entry,
    read_manifest,
    write_manifest,
)
from dataflex_tools.core import dist
from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.stages.inputs import Side, router_rule
from dataflex_tools.train.settings import TrainingSettings, WarmupSettings

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Warmup:
    """A finished warm-up: checkpoints (adapter and Adam moments), oldest first, and their weights, (C,) summing to 1."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def checkpoints(self) -> list[Path]:
        """One folder per epoch."""
        return [self.folder / item["path"] for item in self.manifest["stats"]["checkpoints"]]

    @property
    def weight_C(self) -> np.ndarray:
        """Share of each epoch's mean learning rate."""
        stats = self.manifest["stats"]
        mean_lr_C = np.array([item["mean_learning_rate"] for item in stats["checkpoints"]])
        if stats.get("rates") != "taken":  # an earlier version stored the rates after the steps
            from dataflex_tools.train.warmup import epoch_ends, mean_rates, scheduled_rates

            written = self.manifest["settings"]["warmup"]["training"]
            training = from_mapping(TrainingSettings, written, where=f"{self.folder}: warmup.training")
            rate_S = scheduled_rates(training, stats["samples"])
            mean_lr_C = np.array(mean_rates(rate_S, epoch_ends(training, stats["samples"])))
        return np.asarray(mean_lr_C / mean_lr_C.sum())

    def parent(self, root: Path) -> dict[str, str]:
        """The `parents` entry of what is made from it."""
        return {"path": str(self.folder.relative_to(root)), "digest": self.manifest["digest"]}


def rows_of(side: Side, settings: WarmupSettings) -> np.ndarray:
    """The warm-up's rows, (k,) int64; the same samples for any order of the corpus.

    Raises ConfigError if they do not fill one global batch.
    """
    from dataflex_tools.train.settings import num_steps
    from dataflex_tools.train.warmup import warmup_rows

    labelled = side.tokens.rows_with_labels()
    seed = settings.training.seed
    rows = warmup_rows(side.tokens.ids_N16, labelled, fraction=settings.fraction, seed=seed)
    num_steps(settings.training, len(rows), where="warmup.training")
    return rows


def check_rates(settings: WarmupSettings, num_rows: int) -> None:
    """Raise ConfigError if no step of the warm-up has a learning rate above 0: no checkpoint would weigh anything."""
    from dataflex_tools.train.warmup import scheduled_rates

    rate_S = scheduled_rates(settings.training, num_rows)
    if not (rate_S > 0).any():
        raise ConfigError(
            f"warmup.training.warmup_ratio {settings.training.warmup_ratio} takes up all {len(rate_S)} steps of the "
            f"warm-up, and it starts at learning rate 0; set warmup.training.warmup_ratio=0, or raise warmup.fraction"
        )


def warmup_spec(model: ModelSettings, model_sha256: str, render_digest: str, settings: WarmupSettings) -> dict[str, Any]:
    """Everything the warm-up depends on but its samples."""
    shape = {key: value for key, value in to_mapping(model).items() if key not in ("path", "revision")}
    training = {k: v for k, v in to_mapping(settings).items() if k != "max_growth"}
    own = {"kind": "warmup", "model": model_sha256, "load": shape, "render": render_digest, "warmup": training}
    return own | router_rule(model)


def find_warmup(root: Path, spec: Mapping[str, Any], side: Side, settings: WarmupSettings) -> tuple[Warmup | None, Path]:
    """(the warm-up to use if there is one, the folder a new one goes to).

    One made from exactly these samples is preferred. Else one whose samples are all still in the corpus serves, as long
    as the corpus has not changed in size by more than `max_growth`: appended samples then cost their own gradient only.
    """
    ids_k16 = side.tokens.ids_N16[rows_of(side, settings)]
    exact = root / "models" / f"warmup-{digest({**spec, 'samples': [i.tobytes().hex() for i in ids_k16]})[:16]}"
    if (exact / "manifest.json").exists():
        return _whole(root, Warmup(exact, read_manifest(exact)), spec), exact
    known = {item.tobytes() for item in side.tokens.ids_N16}
    for folder in sorted((root / "models").glob("warmup-*")):
        if not (folder / "manifest.json").exists():
            continue
        manifest = read_manifest(folder)
        if digest(manifest.get("settings")) != digest(spec):
            continue
        check_file(folder, manifest, "samples.parquet")
        rows_then = (manifest.get("corpus") or {}).get("rows", 0)
        is_near = abs(len(side.corpus) - rows_then) <= settings.max_growth * rows_then
        if is_near and known.issuperset(_sample_ids(folder)):
            if dist.is_main():
                logger.info(
                    "warm-up %s was made on %d rows, the corpus now has %d: used, since warmup.max_growth=%s",
                    folder.name, rows_then, len(side.corpus), settings.max_growth,
                )  # fmt: skip
            return _whole(root, Warmup(folder, manifest), spec), exact
    return None, exact


def _whole(root: Path, warmup: Warmup, spec: Mapping[str, Any]) -> Warmup:
    """The warm-up, once its files are seen to be as they were written. Raises ArtifactError otherwise."""
    folder, manifest = warmup.folder, warmup.manifest
    if digest(manifest.get("settings")) != digest(spec) or not (manifest.get("stats") or {}).get("checkpoints"):
        raise ArtifactError(f"{folder} is not the warm-up of that address; delete it and run `flextools score` again")
    check_files(folder, manifest, digests_in(root / "cache"))
    return warmup


def _sample_ids(folder: Path) -> list[bytes]:
    column = pq.read_table(folder / "samples.parquet", columns=["sample_id"])["sample_id"]
    return [value.as_py() for value in column]


def make_warmup(folder: Path, spec: Mapping[str, Any], side: Side, model: ModelSettings, settings: WarmupSettings) -> Warmup:
    """Train it, or go on where a killed run stopped, and write its manifest."""
    from dataflex_tools.train.warmup import warm_up

    rows = rows_of(side, settings)
    checkpoints = warm_up(model, side.tokens, rows, settings, folder)
    if dist.is_main():
        shutil.rmtree(folder / "run", ignore_errors=True)  # left by a kill after the last step
        remove_leftovers(folder)
        ids = pa.array([item.tobytes() for item in side.tokens.ids_N16[rows]], pa.binary(16))
        pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "sample_id": ids}), folder / "samples.parquet")
        paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        write_manifest(
            folder,
            {
                "kind": "model",
                "method": None,
                "settings": dict(spec),
                "corpus": side.info(),
                "model": {"name": model.path, "sha256": spec["model"], "dtype": model.dtype},
                "tokenizer": {"render": spec["render"]},
                "parents": [],
                "files": [file_entry(folder, path) for path in paths],
                "stats": {
                    "samples": len(rows),
                    "rates": "taken",
                    "checkpoints": [
                        {"path": str(Path(path).relative_to(folder)), "mean_learning_rate": mean_lr}
                        for path, mean_lr in checkpoints
                    ],
                },
            },
        )
    dist.barrier()
    return Warmup(folder, read_manifest(folder))


def checkpoint_spec(checkpoint: Path, cache: Path) -> dict[str, str]:
    """Content addresses of a checkpoint's adapter, its configuration, and its Adam moments."""
    names, digests = ("adapter_model.safetensors", "adapter_config.json", "moments.safetensors"), digests_in(cache)
    return {name.split(".")[0]: digests.sha256(checkpoint / name) for name in names}
