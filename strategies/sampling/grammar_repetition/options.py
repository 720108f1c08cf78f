"""Parameters of the grammar-based repetition penalty, as a request gives them."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Mode = Literal["guarded", "paper", "released"]
Space = Literal["prob", "logit"]
LanguageName = Literal["python", "javascript", "typescript", "tsx", "c", "cpp", "java", "go", "rust"]
Copies = Annotated[int, Field(ge=1, le=10_000)]

RELEASED_EOS_BOOST = 1 / 0.8


class AllowedCopies(BaseModel):
    """Copies that guarded mode leaves alone, by what repeats; each 1 to 10000."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    code: Annotated[Copies, Field(description="Lines of code.")] = 4
    declarations: Annotated[Copies, Field(description="Lines that only declare fields or variables.")] = 12
    literals: Annotated[Copies, Field(description="Lines inside a literal, an argument list or a parameter list.")] = 32
    imports: Annotated[Copies, Field(description="Lines that only import, include or define.")] = 32
    statements: Annotated[Copies, Field(description="Statements (level `statement`).")] = 6
    tokens: Annotated[Copies, Field(description="Verbatim blocks of two or more tokens.")] = 3
    single_token: Annotated[Copies, Field(description="One token over and over.")] = 16


class GrammarRepetitionOptions(BaseModel):
    """The request's parameters. `lambda` = 1 is the identity in every mode.

    Raises pydantic's ValidationError for a value out of range and for a parameter that the mode has no use for.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    mode: Annotated[
        Mode,
        Field(
            description="guarded: penalise only beyond a number of copies that depends on the context. paper: "
            "lambda^copies from the second copy on. released: what the authors' code does, on raw logits, Python only, "
            "for replication."
        ),
    ] = "guarded"
    language: Annotated[
        LanguageName | Literal["auto", "off"],
        Field(
            description="The language of the code. auto: that of the enclosing Markdown fence, nothing outside fences. "
            "off: no grammar, only the token detector of guarded mode, everywhere. Not used by released mode."
        ),
    ] = "auto"
    level: Annotated[
        Literal["line", "statement", "both"] | None,
        Field(description="What repeats: lines or statements. Default: line in guarded mode, statement in paper mode."),
    ] = None
    lambda_: Annotated[
        float | None,
        Field(
            alias="lambda",
            gt=0,
            le=1,
            description="Factor per copy, in (0, 1]. Default 0.5 in guarded mode, 0.9 in the others.",
        ),
    ] = None
    space: Annotated[
        Space,
        Field(
            description="prob: the factor multiplies the probability (its logarithm is added to the logit). logit: it "
            "multiplies positive logits and divides negative ones. Released mode multiplies raw logits, always."
        ),
    ] = "prob"
    allowed: Annotated[
        AllowedCopies | Copies,
        Field(description="Guarded mode: copies left alone, one number for all (1 to 10000) or one per context."),
    ] = AllowedCopies()
    cap: Annotated[int, Field(ge=1, le=64, description="Guarded mode: the factor is at least lambda^cap. 1 to 64.")] = (
        16
    )
    max_period: Annotated[
        int, Field(ge=1, le=64, description="Longest repeating unit, in lines or statements. 1 to 64.")
    ] = 32
    tokens: Annotated[bool, Field(description="Guarded mode: also penalise blocks of tokens that repeat verbatim.")] = (
        True
    )
    scope: Annotated[
        Literal["auto", "all", "generated"],
        Field(
            description="Which copies count: those in the prompt too, or only generated ones. auto: all for plain "
            "completions, generated when the prompt is a conversation. Released mode counts all, always."
        ),
    ] = "auto"
    eos_boost: Annotated[
        float | None,
        Field(
            ge=1,
            le=10,
            description="Raises the end-of-sequence tokens while a structural penalty is active: multiplies their "
            "probability or, in logit space, their logit. 1 to 10; default 1 (off), 1.25 in released mode.",
        ),
    ] = None

    @model_validator(mode="after")
    def _used(self) -> Self:
        unused = {
            "released": ("language", "level", "space", "allowed", "cap", "max_period", "tokens", "scope"),
            "paper": ("allowed", "cap", "tokens"),
            "guarded": (),
        }[self.mode]
        for name in unused:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"mode {self.mode} does not use {name}")
        return self

    @property
    def factor(self) -> float:
        """lambda, resolved."""
        return self.lambda_ if self.lambda_ is not None else 0.5 if self.mode == "guarded" else 0.9

    @property
    def levels(self) -> frozenset[str]:
        """The levels to evaluate: "line", "statement" or both."""
        level = self.level or ("statement" if self.mode == "paper" else "line")
        return frozenset({"line", "statement"} if level == "both" else {level})

    @property
    def eos_factor(self) -> float:
        """eos_boost, resolved."""
        return self.eos_boost if self.eos_boost is not None else RELEASED_EOS_BOOST if self.mode == "released" else 1.0

    @property
    def allowed_copies(self) -> AllowedCopies:
        """Thresholds by context; a single number holds for all of them."""
        if isinstance(self.allowed, AllowedCopies):
            return self.allowed
        return AllowedCopies(**dict.fromkeys(AllowedCopies.model_fields, self.allowed))
