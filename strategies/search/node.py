"""A node of a search's tree: a partial or complete answer, as tokens and as the text that a client would see."""

from dataclasses import dataclass, field
from typing import Any, Literal

from strategies.answer_text import AnswerText
from strategies.runtime import TokenLogprob

End = Literal["root", "step", "stop", "length", "budget"]
"""Why a node's own tokens end: nothing was generated; at the end of a step; at the end of the answer (end of sequence,
a client's stop, a step that a search takes for the last); at the most tokens this extension, or the whole answer, may
have; where the budget ran out."""


@dataclass(slots=True, eq=False)
class Node:
    """One state of a search. Tokens count the answer alone, never the prompt.

    number: order of creation, 0 is the root. tokens: of the whole answer so far; step: those that this node added.
    logprobs: raw ones of `step` (at a client's stop string, without those that lie wholly in it). lineage: path of
    child indices from the root, which keys the noise. depth: number of nodes above. finished: there is nothing to add;
    a search sets it, and the end "stop", for a step that it takes for the last. written: its text is the search's own,
    not a decoding of its tokens. notes: what a search wants its trace to say (value, visits).
    """

    number: int
    parent: "Node | None"
    lineage: tuple[int, ...]
    tokens: tuple[int, ...]
    step: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    answer: AnswerText
    end: End
    finished: bool
    depth: int = 0
    written: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole answer so far, as a client would see it."""
        return self.answer.text

    @property
    def step_text(self) -> str:
        """What this node added to it."""
        return self.text[len(self.parent.text) :] if self.parent is not None else ""

    @property
    def logprob(self) -> float:
        """Sum of the raw log-probabilities of the tokens that this node added."""
        return sum(entry.logprob for entry in self.logprobs)

    @property
    def mean_logprob(self) -> float | None:
        """The same per token; None for no tokens. A mean: sums favour short texts."""
        return self.logprob / len(self.logprobs) if self.logprobs else None

    @property
    def path(self) -> list["Node"]:
        """The nodes from the first below the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def steps(self) -> list[str]:
        """The texts of the path, one per node."""
        return [node.step_text for node in self.path]

    @property
    def answer_logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of the whole answer so far."""
        return [entry for node in self.path for entry in node.logprobs]
