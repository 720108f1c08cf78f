"""Loads a process reward model from a folder in Hugging Face's layout. No code of the checkpoint is run."""

import json
import logging
from typing import Any

import torch

from models.loading import ModelFiles
from models.reward_models.protocols import READERS
from models.reward_models.read_out import read_out
from models.reward_models.reward_model import RewardModel
from models.tokenizer import load_tokenizer
from models.torch_runtime.weights import SafetensorsFolder
from strategies.errors import InvalidRequest, ModelLoadError, RequestFailed

log = logging.getLogger(__name__)

ARCHITECTURES = {
    "Qwen2ForProcessRewardModel": "qwen",
    "Qwen2ForPrmModel": "skywork",
    "Qwen2ForTokenClassification": "token-classification",
    "LlamaForTokenClassification": "token-classification",
}
"""Protocols by the architecture that config.json names. A plain causal model could be anything: its protocol must be
named."""
PROBE = ("What is 2 + 2?", ["2 + 2 = 4.", "The answer is 4."])


def load_reward_model(
    files: ModelFiles, *, protocol: str = "auto", dtype: str = "auto", device: str = "auto"
) -> RewardModel:
    """protocol: a name of `READERS`, or auto. Raises ModelLoadError, also where the tokenizer does not fit the
    protocol."""
    from transformers import AutoModel  # seconds

    config: dict[str, Any] = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    name = detected(config) if protocol == "auto" else protocol
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    precision = ("bfloat16" if where.type == "cuda" else "float32") if dtype == "auto" else dtype
    tokenizer = load_tokenizer(files.folder)
    read = READERS[name](tokenizer)
    scores = read_out(name, SafetensorsFolder(files.folder), tokenizer, where)
    try:
        body = AutoModel.from_pretrained(
            str(files.folder), dtype=getattr(torch, precision), local_files_only=True, trust_remote_code=False
        )
    except Exception as fault:  # whatever the library raises for a checkpoint that it can't read
        reason = " ".join(str(fault).split())[:300]
        raise ModelLoadError(f"the reward model {files.name} can't be loaded: {reason}") from fault
    body = body.to(where).eval()
    model = RewardModel(body, read, scores, max_length=int(body.config.max_position_embeddings))
    try:
        model.forward([read(*PROBE)])
    except (RequestFailed, InvalidRequest) as fault:
        raise ModelLoadError(f"the reward model {files.name} does not fit the protocol {name!r}: {fault}") from fault
    log.info("reward model %s: protocol %s, %s on %s", files.name, name, precision, where)
    return model


def detected(config: dict[str, Any]) -> str:
    """The protocol of a checkpoint. Raises ModelLoadError for an architecture that does not tell."""
    names = [str(name) for name in config.get("architectures") or ()]
    for architecture in names:
        if architecture in ARCHITECTURES:
            return ARCHITECTURES[architecture]
    raise ModelLoadError(
        f"the reward model's architecture ({', '.join(names) or 'none'}) does not tell how it scores; name one of "
        f"{', '.join(READERS)} with --reward-protocol"
    )
