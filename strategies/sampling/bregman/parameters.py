"""The parameters of one row of Bregman decoding, as a request gives them."""

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from strategies.sampling.bregman.generator import Family, Mode, family, most_kept, penalty_of_floor

ADAPTIVE_ALPHA: dict[Mode, tuple[float, float]] = {"primal": (0.25, 8.0), "dual": (1.05, 8.0)}
FIXED_ALPHA: dict[Mode, tuple[float, float]] = {"primal": (-4.0, 8.0), "dual": (1.0, 8.0)}


class BregmanParameters(BaseModel):
    """Adaptive (lambda or tau) or fixed-k Bregman decoding.

    alpha: the generator; "inf" and "-inf" (primal only) are the limits, with a fixed k only. mode: which argument of
    the divergence is optimised. Exactly one of: lambda, the price of a kept token; tau, the same price as the
    probability of a token whose dropping costs just lambda (comparable between alphas: at most ceil(1 / tau) tokens are
    kept in the primal); k, the number of tokens to keep. k_min, k_max: bounds of the adaptive k; k_max also bounds the
    work, which grows with 1 / tau. lambda = 0 (tau = 0) keeps every token, and so the distribution, but for k_max.

    Raises pydantic.ValidationError, whose messages begin with the field that is at fault.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    alpha: Annotated[float, Field(allow_inf_nan=False)] | Literal["inf", "-inf"] = Field(
        default=1.5,
        description="The divergence. Primal: 0.25 to 8; dual: 1.05 to 8. With a fixed k: -4 to 8 (dual: 1 to 8), inf, "
        "and -inf (primal only).",
    )
    mode: Annotated[Mode, Field(description="Which argument of the divergence is the distribution drawn from.")] = (
        "primal"
    )
    lambda_: Annotated[float, Field(ge=0)] | None = Field(
        default=None, alias="lambda", description="Price of a kept token; 0 keeps the distribution."
    )
    tau: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="The same price, as the probability of a token whose dropping costs just lambda. In the primal a "
        "more likely one is kept, and at most 1 / tau are.",
    )
    k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="A fixed number of tokens instead: only the renormalisation is Bregman's."
    )
    k_min: Annotated[int, Field(ge=1, description="Least tokens kept, with lambda or tau.")] = 1
    k_max: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most tokens kept, with lambda or tau; absent: 1024."
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        given = [
            name for name, value in (("lambda", self.lambda_), ("tau", self.tau), ("k", self.k)) if value is not None
        ]
        if not given:
            raise _refused("lambda: one of lambda, tau and k is needed")
        if len(given) > 1:
            raise _refused(f"{given[1]}: can't be combined with {given[0]}; give exactly one of lambda, tau and k")
        if self.k is not None:
            if self.k_min != 1:
                raise _refused("k_min: bounds the adaptive k; can't be combined with k")
            if self.k_max is not None:
                raise _refused("k_max: bounds the adaptive k; can't be combined with k")
        elif self.k_max is not None and self.k_min > self.k_max:
            raise _refused(f"k_min: {self.k_min} is above k_max = {self.k_max}")
        self._check_alpha()
        return self

    def _check_alpha(self) -> None:
        if isinstance(self.alpha, str):
            if self.k is None:
                raise _refused(f'alpha: "{self.alpha}" needs a fixed k; lambda and tau have no meaning there')
            if self.mode == "dual" and self.alpha == "-inf":
                raise _refused('alpha: "-inf" exists in the primal only')
            return
        low, high = (FIXED_ALPHA if self.k is not None else ADAPTIVE_ALPHA)[self.mode]
        if not low <= self.alpha <= high:
            kind = "a fixed k" if self.k is not None else "an adaptive k"
            raise _refused(
                f"alpha: must lie in [{low:g}, {high:g}] for mode {self.mode} with {kind}, got {self.alpha:g}"
            )

    @cached_property
    def exponent(self) -> float:
        """alpha as a number, +-inf for the limits."""
        return float(self.alpha)

    @cached_property
    def penalty(self) -> float | None:
        """lambda; None with a fixed k."""
        if self.tau is not None:
            return penalty_of_floor(self.mode, self.exponent, self.tau)
        return self.lambda_

    @property
    def adaptive(self) -> bool:
        """Whether k depends on the distribution: lambda > 0."""
        return self.penalty is not None and self.penalty > 0

    @property
    def unchanged(self) -> bool:
        """lambda = 0 and no k_max: every token is kept with its own probability."""
        return self.penalty == 0 and self.k_max is None

    @property
    def family(self) -> Family:
        """The formulas that apply; with every token kept, all alphas agree and the cheapest does."""
        return Family.PROPORTIONAL if self.unchanged else family(self.mode, self.exponent)

    def bounds(self, V: int) -> tuple[int, int]:
        """The smallest and largest k at vocabulary size V, but for the number of positive tokens."""
        if self.k is not None:
            return min(self.k, V), min(self.k, V)
        high = V if self.k_max is None else min(self.k_max, V)
        return (min(self.k_min, V), high) if self.adaptive else (high, high)

    def candidates(self, V: int) -> int:
        """How many of the most likely tokens decide the result, exactly, at vocabulary size V."""
        low, high = self.bounds(V)
        if not self.adaptive or self.penalty is None:
            return high
        # One more than can be kept: the bound itself is rounded.
        return int(min(high, max(low, most_kept(self.mode, self.exponent, self.penalty) + 1)))


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("bregman_parameters", "{message}", {"message": message, "param": message.split(":")[0]})
