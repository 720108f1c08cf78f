"""How many children a node of LiteSearch may have (arXiv 2407.00320; AAAI 2025), in the paper's and the released form.

    progress     p(s)  = min(k / d_hat, 1)
    calibration  v'(s) = (v(s) + v_hat / d) / (1 + 1 / d)                              (eq. 4)
    budget       b(s)  = min(ceil(log(1 - eps) / (d log(1 - v'(s)))), B)               (eq. 3)

k counts the steps of the state, d = k + 1, v_hat is the value of the greedy solution and d_hat its number of steps.
Without 1/d, b is the number of independent tries of chance v' that succeed at least once with probability eps; the
paper also writes epsilon for the value at which the search stops, another number altogether (`theta` here).
"""

import math
from typing import Literal

LiteSearchRule = Literal["paper", "released"]
CLAMP = 1e-6
SLACK = 1e-9


def progress(steps: int, greedy_steps: int) -> float:
    """min(k / d_hat, 1), and 0 for an empty greedy solution (the AAAI form; v1's had no bound)."""
    return min(steps / greedy_steps, 1.0) if greedy_steps > 0 else 0.0


def calibrated(value: float, depth: int, greedy_value: float | None) -> float:
    """v' (eq. 4): drawn towards the greedy solution's value, most of all near the root. None leaves v as it is."""
    return value if greedy_value is None else (value + greedy_value / depth) / (1.0 + 1.0 / depth)


def value_from_raw(raw: float) -> float:
    """The value in 0..1 of a network trained on targets -1 and +1."""
    return min(max((raw + 1.0) / 2.0, 0.0), 1.0)


def child_budget(
    rule: LiteSearchRule,
    value: float,
    depth: int,
    epsilon: float,
    cap: int,
    greedy_value: float | None,
    *,
    depth_penalty: bool = True,
) -> int:
    """The number of children of an open node.

    value: v in 0..1, before calibration. depth: steps of the state plus one. epsilon: expected accuracy, in (0, 1).
    cap: B. greedy_value: v_hat, or None for no calibration. Without `depth_penalty`, an ablation, the 1/d of eq. 3 is
    left out (that of eq. 4 stays). Raises ValueError for a value outside 0..1 (a regression
    head must be clipped), a depth or cap below 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"a value must lie in 0..1, not {value}")
    if depth < 1 or cap < 1 or not 0.0 < epsilon < 1.0:
        raise ValueError("depth and cap are at least 1, epsilon lies in (0, 1)")
    target = calibrated(value, depth, greedy_value)
    divisor = depth if depth_penalty else 1
    if rule == "paper":
        return _paper(target, divisor, epsilon, cap)
    return 0 if value <= 0.0 else _released(target, divisor, epsilon, cap)


def _paper(target: float, divisor: int, epsilon: float, cap: int) -> int:
    """Eq. 3 in 1..B; the slack keeps a quotient that is a whole number but for rounding from being raised by one."""
    target = min(max(target, CLAMP), 1.0 - CLAMP)
    tries = math.log(1.0 - epsilon) / (divisor * math.log(1.0 - target))
    return min(max(math.ceil(tries - SLACK), 1), cap)


def _released(target: float, divisor: int, epsilon: float, cap: int) -> int:
    """The authors' code: the cap before the division, rounding half to even instead of up, and at least 2."""
    tries = next((c for c in range(1, cap + 1) if 1.0 - (1.0 - target) ** c > epsilon), cap)
    return min(max(round(tries / divisor), 2), cap)
