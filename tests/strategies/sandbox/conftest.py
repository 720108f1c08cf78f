"""A sandbox of each backend that this machine can use; one that it can't is skipped with the reason."""

from collections.abc import AsyncIterator

import pytest
from attacking import CONFINING, opened, unusable

from strategies.sandbox.backends import BACKENDS
from strategies.sandbox.sandbox import Sandbox


@pytest.fixture(scope="session")
def reasons() -> dict[str, str | None]:
    """Why each backend can't be used here, None for those that can."""
    return {name: unusable(name) for name in BACKENDS}


def usable(name: str) -> str:
    if (reason := unusable(name)) is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(params=CONFINING)
def confining(request: pytest.FixtureRequest) -> str:
    """The name of a backend that confines."""
    return usable(request.param)


@pytest.fixture(params=list(BACKENDS))
def any_backend(request: pytest.FixtureRequest) -> str:
    return usable(request.param)


@pytest.fixture
async def sandbox(confining: str) -> AsyncIterator[Sandbox]:
    """Checks afterwards that no process, folder or descriptor is left."""
    async with opened(confining) as made:
        yield made


@pytest.fixture
async def any_sandbox(any_backend: str) -> AsyncIterator[Sandbox]:
    """The same, of the backend without confinement too: for what it must still classify."""
    async with opened(any_backend) as made:
        yield made
