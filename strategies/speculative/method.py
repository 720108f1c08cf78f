"""A speculation method: how a tree is drafted, and by which rule its tokens are accepted."""

from typing import Protocol

from torch import Tensor

from strategies.speculative.draft_tree import DraftTree
from strategies.speculative.noise import Noise
from strategies.speculative.rejection import Trials


class Method(Protocol):
    """One speculation method with its parameters.

    A round: `tree = new_tree(last_token, ends)`; then, up to `length` times while `tree.frontier()` is not empty, run
    the draft at the frontier's nodes and `propose`; then the target at all nodes, and `verify(method.rule, ...)`.
    """

    @property
    def length(self) -> int:
        """Number of levels; a round emits at most one token more."""

    def new_tree(self, root_token: int, ends: frozenset[int] = frozenset()) -> DraftTree:
        """An empty tree; `ends` are the tokens that end the sequence."""

    def propose(self, tree: DraftTree, logprobs: Tensor, noise: Noise | None) -> None:
        """Appends one level of draft tokens.

        logprobs: [len(frontier), V], the draft's distribution after the request's pipeline at `tree.frontier()`, up to
        a constant per row, -inf outside the support. The tree keeps views of its rows: don't overwrite them.
        noise: None at temperature 0, where the draw becomes its deterministic limit.
        """

    def rule(
        self, draft_logprobs: Tensor | None, target_probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None
    ) -> Trials:
        """The method's `AcceptanceRule`."""
