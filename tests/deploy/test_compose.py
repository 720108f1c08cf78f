"""The compose files: what they set must exist, and the containers get the least that they need."""

import re
import stat
from pathlib import Path

import pytest
import yaml

from decoding_server import __version__
from decoding_server.api_keys import read_key_file
from decoding_server.config import ENV_PREFIX, ServerConfig, load_config
from models.vllm_runtime.version import SUPPORTED, require

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OTHER_VARIABLES = {"DECODING_SERVER_CACHE", "DECODING_SERVER_NATIVE"}
"""Read by the code itself, no keys of the configuration."""


class Loader(yaml.SafeLoader):
    """Knows compose's own tags, which replace instead of merging."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(name):
    return yaml.load((DEPLOY / name).read_text(), Loader)


COMPOSE = read("compose.yaml")
SERVER = COMPOSE["services"]["server"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def image_environment():
    joined = DOCKERFILE.replace("\\\n", " ")
    return dict(re.findall(r"\b(DECODING_SERVER_\w+)=(\S+)", joined))


@pytest.mark.parametrize("environment", [image_environment(), SERVER["environment"]], ids=["image", "compose"])
def test_variables_are_settings(environment):
    assert environment
    for name in environment:
        assert name in OTHER_VARIABLES or name.removeprefix(ENV_PREFIX).lower() in ServerConfig.model_fields, name
    load_config({}, {name: str(value) for name, value in environment.items()})


def test_other_variables_are_read():
    for name in OTHER_VARIABLES:
        assert f'"{name}"' in (ROOT / "strategies" / "native.py").read_text()


def test_the_service_of_the_server():
    assert SERVER["command"] == ["serve"]
    assert SERVER["read_only"] is True
    assert SERVER["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVER["security_opt"]
    assert "privileged" not in SERVER
    assert "cap_add" not in SERVER
    assert f"USER {SERVER['user']}\n" in DOCKERFILE
    timeout = float(SERVER["environment"]["DECODING_SERVER_SHUTDOWN_TIMEOUT"])
    assert int(SERVER["stop_grace_period"].removesuffix("s")) > timeout + 5  # or docker kills a drain
    assert SERVER["build"]["target"].endswith("cpu}")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.replicas.yaml", "compose.cuda.yaml"])
def test_everything_that_is_mentioned_is_there(name):
    content = read(name)
    services = content["services"] | COMPOSE["services"]
    volumes = {*content.get("volumes", {}), *COMPOSE["volumes"]}
    for service, options in content["services"].items():
        for volume in options.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes, volume
        for port in options.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{service} is published beyond this machine"
        for secret in options.get("secrets", []):
            assert secret["source"] in COMPOSE["secrets"]
        build = options.get("build")
        if build and "target" not in build:
            assert (DEPLOY / build["context"] / "Dockerfile").exists()
        for word in map(str, options.get("command", [])):
            if host := re.match(r"http://([\w-]+):8000$", word):
                assert host[1] in services
    assert all(":" in (image := options.get("image", "x:")) or "build" in options for options in services.values()), (
        image
    )


def test_prometheus_and_grafana_find_each_other_and_the_server():
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    assert "decoding-server" in job["job_name"]  # the alerts look for it
    mounted = [volume.split(":") for volume in COMPOSE["services"]["prometheus"]["volumes"] if volume.startswith(".")]
    assert {Path(target).parent for _, target, _ in mounted} == {Path("/etc/prometheus")}
    assert prometheus["rule_files"][0] in {Path(target).name for _, target, _ in mounted}
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/decoding-server.yaml").read_text())[
        "providers"
    ]
    folders = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert any(folder.startswith(provider["options"]["path"] + "/") for folder in folders)
    assert SERVER["environment"]["DECODING_SERVER_METRICS"] == "open"  # Prometheus sends no key


def test_the_example_of_keys_is_valid_and_the_real_file_is_not_committed():
    keys = read_key_file(str(DEPLOY / "api-keys.example.yaml"))
    assert len(keys) == 2
    assert all("replace-this" in key.key.get_secret_value() for key in keys)
    assert "deploy/api-keys.yaml" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_router_gets_flags_that_it_has(tool):
    known = tool("vllm-router", "--help")
    words = read("compose.replicas.yaml")["services"]["router"]["command"]
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known
    assert "cache_aware" in known


def test_dockerfiles_pass_the_linter(tool):
    tool("hadolint", ROOT / "Dockerfile", DEPLOY / "router" / "Dockerfile", DEPLOY / "vllm" / "Dockerfile")


def test_the_image_with_vllm_has_a_release_that_the_runtime_supports_on_the_same_base():
    text = (DEPLOY / "vllm" / "Dockerfile").read_text()
    found = re.search(r'^ARG VLLM="vllm==(.*)"$', text, re.MULTILINE)
    assert found
    assert require(found[1]).startswith(SUPPORTED[-1])
    assert re.search(rf"^ARG BASE=decoding-server:{re.escape(__version__)}-cuda$", text, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"
    assert load_config({}, dict(re.findall(r"^ENV (\S+)=(\S+)$", text, re.MULTILINE))).config.runtime == "vllm"


def test_the_image_runs_without_privileges_and_builds_from_what_is_sent():
    assert re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE) == ["build", "runtime", "cuda", "cpu"]
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    assert re.search(r'^ENTRYPOINT \["/opt/decoding-server/bin/decoding-server"\]$', DOCKERFILE, re.MULTILINE)
    assert re.search(r'^    CMD \["/opt/[^"]*", "-I", "[^"]*healthcheck.py"\]$', DOCKERFILE, re.MULTILINE)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    for source in (word.rstrip("/") for line in copied for word in line.split()):
        assert (ROOT / source).exists(), source
        assert source in sent or any(source.startswith(folder + "/") for folder in sent), source
    assert (ROOT / "deploy" / "image" / "install.sh").stat().st_mode & stat.S_IXUSR
