"""The value functions that this server offers its searches, by the name that a request gives."""

import logging
from collections.abc import Mapping
from pathlib import Path

from decoding_server.config import ServerConfig
from decoding_server.verifier import HttpVerifier
from strategies.errors import ModelLoadError
from strategies.runtime import Runtime
from strategies.scoring.calibration import Calibrated, read_calibration
from strategies.scoring.self_evaluation import SelfEvaluation
from strategies.scoring.value import ValueFunction

log = logging.getLogger(__name__)

Scorers = Mapping[str, ValueFunction]


def load_scorers(runtime: Runtime, config: ServerConfig) -> Scorers:
    """Loads what is configured; slow for a reward model. Raises ModelLoadError."""
    scorers: dict[str, ValueFunction] = {"self-eval": SelfEvaluation()}
    if config.value_head is not None:
        from strategies.scoring.value_head_file import load_head

        head = load_head(
            Path(config.value_head), runtime.info, runtime.tokenizer, allow_mismatch=config.allow_head_mismatch
        )
        scorers["head"] = head
        if not head.automatic:
            log.warning("the value head failed its own test; only requests that name it use it")
    if config.reward_model is not None:
        from models.loading import resolve
        from models.reward_models.load import load_reward_model

        scorers["prm"] = load_reward_model(
            resolve(config.reward_model),
            protocol=config.reward_protocol,
            dtype=config.reward_dtype,
            device=config.device,
        )
    if config.verifier_url is not None:
        scorers["http"] = HttpVerifier(
            config.verifier_url, timeout=config.verifier_timeout, policy=config.verifier_failure
        )
    for path in config.value_calibration:
        kind, model, platt = read_calibration(Path(path))
        if kind not in scorers:
            raise ModelLoadError(f"{path} calibrates {kind!r}, which is not loaded; there are: {', '.join(scorers)}")
        if model != runtime.info.name:
            raise ModelLoadError(f"{path} was fitted with the model {model!r}, served is {runtime.info.name!r}")
        scorers[kind] = Calibrated(scorers[kind], platt)
    return scorers
