"""What every method declares, so that stages, `flextools methods` and the contract tests can treat all alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex_tools.core.mixing import Domains, MixState, Mixture, Observation, Observed
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.signals import Need, Side, Signals


class Selector(ABC):
    """Decides which samples to train on. Subclasses set the class attributes and write `select`.

    `Settings` is a frozen dataclass; `cost` says in words what must be measured; `paper` is author, year, link.
    """

    kind: ClassVar[str] = "selector"
    Settings: ClassVar[type]
    paper: ClassVar[str]
    cost: ClassVar[str]
    uses_target: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False  # imitates another artifact's scores
    scores_copies_alike: ClassVar[bool] = False  # by design, not because their signals are equal: a control
    ranks_all_rows: ClassVar[bool] = True  # False: some rows with labels may get -inf too

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def needs(self) -> tuple[Need, ...]:
        """The signals to measure before `select`; none by default."""
        return ()

    def rows_needed(self, signals: Signals) -> Mapping[tuple[str, Side], np.ndarray]:
        """Ascending rows to measure of each need that is `of_chosen_rows`, by (kind, side).

        Called once, by the main rank, when all other signals are there; `signals` holds those. `select` is then called on
        the same object with the same `Rows` and may find more rows measured than were asked for.
        """
        return {}

    @abstractmethod
    def select(self, signals: Signals, *, rng: np.random.Generator) -> Selection:
        """Score every pool row; -inf for rows that must never be taken, e.g. those without labels."""


class Mixer(ABC):
    """Decides how much of each domain to train on. A subclass is one of the three kinds below.

    `Settings`, `cost` and `paper` are as in `Selector`.
    """

    kind: ClassVar[str] = "mixer"
    Settings: ClassVar[type]
    paper: ClassVar[str]
    cost: ClassVar[str]

    def __init__(self, settings: Any) -> None:
        self.settings = settings


class StaticMixer(Mixer):
    """Proportions from what is known without a model."""

    @abstractmethod
    def mix(self, domains: Domains, *, rng: np.random.Generator) -> Mixture:
        """The proportions. Raises ConfigError if a setting does not fit the domains."""


class OnlineMixer(Mixer):
    """Proportions that change while a model trains; everything remembered is in the state.

    `observes`: what an update is told. `loss`: of the step's batch; `excess_loss`: of the batch, per token over a reference
    model and clipped at 0; `held_out_loss`; `router_load`: tokens per expert of the last mixture-of-experts layer, on
    held-out rows. `weighs_loss`: the weights scale the loss of a step, whose batch is drawn by `sampling_weights`; else the
    weights draw the batches of the steps that follow.
    """

    observes: ClassVar[Observed]
    weighs_loss: ClassVar[bool] = False
    after_training: ClassVar[tuple[str, ...]] = ()  # settings that no training of the proxy depends on

    @property
    def update_every(self) -> int:
        """Optimizer steps from one update to the next."""
        return 1

    @property
    def first_update(self) -> int:
        """The optimizer step after which the weights may first differ from those at the start."""
        return self.update_every

    @abstractmethod
    def start(self, domains: Domains) -> MixState:
        """The state before the first step; raises ConfigError if a setting does not fit the domains."""

    @abstractmethod
    def update(self, state: MixState, seen: Observation) -> MixState:
        """The state after `seen`; a pure function."""

    @abstractmethod
    def finish(self, domains: Domains, trajectory: tuple[MixState, ...]) -> Mixture:
        """What a training should follow, from the start state and the state after each update."""

    @property
    def loss_kind(self) -> Literal["paper", "official"]:
        """How the weights enter the loss (`ops.group_loss`), where `weighs_loss`."""
        return "paper"

    @property
    def max_rounds(self) -> int:
        """Most rounds of reference and proxy, where it observes `excess_loss`."""
        return 1

    def reference_weights(self, domains: Domains) -> np.ndarray:
        """(K,) proportions that the first reference trains on; natural by default."""
        return domains.share_K

    def is_settled(self, before_K: np.ndarray, after_K: np.ndarray) -> bool:
        """Whether another round would change nothing: the reference's weights and those that were found."""
        return True

    def sampling_weights(self, domains: Domains) -> np.ndarray:
        """(K,) proportions of the batches where `weighs_loss`; uniform by default."""
        return np.full(len(domains), 1 / len(domains))


class ScheduleMixer(OnlineMixer):
    """An online mixer whose plan is the weights it went through; its settings have `update_every` and `follow`."""

    after_training = ("follow",)

    @property
    def update_every(self) -> int:
        """As set."""
        return int(self.settings.update_every)

    def finish(self, domains: Domains, trajectory: tuple[MixState, ...]) -> Mixture:
        """The schedule, or what of it `follow` asks for."""
        return Mixture.of_trajectory(domains.names, trajectory, follow=self.settings.follow)


class SwarmMixer(Mixer):
    """Proportions fitted to the held-out losses of many small trainings."""

    @abstractmethod
    def mixtures(self, domains: Domains, *, rng: np.random.Generator) -> np.ndarray:
        """(S, K) proportions, one training each."""

    @abstractmethod
    def fit(self, domains: Domains, weight_SK: np.ndarray, loss_SK: np.ndarray, *, rng: np.random.Generator) -> Mixture:
        """The proportions that the fit prefers; `loss_SK`: held-out nats per token of each domain after each training."""
