"""Stored token losses of a reference model, joined to the rows of a corpus and looked up at random while a model trains."""

import os
from pathlib import Path

import numpy as np

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest, ids_digest

# N rows of the corpus, B rows asked for, S label tokens of all of them


class TokenLosses:
    """The reference loss of each label token of each row, in nats; memory-mapped, nothing is held in memory.

    Written once to `cache` from the Parquet parts, which cannot be read at random.
    """

    def __init__(self, store: SignalStore, ids_N16: np.ndarray, num_labels_N: np.ndarray, cache: Path) -> None:
        """Raises ArtifactError if the store lacks a row that has labels, or holds another number of losses for one."""
        self._start_N1 = np.concatenate([[0], np.cumsum(num_labels_N, dtype=np.int64)])
        name = digest({"signal": store.spec_digest, "ids": ids_digest(ids_N16)})
        path = cache / "token_loss" / f"{name}.bin"
        if dist.is_main() and not path.exists():
            self._write(path, store, ids_N16, num_labels_N)
        dist.barrier()
        self._value_S = np.memmap(path, np.float32, "r", shape=(int(self._start_N1[-1]),))

    def _write(self, path: Path, store: SignalStore, ids_N16: np.ndarray, num_labels_N: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            value_S = np.memmap(hidden, np.float32, "w+", shape=(int(self._start_N1[-1]),))
            for row_B, start_B1, block_S in store.lists(ids_N16, "token_loss", num_labels_N == 0).blocks():
                _check_lengths(store, row_B, np.diff(start_B1), num_labels_N)
                for i, row in enumerate(row_B.tolist()):
                    value_S[self._start_N1[row] : self._start_N1[row + 1]] = block_S[start_B1[i] : start_B1[i + 1]]
            value_S.flush()
            del value_S
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)

    def of_rows(self, row_B: np.ndarray) -> np.ndarray:
        """Losses of the label tokens of these rows, one after the other, (S,) float32."""
        pieces = [self._value_S[self._start_N1[row] : self._start_N1[row + 1]] for row in row_B.tolist()]
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _check_lengths(store: SignalStore, row_B: np.ndarray, length_B: np.ndarray, num_labels_N: np.ndarray) -> None:
    wrong = np.flatnonzero(length_B != num_labels_N[row_B])
    if len(wrong):
        row = int(row_B[wrong[0]])
        raise ArtifactError(
            f"{store.folder} has {int(length_B[wrong[0]])} losses for row {row}, which has {int(num_labels_N[row])} label "
            "tokens: it was made with another tokenizer or packing; measure the reference again"
        )
