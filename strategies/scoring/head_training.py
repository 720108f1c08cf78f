"""Fits a value head to outcomes: every prefix of a solution is labelled with whether its final answer was right.

linear: L2-regularised logistic regression (LBFGS). mlp: AdamW with early stopping. Model selection and Platt scaling
look at the dev split only. The rule of labels is LiteSearch's (arXiv 2407.00320, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, dropout, silu

from strategies.scoring.calibration import Floats, fit_platt
from strategies.scoring.value_head import Arch, ValueHead

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of logistic regression: C * weighted log loss + |w|^2 / 2."""
WIDTH, DROPOUT, LEARNING_RATE, DECAY, BATCH, EPOCHS, PATIENCE = 256, 0.1, 1e-3, 1e-2, 256, 20, 3
LEAST_STD = 1e-6


@dataclass(frozen=True, slots=True)
class Examples:
    """Prefixes of solutions. features: float32 [N, d]; outcomes: 0 or 1, float64 [N]; weights: float64 [N]."""

    features: NDArray[np.float32]
    outcomes: Floats
    weights: Floats

    @property
    def one_sided(self) -> bool:
        """Whether there is nothing to tell apart."""
        return len(set(self.outcomes.tolist())) < 2


@dataclass(frozen=True, slots=True)
class Trained:
    """The head, how it was regularised, and why it is not calibrated (None if it is)."""

    head: ValueHead
    setting: str
    uncalibrated: str | None


def train_head(train: Examples, dev: Examples, archs: Sequence[Arch], seed: int = 0) -> Trained:
    """The candidate of the least Brier score on `dev`, Platt-scaled there.

    Where dev has outcomes of one kind only, the strongest regularisation is taken and nothing is scaled. Raises
    ValueError if `train` has outcomes of one kind only.
    """
    if train.one_sided:
        raise ValueError("every solution of the training questions has the same outcome: there is nothing to learn")
    candidates: list[tuple[str, ValueHead]] = []
    for arch in archs:
        if arch == "linear":
            candidates += [(f"linear, C {c:g}", fit_linear(train, c)) for c in INVERSE_PENALTIES]
        else:
            candidates.append((f"mlp, width {WIDTH}", fit_mlp(train, dev, seed)))
    if dev.one_sided:
        setting, head = candidates[0]
        return Trained(head, setting, "the dev questions' solutions all have the same outcome")
    setting, head = min(candidates, key=lambda candidate: dev_brier(candidate[1], dev))
    try:
        platt = fit_platt(head.scores(dev.features), dev.outcomes, dev.weights)
    except ValueError as error:
        return Trained(head, setting, str(error))
    return Trained(replace(head, platt=platt), setting, None)


def dev_brier(head: ValueHead, dev: Examples) -> float:
    """Weighted Brier score of the unscaled head."""
    values = head.values(dev.features)
    return float(np.average((values - dev.outcomes) ** 2, weights=dev.weights))


def standardisation(train: Examples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the features, float32 [d]; a constant feature gets 1."""
    features = torch.from_numpy(train.features).double()
    std = features.std(0, unbiased=False)
    return features.mean(0).float(), torch.where(std < LEAST_STD, 1.0, std).float()


def fit_linear(train: Examples, inverse_penalty: float) -> ValueHead:
    """Logistic regression; the bias is not regularised."""
    mean, std = standardisation(train)
    x = (torch.from_numpy(train.features).double() - mean.double()) / std.double()
    y, weights = torch.from_numpy(train.outcomes), torch.from_numpy(train.weights)
    w = torch.zeros(1, x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits((x @ w.T + b)[:, 0], y, weights, reduction="sum")
        loss = inverse_penalty * loss + w.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    tensors = {"mean": mean, "std": std, "w": w.detach().float(), "b": b.detach().float()}
    return ValueHead("linear", tensors)


def fit_mlp(train: Examples, dev: Examples, seed: int) -> ValueHead:
    """Two layers; stops when the dev Brier score has not improved for some epochs, and keeps the best."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = standardisation(train)
    x = (torch.from_numpy(train.features) - mean) / std
    y, weights = torch.from_numpy(train.outcomes).float(), torch.from_numpy(train.weights).float()
    d = x.shape[1]
    layers = {
        "w1": torch.randn(WIDTH, d, generator=generator) / d**0.5,
        "b1": torch.zeros(WIDTH),
        "w2": torch.randn(1, WIDTH, generator=generator) / WIDTH**0.5,
        "b2": torch.zeros(1),
    }
    for tensor in layers.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(layers.values(), lr=LEARNING_RATE, weight_decay=DECAY)
    best, best_brier, stale = None, float("inf"), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the dropout
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
                inner = dropout(silu(x[rows] @ layers["w1"].T + layers["b1"]), DROPOUT, training=True)
                scores = (inner @ layers["w2"].T + layers["b2"])[:, 0]
                total = binary_cross_entropy_with_logits(scores, y[rows], weights[rows], reduction="sum")
                optimizer.zero_grad()
                (total / weights[rows].sum()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            kept = {name: tensor.detach().clone() for name, tensor in layers.items()}
            head = ValueHead("mlp", {"mean": mean, "std": std, **kept})
            brier = dev_brier(head, dev) if len(dev.outcomes) else 0.0
            if brier < best_brier:
                best, best_brier, stale = head, brier, 0
            else:
                stale += 1
            if stale == PATIENCE:
                break
    assert best is not None
    return best
