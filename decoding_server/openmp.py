"""OpenMP's wait policy, which must be in the environment before torch is imported.

A spinning barrier costs whole scheduler quanta as soon as anything else needs a core, so workers sleep by default; on
a machine with cores to spare, OMP_WAIT_POLICY=active is faster.
"""

import os
from collections.abc import MutableMapping

DEFAULTS: dict[str, str] = {"OMP_WAIT_POLICY": "passive"}
"""Variables set when the user has set none of `CHOICES`."""

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user chooses how long an idle OpenMP worker spins."""


def configure_openmp(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Sets `DEFAULTS` unless the user has chosen; returns what is in effect. Call it before torch is imported."""
    if not any(name in environment for name in CHOICES):
        environment.update(DEFAULTS)
    return {name: environment[name] for name in CHOICES if name in environment}
