"""phi-decoding: choose steps by where a sampled rest of the answer leads (Xu et al. 2025, arXiv 2503.13288)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from strategies.search.context import SearchContext
from strategies.search.node import Node
from strategies.search.phi_deliberation import Deliberation, PhiPlan
from strategies.search.phi_options import CompletionOptions, ForesightOptions, StepOptions
from strategies.search.phi_profile import PROFILES, Combination, Eligibility, FinalChoice, PhiProfile
from strategies.search.search import Search, fault
from strategies.search.tfidf import TokenRule

LARGEST_POOL = 64
KNOBS = (
    "clusters",
    "delta",
    "tau1",
    "tau2",
    "combine",
    "tau",
    "eligibility",
    "width_k",
    "width_inclusive",
    "tokens",
)
"""Parameters that replace a profile's own value."""

Tau = Annotated[float, Field(gt=0.0, le=100.0)]


class FinalOptions(CompletionOptions):
    """How one of the completed answers is chosen, and whether foresight paths that ended by themselves are taken for
    completions (null: only under a budget)."""

    select: FinalChoice | None = Field(
        default=None,
        description="Draws among the completions, takes the most probable, or draws within the larger of two clusters.",
    )
    reuse_foresight: bool | None = Field(
        default=None,
        description="Takes foresight that ended by itself for the completion; null: only under a budget.",
    )


class Phi(Search):
    """phi-decoding: keeps several partial answers, samples their next steps, and draws those whose foresight gained
    likelihood and agrees with the other paths.

    Rollouts and foresight have temperatures of their own (0.6 and 1), the request's temperature is the final
    completion's: a greedy request still explores. Everything else of the request's sampling acts in every stage.
    """

    name: ClassVar = "phi"

    beams: Annotated[int, Field(ge=1, le=16, description="M: partial answers kept.")] = 4
    rollouts: Annotated[int, Field(ge=1, le=64, description="N: steps sampled from each; M times N is at most 64.")] = 4
    t_min: Annotated[
        int | None, Field(ge=1, le=64, description="First step at which agreement may stop deliberation: 4, or t_max.")
    ] = None
    t_max: Annotated[
        int, Field(ge=0, le=64, description="Steps deliberated before the rest is completed; 0 is plain sampling.")
    ] = 8
    profile: Annotated[
        Literal["server", "paper", "origin"],
        Field(description="Whose values hold: the server's, the paper's text, the authors' script."),
    ] = "server"
    clusters: Annotated[int | None, Field(ge=1, le=8, description="K: clusters of foresight texts.")] = None
    delta: Annotated[float | None, Field(gt=0.0, le=1.0, description="Share of one cluster that means agreement.")] = (
        None
    )
    tau1: Annotated[Tau | None, Field(description="Temperature of the advantage.")] = None
    tau2: Annotated[Tau | None, Field(description="Temperature of the cluster share.")] = None
    combine: Annotated[Combination | None, Field(description="How both become one distribution.")] = None
    tau: Annotated[Tau | None, Field(description="Temperature of the combination 'boltzmann'.")] = None
    eligibility: Annotated[Eligibility | None, Field(description="Which candidates are clustered and drawn.")] = None
    width_k: Annotated[
        float | None, Field(ge=0.0, le=16.0, description="In-width pruning keeps what is within k deviations.")
    ] = None
    width_inclusive: Annotated[bool | None, Field(description="Whether the bound itself is kept.")] = None
    tokens: Annotated[TokenRule | None, Field(description="What texts are clustered by.")] = None
    step: StepOptions = StepOptions()
    foresight: ForesightOptions = ForesightOptions()
    final: FinalOptions = FinalOptions()
    stream_mode: Annotated[
        Literal["committed", "final"],
        Field(description="Stream what all live answers share, or only the chosen answer at the end."),
    ] = "committed"

    @model_validator(mode="after")
    def _consistent(self) -> "Phi":
        if self.beams * self.rollouts > LARGEST_POOL:
            raise fault("rollouts", f"beams times rollouts must be at most {LARGEST_POOL}")
        if self.t_min is not None and self.t_min > max(self.t_max, 1):
            raise fault("t_min", "must be at most t_max")
        if self.tau is not None and self.readings.combine != "boltzmann":
            raise fault("tau", "goes with the combination 'boltzmann'")
        if self.final.reuse_foresight and self.foresight.max_tokens == 0:
            raise fault("final.reuse_foresight", "needs foresight")
        return self

    @property
    def readings(self) -> PhiProfile:
        """The profile, with the values that the request gives itself."""
        given = {name: value for name in KNOBS if (value := getattr(self, name)) is not None}
        if self.final.select is not None:
            given["final"] = self.final.select
        return replace(PROFILES[self.profile], **given)

    @property
    def most_answers(self) -> int:
        return self.beams

    async def run(self, context: SearchContext) -> Sequence[Node]:
        plan = PhiPlan(
            profile=self.readings,
            beams=self.beams,
            rollouts=self.rollouts,
            t_min=min(4, max(self.t_max, 1)) if self.t_min is None else self.t_min,
            t_max=self.t_max,
            step=self.step,
            foresight=self.foresight,
            final=self.final,
            reuse_foresight=self.final.reuse_foresight,
            commits=self.stream_mode == "committed",
        )
        return await Deliberation(plan, context).answers()
