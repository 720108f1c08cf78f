"""What a model folder says of itself: its JSON files, default sampling values, weights."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from strategies.errors import ModelLoadError

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelLoadError."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return value


def sampling_defaults(folder: Path) -> dict[str, float]:
    """The sampling values of generation_config.json."""
    path = folder / "generation_config.json"
    values = read_json(path) if path.exists() else {}
    return {name: values[name] for name in SAMPLING_FIELDS if isinstance(values.get(name), (int, float))}


def weights_hash(folder: Path) -> str:
    """Identifies weights by their files' names, sizes, headers and first values."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def matmul_parameters(folder: Path) -> int:
    """Weights that multiply each token, from the headers of the safetensors: all matrices, of an embedding and an
    output head the one. Of a mixture of experts it counts all experts."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and len(entry["shape"]) > 1:
                sizes[name] = math.prod(entry["shape"])
    head = any(name.endswith("lm_head.weight") for name in sizes)
    return sum(size for name, size in sizes.items() if not (head and name.endswith("embed_tokens.weight")))
