"""How a request wants answers found in its solutions, to vote on them and to tell when one is complete."""

from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from strategies.errors import InvalidRequest
from strategies.scoring.answer_pattern import AnswerPattern
from strategies.scoring.answers import DEFAULT_RULES, Answer, AnswerRule, extract, is_final_step


class AnswerOptions(BaseModel):
    """rules: tried in order, the first that finds something decides; "pattern" runs a regular expression of one's own,
    whose first group (or whole match) is the answer; "choice" looks for one of the letters in `choices`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    rules: Annotated[
        tuple[AnswerRule, ...],
        Field(
            strict=False,
            min_length=1,
            max_length=6,
            description="How an answer is found in a solution: tried in order, the first that finds something decides.",
        ),
    ] = DEFAULT_RULES
    choices: Annotated[str, Field(pattern="^[A-Za-z]{2,26}$", description="The letters of the rule `choice`.")] = (
        "ABCDEFGHIJ"
    )
    pattern: Annotated[
        str | None, Field(description="The regular expression of the rule `pattern`; its first group is the answer.")
    ] = None

    @model_validator(mode="after")
    def _pattern(self) -> "AnswerOptions":
        if ("pattern" in self.rules) != (self.pattern is not None):
            raise PydanticCustomError("value", "goes with the rule 'pattern'", {"field": "pattern"})
        try:
            _ = self._compiled
        except InvalidRequest as error:
            raise PydanticCustomError("value", "{message}", {"message": str(error), "field": "pattern"}) from error
        return self

    @cached_property
    def _compiled(self) -> AnswerPattern | None:
        return None if self.pattern is None else AnswerPattern(self.pattern)

    def extract(self, text: str) -> Answer:
        """The answer of one solution; with a pattern, take it off the event loop."""
        return extract(text, self.rules, choices=self.choices, pattern=self._compiled)

    def is_final(self, step: str) -> bool:
        """Whether a step carries the final answer: by the marks of `is_final_step` that these rules read, and by the
        pattern. A bare number or letter is no mark: many steps have one."""
        if self._compiled is not None and self._compiled.last_match(step) is not None:
            return True
        return is_final_step(step, self.rules)

    def canonical(self, texts: list[str]) -> list[str | None]:
        """The forms to count votes by."""
        return [self.extract(text).canonical for text in texts]
