"""The embedded model behind a socket, which drafts for itself with its own first layers."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime_server import RuntimeServer, serve_runtime

from models.loading import resolve
from models.torch_runtime.load import EngineOptions, load_runtime

LAYERS = 26
"""Of 30: the model was not trained for early exit, with fewer nearly nothing is accepted."""


@contextmanager
def embedded_server() -> Iterator[RuntimeServer]:
    options = EngineOptions(max_num_seqs=16, max_model_len=1024, early_exit_layers=LAYERS, kv_cache_memory=96 << 20)
    with serve_runtime(load_runtime(resolve(None), options)) as server:
        yield server
