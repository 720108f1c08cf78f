"""The three readings of phi-decoding: the paper's text, the authors' experiment script, and what the server uses.

They differ in how sharp the choice is (one candidate ahead by 0.3 nat among 13 is chosen with probability 0.085 by the
paper's formula, 0.355 by the script's), in who is clustered, and in the pruning rules. What the published numbers fit
is the script's, so the server starts from it, without its filter on positive advantages and its sticky early stop.
"""

from dataclasses import dataclass
from typing import Literal

from strategies.search.tfidf import TokenRule

Combination = Literal["mean", "boltzmann"]
Eligibility = Literal["all", "positive", "nonblank"]
FinalChoice = Literal["joint", "majority2", "argmax"]


@dataclass(frozen=True, slots=True)
class PhiProfile:
    """What sets the readings of phi-decoding apart. Replace single fields with `dataclasses.replace`.

    tau1, tau2:   temperatures of the advantage and of the cluster share (eq. 7)
    combine:      how both become probabilities, see `phi_value.joint`; tau is the "boltzmann" one's temperature, which
                  the paper does not state (0.6 is a guess)
    eligibility:  which candidates are clustered and drawn from, see `phi_value.eligible`
    shrink:       cluster also when fewer texts than clusters, or than beams, are eligible; without it (the script) the
                  step then falls back to advantages alone over all kept candidates
    width_k:      in-width pruning keeps s >= mean - width_k * deviation; > unless width_inclusive
    fill_tau:     temperature of the draw that tops up to M what in-width pruning left
    clusters, delta:  K, and the share of the largest cluster that stops deliberation; > unless depth_inclusive
    depth_sticky: a share reached before T_min counts at T_min
    identical_steps:  also stop when all chosen step texts are equal, one step after T_min
    final, tokens:    the choice among completions, see `phi_final`, and the tokens that texts are clustered by
    """

    tau1: float
    tau2: float
    combine: Combination
    eligibility: Eligibility
    shrink: bool
    width_inclusive: bool
    delta: float
    depth_inclusive: bool
    tau: float = 0.6
    width_k: float = 1.0
    fill_tau: float = 0.1
    clusters: int = 3
    depth_sticky: bool = False
    identical_steps: bool = False
    final: FinalChoice = "joint"
    tokens: TokenRule = "words"

    def __post_init__(self) -> None:
        for name in ("tau1", "tau2", "tau", "fill_tau"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")
        if not 0 < self.delta <= 1 or self.clusters < 1 or self.width_k < 0:
            raise ValueError("delta lies in (0, 1], clusters is at least 1, width_k is not negative")


PAPER = PhiProfile(
    tau1=0.6,
    tau2=0.6,
    combine="boltzmann",
    eligibility="all",
    shrink=True,
    width_inclusive=True,
    delta=0.7,
    depth_inclusive=True,
)
ORIGIN = PhiProfile(
    tau1=0.1,
    tau2=1.0,
    combine="mean",
    eligibility="positive",
    shrink=False,
    width_inclusive=False,
    delta=0.69,
    depth_inclusive=False,
    depth_sticky=True,
    identical_steps=True,
    final="majority2",
)
SERVER = PhiProfile(
    tau1=0.1,
    tau2=1.0,
    combine="mean",
    eligibility="nonblank",
    shrink=True,
    width_inclusive=True,
    delta=0.7,
    depth_inclusive=True,
)
PROFILES = {"paper": PAPER, "origin": ORIGIN, "server": SERVER}
