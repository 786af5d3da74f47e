"""Stored token losses of a reference model, joined to the rows of a corpus and looked up at random while a model trains."""

from pathlib import Path

import numpy as np

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core import dist
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest, ids_digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.temporary import temporary_for
from dataflex_tools.data.ipc import not_whole, publish

# N rows of the corpus, R of them that are wanted, B rows asked for, S label tokens of all of them


class TokenLosses:
    """The reference loss of each label token of the wanted rows, in nats; memory-mapped, nothing is held in memory.

    Written once to `cache` from the Parquet parts, which cannot be read at random.
    """

    def __init__(
        self, store: SignalStore, ids_N16: np.ndarray, num_labels_N: np.ndarray, cache: Path, *, rows: np.ndarray
    ) -> None:  # fmt: skip
        """`rows`: the wanted rows, ascending, (R,). Raises ArtifactError if the store lacks one that has labels, or holds
        another number of losses for it."""
        self._row_R, self.spec_digest = rows, store.spec_digest
        self._start_R1 = np.concatenate([[0], np.cumsum(num_labels_N[rows], dtype=np.int64)])
        name = digest({"signal": store.spec_digest, "ids": ids_digest(ids_N16[rows])})
        path = cache / "token_loss" / f"{name}.bin"
        if dist.is_main() and not_whole([path], digests_in(cache)):
            self._write(path, store, ids_N16[rows], num_labels_N[rows])
        dist.barrier()
        self._value_S = np.memmap(path, np.float32, "r", shape=(int(self._start_R1[-1]),))

    def _write(self, path: Path, store: SignalStore, ids_R16: np.ndarray, num_labels_R: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = temporary_for(path)
        try:
            value_S = np.memmap(hidden, np.float32, "w+", shape=(int(self._start_R1[-1]),))
            for place_B, start_B1, block_S in store.lists(ids_R16, "token_loss", num_labels_R == 0).blocks():
                _check_lengths(store, place_B, np.diff(start_B1), num_labels_R)
                for i, place in enumerate(place_B.tolist()):
                    value_S[self._start_R1[place] : self._start_R1[place + 1]] = block_S[start_B1[i] : start_B1[i + 1]]
            value_S.flush()
            del value_S
            publish(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)

    def of_rows(self, row_B: np.ndarray) -> np.ndarray:
        """Losses of the label tokens of these rows, which are wanted ones, one after the other, (S,) float32."""
        place_B = np.searchsorted(self._row_R, row_B)
        assert (self._row_R[place_B] == row_B).all(), "a row whose losses were not wanted"
        places = place_B.tolist()
        pieces = [self._value_S[self._start_R1[place] : self._start_R1[place + 1]] for place in places]
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _check_lengths(store: SignalStore, place_B: np.ndarray, length_B: np.ndarray, num_labels_R: np.ndarray) -> None:
    wrong = np.flatnonzero(length_B != num_labels_R[place_B])
    if len(wrong):
        place = int(place_B[wrong[0]])
        raise ArtifactError(
            f"{store.folder} has {int(length_B[wrong[0]])} losses for a row with {int(num_labels_R[place])} label "
            "tokens: it was made with another tokenizer or packing; measure the reference again"
        )
