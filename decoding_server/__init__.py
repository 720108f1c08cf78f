"""The HTTP server and command line. Knows OpenAI's wire format and the configuration; no tensors."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("decoding-server")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.1.0"
