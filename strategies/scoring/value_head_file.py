"""The files of a value head: value_head.safetensors (float32 tensors) and value_head.json (what it belongs to).

A head is good for the model it was trained on: files name the model's and the tokenizer's hashes, and loading compares
them. Only safetensors are read, so a head from elsewhere can run no code.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from strategies.errors import ModelLoadError
from strategies.runtime import ModelInfo
from strategies.scoring.calibration import platt_of
from strategies.scoring.value_head import LAYERS, HeadValue, ValueHead
from strategies.text import Tokenizer

log = logging.getLogger(__name__)

WEIGHTS = "value_head.safetensors"
DESCRIPTION = "value_head.json"
FORMAT = 1
FIXED = {"layer": -1, "norm": "final", "position": "last_token_of_step_with_separator", "separator": "\n"}
"""What this server can compute: any other value of these keys is refused."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a head was trained on, as its file says it."""

    model: Mapping[str, str | None]
    tokenizer_sha256: str
    prompt_template_sha256: str

    @classmethod
    def of(cls, info: ModelInfo, tokenizer: Tokenizer) -> "Origin":
        """The served model's."""
        digest = hashlib.sha256()
        for token in range(tokenizer.vocab_size):
            digest.update(tokenizer.token_bytes(token) + b"\0")
        model = {
            "id": info.name,
            "revision": None,
            "config_sha256": info.config_sha256,
            "weights_index_sha256": info.weights_index_sha256,
            "dtype": info.dtype,
            "quantisation": None,
            "lora": None,
        }
        template = hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()
        return cls(model, digest.hexdigest(), template)

    def as_json(self) -> dict[str, Any]:
        return {
            "model": dict(self.model),
            "tokenizer_sha256": self.tokenizer_sha256,
            "prompt_template_sha256": self.prompt_template_sha256,
        }


def save_head(
    folder: Path,
    head: ValueHead,
    origin: Origin,
    *,
    train: Mapping[str, Any],
    metrics: Mapping[str, Any],
    accepted: bool,
) -> None:
    """Writes both files, the description last: a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in head.tensors.items()}, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "arch": head.arch,
        "activation": "silu" if head.arch == "mlp" else None,
        "hidden_size": head.hidden_size,
        **FIXED,
        **origin.as_json(),
        "platt": {"a": head.platt.a, "b": head.platt.b},
        "train": dict(train),
        "metrics": dict(metrics),
        "accepted": accepted,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_head(folder: Path, info: ModelInfo, tokenizer: Tokenizer, *, allow_mismatch: bool = False) -> HeadValue:
    """A head for the served model. Raises ModelLoadError: for files that are damaged or don't fit one another, another
    hidden size, and, unless `allow_mismatch`, another model, tokenizer or chat template."""
    path = folder / DESCRIPTION
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the value head's {path} can't be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelLoadError(f"{path} is no value head of format {FORMAT}")
    for name, value in FIXED.items():
        if content.get(name) != value:
            raise ModelLoadError(f"{path}: {name} is {content.get(name)!r}; only {value!r} can be served")
    head = ValueHead(_arch(content, path), _tensors(folder, content, path), platt_of(content.get("platt"), path))
    if head.hidden_size != info.hidden_size:
        raise ModelLoadError(
            f"the value head in {folder} is for hidden states of {head.hidden_size}, {info.name} has {info.hidden_size}"
        )
    differences = mismatches(content, Origin.of(info, tokenizer))
    if differences and not allow_mismatch:
        raise ModelLoadError(
            f"the value head in {folder} was not trained on this model ({'; '.join(differences)}); "
            "--allow-head-mismatch serves it nevertheless"
        )
    if differences:
        log.warning("the value head in %s was not trained on this model (%s)", folder, "; ".join(differences))
    dtype = content["model"].get("dtype") if isinstance(content.get("model"), dict) else None
    if dtype != info.dtype:
        log.warning("the value head in %s was trained at %s; the model runs at %s", folder, dtype, info.dtype)
    return HeadValue(head, automatic=content.get("accepted") is True)


def mismatches(content: Mapping[str, Any], origin: Origin) -> list[str]:
    """In words, what of a head's origin is not the served model's. The precision is no mismatch: states differ by
    rounding alone."""
    found = []
    given = content.get("model")
    model: Mapping[str, Any] = given if isinstance(given, dict) else {}
    for name, label in (("config_sha256", "another config.json"), ("weights_index_sha256", "other weights")):
        if model.get(name) != origin.model[name]:
            found.append(f"{label}: {model.get('id')!r}, served is {origin.model['id']!r}")
    if model.get("lora") is not None:
        found.append(f"a LoRA adapter, {model['lora']!r}")
    if content.get("tokenizer_sha256") != origin.tokenizer_sha256:
        found.append("another tokenizer")
    if content.get("prompt_template_sha256") != origin.prompt_template_sha256:
        found.append("another chat template")
    return found


def _arch(content: Mapping[str, Any], path: Path) -> Any:
    arch = content.get("arch")
    if arch not in LAYERS:
        raise ModelLoadError(f"{path}: the architecture is {arch!r}; there are: {', '.join(LAYERS)}")
    activation = content.get("activation")
    if arch == "mlp" and activation != "silu":
        raise ModelLoadError(f"{path}: the activation is {activation!r}; only 'silu' can be served")
    return arch


def _tensors(folder: Path, content: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors, their names, shapes and values checked."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"the value head's {folder / WEIGHTS} can't be read: {error}") from error
    arch, d = content["arch"], content.get("hidden_size")
    names = {"mean", "std", *LAYERS[arch]}
    if set(tensors) != names:
        raise ModelLoadError(f"{folder / WEIGHTS} must hold {', '.join(sorted(names))}; it has {sorted(tensors)}")
    if not isinstance(d, int) or d < 1:
        raise ModelLoadError(f"{path}: hidden_size is {d!r}")
    inner = tensors["w1"].shape[0] if arch == "mlp" and tensors["w1"].dim() == 2 else 0
    expected = {"mean": (d,), "std": (d,), "w": (1, d), "b": (1,), "w1": (inner, d), "b1": (inner,), "w2": (1, inner)}
    expected["b2"] = (1,)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ModelLoadError(f"{folder / WEIGHTS}: {name} has shape {list(tensor.shape)}, not {expected[name]}")
        if tensor.dtype != torch.float32:
            raise ModelLoadError(f"{folder / WEIGHTS}: {name} is {tensor.dtype}, not float32")
        if not tensor.isfinite().all():
            raise ModelLoadError(f"{folder / WEIGHTS}: {name} holds values that are not finite")
    if not (tensors["std"] > 0).all():
        raise ModelLoadError(f"{folder / WEIGHTS}: std must be above 0")
    return tensors
