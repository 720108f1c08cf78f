"""The record of a search: which nodes it made, what it found them worth, and what it called."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from strategies.sandbox.checks import digest_of

if TYPE_CHECKING:
    from strategies.sandbox.checks import Check
    from strategies.sandbox.outcome import Program, Result
    from strategies.search.asking import Question, Reply
    from strategies.search.node import Node
    from strategies.search.search import TraceLevel

Record = dict[str, Any]


class Trace:
    """Keeps what the request's level asks for. listener: hears every record of a full trace as it is made."""

    def __init__(self, level: "TraceLevel", listener: Callable[[Record], None] | None = None) -> None:
        self.level = level
        self.listener = listener
        self.calls: Counter[str] = Counter()
        self.facts: Record = {}
        self._nodes: list[Node] = []
        self._questions: list[Record] = []
        self._runs: dict[str, Record] = {}
        self._explored = 0

    def called(self, what: str, count: int) -> None:
        """Counts what was awaited."""
        self.calls[what] += count

    def created(self, node: "Node", *, generated: bool) -> None:
        """A new node. generated: its tokens were sampled for it, not given."""
        self._nodes.append(node)
        self._explored += len(node.step) if generated else 0
        self._tell({"event": "node", **described(node)})

    def noted(self, node: "Node", notes: Mapping[str, object]) -> None:
        """More is known of a node."""
        self._tell({"event": "note", "node": node.number, **notes})

    def happened(self, event: str, **facts: object) -> None:
        """Something that no node shows, for whoever follows a full trace: an event of the search's own."""
        self._tell({"event": event, **facts})

    def answered(self, question: "Question", reply: "Reply", exhausted: str | None = None) -> None:
        """A question of the search's own, and the reply. exhausted: what of the budget cut it off."""
        if self.level == "full":
            record: Record = {
                "question": [[role, text] for role, text in question.messages],
                "seed": str(question.seed),  # 64 bits are too many for some readers of JSON
                "reply": reply.text,
                "tokens": reply.tokens,
                "end": reply.end,
            }
            if reply.pieces:
                record["pieces"] = [[text, logprob] for text, logprob in reply.pieces]
            if reply.end == "budget":
                record["exhausted"] = exhausted
            self._questions.append(record)

    def executed(
        self,
        program: "Program",
        checks: "Sequence[Check]",
        results: "Sequence[Result] | None",
        exhausted: str | None = None,
    ) -> None:
        """What came of a program's tests; None where the budget ended its run. Seconds are left out, so that a search
        that is repeated tells the same."""
        if self.level == "full":
            found = None
            if results is not None:
                found = [{**asdict(one), "outcome": str(one.outcome), "seconds": 0.0} for one in results]
            facts = {"tests": digest_of(program, checks), "results": found, "exhausted": exhausted}
            self._runs[program.source] = {"program": program.source, **facts}

    def _tell(self, record: Record) -> None:
        if self.level == "full" and self.listener is not None:
            self.listener(record)

    def summary(self) -> Record:
        """Counts: nodes, how many of them are finished, the greatest depth, tokens sampled for nodes, continuations."""
        return {
            "nodes": len(self._nodes),
            "finished": sum(node.finished for node in self._nodes),
            "depth": max((node.depth for node in self._nodes), default=0),
            "explored_tokens": self._explored,
            **self.calls,
        }

    def report(self) -> Record | None:
        """What the reply says: nothing, the summary, or the summary, every node, and all that a `Replay` needs."""
        if self.level == "none":
            return None
        report = {**self.summary(), **self.facts}
        if self.level == "full":
            report["tree"] = [described(node) for node in self._nodes]
            if self._questions:
                report["questions"] = self._questions
            if self._runs:
                # Programs run at the same time, so the order in which they end is none.
                report["runs"] = [self._runs[program] for program in sorted(self._runs)]
        return report


def described(node: "Node") -> Record:
    """A node as JSON: its place in the tree, its own text, and what the search noted."""
    return {
        "id": node.number,
        "parent": None if node.parent is None else node.parent.number,
        "depth": node.depth,
        "text": node.step_text,
        "tokens": len(node.step),
        "logprob": round(node.logprob, 6),
        "end": node.end,
        "finished": node.finished,
        **node.notes,
    }
