"""Which rows belong together: the settings that a row's key stands for, and the runs that measured a set of rows."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoding_server.bench.endpoint import Unusable
from decoding_server.bench.rows import Row
from decoding_server.config import ServerConfig

Engine = dict[str, Any]
"""Settings of `serve` that are not at their defaults, by their names; as JSON has them."""

WITHOUT_EFFECT = frozenset(
    {
        *("model", "config", "host", "port", "api_key", "api_key_file", "cors_origin", "metrics", "playground"),
        *("log_requests", "log_prompts", "log_level", "log_format", "otlp_endpoint", "max_waiting", "max_prompts"),
        *("max_logprobs", "max_body", "response_store_size", "response_store_memory", "sse_keep_alive"),
        *("shutdown_timeout", "exit_when_dead", "trust_request_chat_template"),
    }
)
"""On a row of a benchmark. Any other setting counts, so that a new one can't be forgotten here. The model is named
beside them."""
JUDGING = frozenset({"sandbox", "allow_unsandboxed_programs", "sandbox_test_seconds", "sandbox_memory"})
"""What judges programs is in this process, whoever runs the model."""
BY_CONTENT = ("chat_template", "program_prompts", "value_calibration", "value_head")
"""Files and a folder that people write anew under the same name. Weights are too large to read for this."""


def model_of(config: ServerConfig, base_url: str | None, served_model: str | None) -> str:
    """What is measured, as far as it is known before anything is loaded or asked."""
    if base_url is not None:
        return f"{base_url.rstrip('/').removesuffix('/v1')} {served_model or ''}"
    return config.model or "embedded"


def engine_of(config: ServerConfig, *, remote: bool) -> Engine:
    """The settings that rows depend on, wherever they were set. remote: the model runs behind an address."""
    if remote:
        return config.model_dump(mode="json", exclude_defaults=True, include=set(JUDGING))
    found = config.model_dump(mode="json", exclude_defaults=True, exclude=set(WITHOUT_EFFECT))
    for name in BY_CONTENT:
        if name in found:
            value = found[name]
            found[name] = [content(one) for one in value] if isinstance(value, list) else content(value)
    return found


def content(text: str) -> str:
    """A hash of a file, of the value head in a folder, or of the text itself where there is neither."""
    path = Path(text).expanduser()
    try:
        files = sorted(path.glob("value_head.*")) if path.is_dir() else [path]
        data = b"".join(file.read_bytes() for file in files)
    except (OSError, ValueError):  # ValueError: no name of a file at all
        data = text.encode()
    return f"SHA-256 {hashlib.sha256(data).hexdigest()[:12]}"


def shown(engine: Mapping[str, Any]) -> Engine:
    """For facts that may be published: names without folders, no addresses."""
    return {key: "given" if key == "verifier_url" else without_folder(value) for key, value in engine.items()}


def without_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [without_folder(one) for one in value]
    return Path(value).name if isinstance(value, str) else value


def digest(facts: Sequence[Any]) -> str:
    """The last part of a row's key: of everything that a strategy's rows depend on, so that one folder can hold several
    runs. facts: as JSON has them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def check_model(model: str, digests: Iterable[str], rows: Iterable[Row], runs: Iterable[Row], output: Path) -> None:
    """model: whose answers would be added. Raises Unusable where rows with one of the digests are of another: behind an
    address there may be one model today and another tomorrow."""
    models = {run["key"]: str(run["model"]) for run in runs}
    wanted = set(digests)
    used = {row.get("run") for row in rows if row["key"].rpartition("|")[2] in wanted}
    others = sorted({models[run] for run in used if run in models} - {model})
    if others:
        raise Unusable(
            f"--output {output}: its rows with these settings are answers of {', '.join(others)}, not of {model}; "
            "another folder keeps them apart"
        )


def made_by(rows: Iterable[Row], runs: Sequence[Row]) -> Mapping[str, Any] | None:
    """The last run that measured some of the rows, with the `commits` of all that did; None where no run is known. For
    rows that do not name theirs, as `bench code` once wrote them, the last run stands."""
    used = {row.get("run") for row in rows}
    known = [run for run in runs if run["key"] in used]
    if runs and (None in used or not known) and runs[-1] not in known:
        known.append(runs[-1])
    return {**known[-1], "commits": sorted({run["commit"] for run in known})} if known else None
