"""The server's configuration: flag > DECODING_SERVER_* environment > --config YAML file > default.

One table of keys serves all three sources, under the same names.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX = "DECODING_SERVER_"
SIZE_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class ConfigError(Exception):
    """The configuration can't be used. The message is one line that names the key and its source."""


def parse_size(value: Any) -> Any:
    """Bytes as a number, or as text such as 512MiB, 2GiB, 1.5G (units are powers of 1024)."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:ib|b)?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("must be a number of bytes such as 512MiB or 2GiB")
    return int(float(match[1]) * SIZE_UNITS[match[2].lower()])


class ServerConfig(BaseSettings):
    """Every key of the server. Descriptions are the help texts of the flags."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=())

    model: str | None = Field(
        None, description="hub id, local folder or .gguf file; absent: the embedded default model"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 picks a free one")
    api_key: Annotated[list[SecretStr], NoDecode] = Field([], description="key that requests must carry; repeatable")
    api_key_file: str | None = Field(
        None,
        description="file with one key a line, or YAML with names and limits, besides those of --api-key; read again "
        "when it changes",
    )
    cors_origin: Annotated[list[str], NoDecode] = Field(
        [], description="origin whose pages browsers let call the server, or *; repeatable; absent: none"
    )
    metrics: Literal["open", "guarded", "off"] = Field(
        "guarded", description="GET /metrics: open to all, or only with a key where keys are set, or absent"
    )
    playground: bool = Field(True, description="the web page at / that shows how answers are decoded")
    log_requests: bool = Field(True, description="one JSON line in the log for every request")
    log_prompts: bool = Field(False, description="prompts and answers in those lines")
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector that gets traces, over OTLP/HTTP")
    served_model_name: Annotated[list[str], NoDecode] = Field(
        [], description="name clients use for the model; repeatable, the first is used in answers by default"
    )
    runtime: Literal["torch", "vllm"] = Field(
        "torch", description="what runs the model: this project's own engine, or vLLM's (docs/vllm.md)"
    )
    engine_args: Annotated[list[str], NoDecode] = Field(
        [], description="KEY=VALUE for vLLM's engine, with --runtime vllm; repeatable; a mapping in the config file"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="type of the weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="CPU threads of a forward pass")
    max_model_len: Annotated[int, Field(ge=2)] | None = Field(
        None, description="context limit in tokens; absent: the model's"
    )
    max_num_seqs: Annotated[int, Field(ge=1)] = Field(64, description="sequences that run at the same time")
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="new tokens in one forward pass"
    )
    kv_cache_memory: Annotated[int, Field(ge=1)] | None = Field(
        None, description="memory of the KV cache, e.g. 512MiB or 2GiB"
    )
    prefix_cache: bool = Field(True, description="reuse the computation of common prompt beginnings")
    draft_model: Annotated[list[str], NoDecode] = Field(
        [], description="model that drafts for speculation, given as MODEL is; repeatable, the first is the default"
    )
    draft_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="type of the draft models' weights"
    )
    early_exit_layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="lets so many first layers of the model draft for the whole of it"
    )
    value_head: str | None = Field(None, description="folder of a trained value head for searches; see train-value")
    allow_head_mismatch: bool = Field(
        False, description="serve a value head that was trained on another model, tokenizer or chat template"
    )
    reward_model: str | None = Field(None, description="process reward model for searches, given as MODEL is")
    reward_protocol: Literal["auto", "qwen", "math-shepherd", "rlhflow", "skywork", "openr", "token-classification"] = (
        Field("auto", description="what the reward model reads and where its scores stand; auto: by its architecture")
    )
    reward_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="type of the reward model's weights; auto: bfloat16 on a GPU, else float32"
    )
    verifier_url: str | None = Field(
        None, description="address of your own verifier, which values partial answers of searches over HTTP"
    )
    verifier_timeout: Annotated[float, Field(gt=0)] = Field(
        2.0, description="seconds that one call of the verifier may take; a failed call is made once more"
    )
    verifier_failure: Literal["error", "neutral"] = Field(
        "error", description="when the verifier has failed twice: the search fails, or goes on with values of 0.5"
    )
    value_calibration: Annotated[list[str], NoDecode] = Field(
        [], description="file that makes one kind of value a probability (Platt scaling); repeatable"
    )
    sandbox: Literal["auto", "bwrap", "landlock", "off"] = Field(
        "auto",
        description="what confines programs that searches run; auto: bubblewrap, else Landlock; off: none are run",
    )
    allow_unsandboxed_programs: bool = Field(
        False,
        description="run programs that a model wrote with limits only where no sandbox works: they can read and send "
        "all that this server can, so never outside of a disposable container",
    )
    sandbox_test_seconds: Annotated[float, Field(ge=0.05, le=300)] = Field(
        5.0, description="wall seconds that one test of such a program may take; requests may ask for less"
    )
    sandbox_memory: Annotated[int, Field(ge=96 << 20, le=1 << 36)] = Field(
        512 << 20, description="memory of such a program, e.g. 512MiB; requests may ask for less"
    )
    program_prompts: str | None = Field(
        None, description="TOML file with other words for what searches for programs ask the model"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="makes requests without a seed repeatable, in the order in which they arrive"
    )
    chat_template: str | None = Field(None, description="jinja file, or template text, instead of the model's own")
    generation_config: Literal["auto", "none"] = Field(
        "auto", description="auto: default sampling values come from the model's generation_config; none: OpenAI's"
    )
    trust_request_chat_template: bool = Field(
        False,
        description="let requests bring a chat template of their own: a program, in a sandbox that does not limit its "
        "time or memory, so for trusted clients only",
    )
    tool_call_parser: Literal["auto", "none", "hermes", "llama3", "mistral", "mistral-v11"] = Field(
        "auto", description="format in which the model writes tool calls; auto: what its chat template shows"
    )
    decoding: str | None = Field(None, description="decoding of requests that ask for none: a preset or a strategy")
    presets: dict[str, Any] = Field(
        default_factory=dict, description="named values of `decoding` (in the config file, or JSON text)"
    )
    strict: bool = Field(False, description="refuse unknown request fields instead of warning about them")
    max_waiting: Annotated[int, Field(ge=1)] = Field(
        1024, description="sequences that may wait; beyond it requests get 429"
    )
    max_n: Annotated[int, Field(ge=1)] = Field(128, description="largest n and best_of of a request")
    max_prompts: Annotated[int, Field(ge=1)] = Field(1024, description="most prompts of a request")
    max_logprobs: Annotated[int, Field(ge=0)] = Field(20, description="most alternatives per token in logprobs")
    max_stop: Annotated[int, Field(ge=0)] = Field(16, description="most stop strings of a request")
    max_body: Annotated[int, Field(ge=1)] = Field(8 * 2**20, description="largest request body, e.g. 8MiB")
    response_store_size: Annotated[int, Field(ge=0)] = Field(
        1024, description="responses of /v1/responses kept in memory to be read and continued; 0: none"
    )
    response_store_memory: Annotated[int, Field(ge=1)] = Field(
        64 * 2**20, description="memory of those responses, e.g. 64MiB; the least recently used ones go first"
    )
    sse_keep_alive: Annotated[float, Field(ge=0)] = Field(
        15.0, description="seconds of silence after which a stream gets a comment line; 0 switches that off"
    )
    shutdown_timeout: Annotated[float, Field(ge=0)] = Field(
        30.0, description="seconds that running requests may take to finish after SIGTERM"
    )
    exit_when_dead: bool = Field(
        False, description="end the process with exit code 70 when the engine has died, for whoever starts it again"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe messages shown")
    log_format: Literal["text", "json"] = Field(
        "text", description="of lines that are not about a request (those are JSON always)"
    )
    config: str | None = Field(None, description="YAML file with these keys (dashes or underscores)")

    @field_validator("kv_cache_memory", "max_body", "response_store_memory", "sandbox_memory", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return parse_size(value)

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from decoding_server.tracing import check_endpoint

        return check_endpoint(value)

    @field_validator("verifier_url")
    @classmethod
    def _verifier(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must be an http:// or https:// address")
        return value

    @field_validator("engine_args", mode="before")
    @classmethod
    def _engine_args(cls, value: Any) -> Any:
        """A mapping (also as JSON text, the form for the environment), or KEY=VALUE texts; values are YAML."""
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else [value]
        return [f"{key}={json.dumps(item)}" for key, item in value.items()] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _runtime_has_it(self) -> "ServerConfig":
        """What the other runtime alone has is refused, not ignored."""
        missing = ("draft_model", "early_exit_layers") if self.runtime == "vllm" else ("engine_args",)
        for name in missing:
            if getattr(self, name) not in (None, []):
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} needs --runtime {'torch' if self.runtime == 'vllm' else 'vllm'}")
        return self

    @field_validator("presets", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("api_key", "served_model_name", "cors_origin", "draft_model", "value_calibration", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """One value, or several: a list, or text with commas (the form for the environment)."""
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _keys_are_not_empty(cls, value: list[SecretStr]) -> list[SecretStr]:
        if not all(key.get_secret_value() for key in value):
            raise ValueError("must not be empty")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_config` passes: it reads environment and file itself, to know where a value is from."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and, for every key that is not at its default, where its value came from."""

    config: ServerConfig
    origins: Mapping[str, str]

    def lines(self) -> list[str]:
        """`key: value (origin)` for every key; secrets masked."""
        lines = []
        for key in ServerConfig.model_fields:
            value = getattr(self.config, key)
            if key == "api_key":
                value = f"{len(value)} set" if value else []
            shown = ", ".join(value) if isinstance(value, list) else value
            if isinstance(shown, str):  # an address may hold a password
                shown = re.sub(r"(?<=://)[^/@\s]+(?=@)", "***", shown)
            lines.append(f"{key}: {'-' if shown in (None, '') else shown} ({self.origins.get(key, 'default')})")
        return lines


def load_config(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> LoadedConfig:
    """Merges the sources. Raises ConfigError for an unknown key or an unusable value."""
    from_environment = _environment_values(environment)
    path = flags.get("config", from_environment.get("config"))
    from_file = {} if path is None else read_file(str(path))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, settings in ((f"file {path}", from_file), ("environment", from_environment), ("flag", flags)):
        for key, value in settings.items():
            values[key], origins[key] = value, source
    try:
        return LoadedConfig(ServerConfig(**values), origins)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # of several keys, which the message names
            raise ConfigError(message) from error
        key = str(fault["loc"][0])
        raise ConfigError(f"{_spelling(key, origins[key])}: {message[:1].lower()}{message[1:]}") from error


def read_file(path: str) -> dict[str, Any]:
    """The keys of a YAML file, with underscores. Raises ConfigError."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"config file {path}: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path}: must be a mapping of keys to values")
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in settings:
        if key not in ServerConfig.model_fields or key == "config":
            raise ConfigError(f"config file {path}: unknown key '{key}'")
    return {key: value for key, value in settings.items() if value is not None}


def _environment_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are not a key are left alone: Kubernetes gives every container of a cluster with a service called
    `decoding-server` variables such as DECODING_SERVER_SERVICE_HOST, and even DECODING_SERVER_PORT=tcp://..."""
    values = {}
    for key in ServerConfig.model_fields:
        value = environment.get(ENV_PREFIX + key.upper(), "")
        if value and not (key == "port" and value.startswith("tcp://")):
            values[key] = value
    return values


def _spelling(key: str, origin: str) -> str:
    """The key as its source spells it."""
    if origin == "flag":
        return "MODEL" if key == "model" else "--" + key.replace("_", "-")
    return ENV_PREFIX + key.upper() if origin == "environment" else f"config {origin}: {key}"
