"""Where configuration values come from, and the one line that a wrong one gets."""

import os

import pytest

from decoding_server.config import ConfigError, load_config, parse_size
from decoding_server.openmp import configure_openmp
from decoding_server.service import sampling_origin


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "server.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_flag_beats_environment_beats_file_beats_default(config_file):
    path = config_file("port: 1\nhost: file\nseed: 1\nmax-num-seqs: 7\n")
    loaded = load_config(
        {"config": path, "port": "3"}, {"DECODING_SERVER_PORT": "2", "DECODING_SERVER_HOST": "environment"}
    )
    config = loaded.config
    assert (config.port, config.host, config.seed, config.max_num_seqs, config.max_n) == (3, "environment", 1, 7, 128)
    assert loaded.origins["port"] == "flag"
    assert loaded.origins["host"] == "environment"
    assert loaded.origins["seed"] == f"file {path}"
    assert "max_n" not in loaded.origins


def test_the_file_can_come_from_the_environment(config_file):
    assert load_config({}, {"DECODING_SERVER_CONFIG": config_file("seed: 4")}).config.seed == 4


def test_lists_and_sizes(config_file):
    environment = {"DECODING_SERVER_API_KEY": "a, b", "DECODING_SERVER_KV_CACHE_MEMORY": "1.5GiB"}
    config = load_config({"served_model_name": ["x", "y"]}, environment).config
    assert [key.get_secret_value() for key in config.api_key] == ["a", "b"]
    assert (config.served_model_name, config.kv_cache_memory) == (["x", "y"], 3 * 2**29)
    config = load_config({"config": config_file("api_key: [k1, k2]\nserved_model_name: one\n")}, {}).config
    assert (len(config.api_key), config.served_model_name) == (2, ["one"])


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 2**29), ("2GiB", 2**31), ("2g", 2**31), ("1000", 1000), ("1 KB", 1024), (77, 77)]
)
def test_size_forms(text, size):
    assert parse_size(text) == size


def test_printed_with_origins_and_without_secrets():
    flags = {"api_key": ["hunter2"], "port": "9", "verifier_url": "https://me:hunter2@v.test/value"}
    lines = load_config(flags, {}).lines()
    assert "verifier_url: https://***@v.test/value (flag)" in lines
    assert "port: 9 (flag)" in lines
    assert "api_key: 1 set (flag)" in lines
    assert "max_n: 128 (default)" in lines
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(
    ("flags", "environment", "file", "words"),
    [
        ({"port": "x"}, {}, None, "--port: "),
        ({"port": "70000"}, {}, None, "--port: "),
        ({"dtype": "int4"}, {}, None, "--dtype: input should be 'auto', 'float32'"),
        ({"kv_cache_memory": "lots"}, {}, None, "--kv-cache-memory: must be a number of bytes"),
        ({"early_exit_layers": "0"}, {}, None, "--early-exit-layers: input should be greater than or equal to 1"),
        ({"api_key": [""]}, {}, None, "--api-key: must not be empty"),
        ({}, {"DECODING_SERVER_SEED": "-1"}, None, "DECODING_SERVER_SEED: "),
        ({}, {}, "prot: 8000", "unknown key 'prot'"),
        ({}, {}, "port: many", "port: "),
        ({}, {}, "- a\n- b", "must be a mapping"),
        ({}, {}, "a: [", "not valid YAML"),
        ({}, {}, "config: other.yaml", "unknown key 'config'"),
        ({"config": "/no/such/file.yaml"}, {}, None, "config file /no/such/file.yaml: No such file"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(config_file, flags, environment, file, words):
    with pytest.raises(ConfigError) as caught:
        load_config({**flags, **({"config": config_file(file)} if file else {})}, environment)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_variables_of_a_kubernetes_service_are_no_settings():
    environment = {"DECODING_SERVER_PORT": "tcp://10.0.0.1:8000", "DECODING_SERVER_SERVICE_HOST": "10.0.0.1"}
    assert load_config({}, environment).config.port == 8000


def test_openmp_workers_sleep_unless_the_user_chose():
    environment = {}
    assert configure_openmp(environment) == environment == {"OMP_WAIT_POLICY": "passive"}
    chosen = {"GOMP_SPINCOUNT": "1000"}
    assert configure_openmp(chosen) == chosen == {"GOMP_SPINCOUNT": "1000"}
    assert configure_openmp.__defaults__ == (os.environ,)


def test_where_sampling_values_come_from():
    assert "OpenAI" in sampling_origin({})
    assert "temperature 0.6, top_k 20" in sampling_origin({"top_k": 20, "temperature": 0.6})
