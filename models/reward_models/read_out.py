"""From the hidden state at a step's position to its score: the last layer of each family of reward models."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from models.reward_models.protocols import one_token
from models.tokenizer import HuggingFaceTokenizer
from strategies.errors import ModelLoadError

ReadOut = Callable[[Tensor], Tensor]
"""Hidden states float32 [S, d] -> scores in 0..1, float32 [S]."""

TAGS = {"math-shepherd": ("+", "-"), "rlhflow": ("+", "-"), "openr": (" +", " -")}
"""Tokens for a right and a wrong step, where a causal model predicts one of two."""


def read_out(
    protocol: str, weights: Mapping[str, Tensor], tokenizer: HuggingFaceTokenizer, device: torch.device
) -> ReadOut:
    """The read-out of a protocol from the checkpoint's own tensors. Raises ModelLoadError for one that is missing."""

    def tensor(*names: str) -> Tensor:
        for name in names:
            if name in weights:
                return weights[name].to(device, torch.float32)
        raise ModelLoadError(f"the reward model has no weights {names[0]!r}, which its protocol {protocol!r} reads")

    if protocol in TAGS:
        good, bad = (one_token(tokenizer, text) for text in TAGS[protocol])
        rows = tensor("lm_head.weight", "model.embed_tokens.weight")[[good, bad]]
        return lambda hidden: linear(hidden, rows).softmax(-1)[:, 0]
    if protocol == "qwen":
        w1, b1, w2, b2 = (tensor(f"score.{layer}.{kind}") for layer in (0, 2) for kind in ("weight", "bias"))
        return lambda hidden: linear(relu(linear(hidden, w1, b1)), w2, b2).softmax(-1)[:, 1]
    if protocol == "skywork":
        w, b = tensor("v_head.summary.weight"), tensor("v_head.summary.bias")
        return lambda hidden: linear(hidden, w, b)[:, 0].sigmoid()
    w = tensor("score.weight")
    bias = tensor("score.bias") if "score.bias" in weights else None
    if w.shape[0] != 2:
        raise ModelLoadError(f"the reward model has {w.shape[0]} labels; its protocol {protocol!r} has two")
    return lambda hidden: linear(hidden, w, bias).softmax(-1)[:, 1]
