"""What truncations measure of each row: normalizer, log-probabilities, entropy.

A row's figures are the same bits whatever the batch. torch's own `sum` and `logsumexp` are not: for few rows of a wide
vocabulary they split each row among threads, and the split changes the rounding.
"""

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
"""Terms that one partial sum adds: both levels stay far below the size at which torch would split a row."""


def row_sum(values: Tensor) -> Tensor:
    """float [R, V] -> [R, 1]."""
    padded = functional.pad(values, (0, -values.shape[-1] % BLOCK))
    return padded.reshape(len(values), -1, BLOCK).sum(-1).sum(-1, keepdim=True)


def log_normalizer(logits: Tensor) -> Tensor:
    """log sum exp, [R, V] -> [R, 1]. NaN for rows that hold NaN or +inf, or nothing but -inf."""
    top = logits.amax(-1, keepdim=True)
    return top + row_sum((logits - top).exp()).log()


def log_probabilities(logits: Tensor) -> Tensor:
    """Natural logarithms of softmax, [R, V] -> [R, V]."""
    return logits - log_normalizer(logits)


def entropy(logprobs: Tensor) -> Tensor:
    """Shannon entropy in nats of log-probabilities [R, V] -> [R, 1]; impossible tokens add nothing."""
    probabilities = logprobs.exp()
    return -row_sum(torch.where(probabilities > 0, probabilities * logprobs, 0.0))
