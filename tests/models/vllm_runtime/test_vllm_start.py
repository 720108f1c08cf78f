"""What the operator can ask of vLLM, and what is refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from decoding_server.config import ConfigError, load_config
from models.vllm_runtime.engine_arguments import FIXED, TAKEN, check, parse
from models.vllm_runtime.version import SUPPORTED, require
from strategies.errors import ModelLoadError

ROOT = Path(__file__).parents[3]
KNOWN = ("block_size", "enforce_eager", "model", "tensor_parallel_size", "_api_process_count", *TAKEN, *FIXED)


def test_values_are_yaml() -> None:
    given = ["block_size=32", "--enforce-eager=true", "hf_overrides={a: 1}", "load_format=auto", "x=", "seed=a=b"]
    assert parse(given) == {
        "block_size": 32,
        "enforce_eager": True,
        "hf_overrides": {"a": 1},
        "load_format": "auto",
        "x": None,
        "seed": "a=b",
    }


@pytest.mark.parametrize(("text", "words"), [("block_size", "KEY=VALUE"), ("=3", "KEY=VALUE"), ("a={", "YAML")])
def test_what_can_not_be_read(text: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        parse([text])


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model", "use MODEL"),
        ("max_model_len", "use --max-model-len"),
        ("logits_processors", "the sampling pipeline"),
        ("spec_method", "use speculative_config"),
        ("no_such_thing", "no such argument"),
        ("_api_process_count", "no such argument"),
    ],
)
def test_what_is_refused(key: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words) as refused:
        check({"block_size": 32, key: 1}, KNOWN)
    assert key in str(refused.value)
    check({"block_size": 32, "tensor_parallel_size": 2}, KNOWN)


@pytest.mark.parametrize("minor", SUPPORTED)
def test_supported_versions(minor: str) -> None:
    assert require(f"{minor}.7") == f"{minor}.7"


@pytest.mark.parametrize("found", ["0.33.0", "0.3.2", "0.320.0", "1.32.0"])
def test_other_versions_are_refused_by_name(found: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"vLLM {found} is installed") as refused:
        require(found)
    assert SUPPORTED[-1] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("found", ["0.30.2", "0.33.0"])
def test_a_server_with_another_version_says_so_in_one_line(tmp_path: Path, found: str) -> None:
    """As installed packages tell their version; nothing of vLLM is imported before."""
    about = tmp_path / f"vllm-{found}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "decoding_server", "serve", "--runtime", "vllm", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"error: vLLM {found} is installed, --runtime vllm needs 0.31.x or 0.32.x; install one of these, "
        "or use --runtime torch"
    )


def test_without_vllm() -> None:
    with pytest.raises(ModelLoadError, match="not installed"):
        require(None)


# The server's configuration


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({"engine_args": ["a=1", "b=x,y"]}, {}, ["a=1", "b=x,y"]),
        ({}, {"DECODING_SERVER_ENGINE_ARGS": "a=1"}, ["a=1"]),
        ({}, {"DECODING_SERVER_ENGINE_ARGS": '{"a": {"b": 2}, "c": true}'}, ['a={"b": 2}', "c=true"]),
    ],
)
def test_engine_arguments_from_each_source(
    flags: dict[str, object], environment: dict[str, str], expected: list[str]
) -> None:
    config = load_config(flags | {"runtime": "vllm"}, environment).config
    assert config.engine_args == expected
    parse(config.engine_args)


def test_engine_arguments_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "config.yaml"
    path.write_text("runtime: vllm\nengine-args:\n  block_size: 16\n  hf_overrides: {rope_theta: 1000000.0}\n")
    config = load_config({"config": str(path)}, {}).config
    assert parse(config.engine_args) == {"block_size": 16, "hf_overrides": {"rope_theta": 1e6}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"runtime": "vllm", "draft_model": ["x"]}, "--draft-model needs --runtime torch"),
        ({"runtime": "vllm", "early_exit_layers": 3}, "--early-exit-layers needs --runtime torch"),
        ({"engine_args": ["a=1"]}, "--engine-args needs --runtime vllm"),
        ({"runtime": "tensorrt"}, "--runtime"),
    ],
)
def test_settings_of_the_other_runtime_are_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(flags, {})
