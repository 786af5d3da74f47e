"""The loss signals: each sample's mean and summed loss over its label tokens, or the loss of every one of them.

The loss of an answer alone (IFD) is the same signal over tokens rendered with `RenderSettings(answer_only=True)`.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from dataflex_tools.artifact.signal import list_column
from dataflex_tools.score.engine import Columns
from dataflex_tools.score.forward import ForwardSignal
from dataflex_tools.score.losses import label_losses, measuring, summed
from dataflex_tools.score.settings import LossSignalSettings, TokenLossSignalSettings

# B samples of a batch, S label tokens in the batch


_COUNTS = [pa.field("num_tokens", pa.int32()), pa.field("num_labels", pa.int32())]
# loss: nats per label token; loss_sum: nats
LOSS_COLUMNS = pa.schema([*_COUNTS, ("loss", pa.float64()), ("loss_sum", pa.float64())])


def token_loss_columns(storage: Literal["float16", "float32"]) -> pa.Schema:
    """num_tokens, num_labels and token_loss (a list with num_labels numbers)."""
    return pa.schema([*_COUNTS, list_column("token_loss", storage)])


class LossSignal(ForwardSignal):
    """Mean and sum of -log p over the label tokens of each sample, in nats, under `model`, adapter included.

    Token losses are float32, their sum float64. A sample without labels has loss 0.
    """

    kind = "loss"

    def __init__(self, model: torch.nn.Module, settings: LossSignalSettings) -> None:
        super().__init__(model, settings)

    @property
    def columns(self) -> pa.Schema:
        """num_tokens, num_labels, loss (nats per label token) and loss_sum (nats)."""
        return LOSS_COLUMNS

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """num_labels: (B,) int32; loss, loss_sum: (B,) float64."""
        with measuring(self._model):
            loss_S, num_B = label_losses(self._model, batch)
        sum_B = summed(loss_S, num_B)
        return {"num_labels": num_B.astype(np.int32), "loss": sum_B / np.maximum(num_B, 1), "loss_sum": sum_B}


class TokenLossSignal(ForwardSignal):
    """-log p of each label token in its order, in nats, under `model`, adapter included.

    The label tokens of a row are those with a label, `labels != -100`, but for one at position 0, which nothing predicts.
    """

    kind = "token_loss"

    def __init__(self, model: torch.nn.Module, settings: TokenLossSignalSettings) -> None:
        super().__init__(model, settings)
        self._storage = settings.storage

    @property
    def columns(self) -> pa.Schema:
        """Those of `token_loss_columns`."""
        return token_loss_columns(self._storage)

    def measure_batch(self, batch: dict[str, torch.Tensor]) -> Columns:
        """num_labels: (B,) int32; token_loss: (B,) arrays in the storage type."""
        with measuring(self._model):
            loss_S, num_B = label_losses(self._model, batch)
        lists_B = np.empty(len(num_B), dtype=object)
        with np.errstate(over="ignore"):  # a loss beyond the storage type becomes inf, which the engine names and refuses
            lists_B[:] = np.split(loss_S.astype(self._storage), np.cumsum(num_B)[:-1])
        return {"num_labels": num_B.astype(np.int32), "token_loss": lists_B}
