"""The chart, rendered by Helm itself, its objects checked against Kubernetes' schemas and against the server."""

import copy
import re
import shutil
from pathlib import Path

import httpx
import pytest
import yaml
from live_server import live_server

from decoding_server.api_keys import read_key_file
from decoding_server.config import load_config, read_file

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "decoding-server"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
EVERYTHING = {
    "keys": {"list": [{"name": "team-a", "key": "secret", "requests_per_minute": 60, "budget": {"seconds": 60}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "keySecret": {"name": "s", "key": "k"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "image": {"target": "cuda", "pullSecrets": [{"name": "registry"}]},
    "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "serviceAccount": {"annotations": {"a": "b"}},
    "cache": {"storageClass": "fast"},
    "runtimeClassName": "nvidia",
    "sharedMemory": "2Gi",
}
SMALL = {"cache": {"persistent": False}, "podDisruptionBudget": {"enabled": False}, "preStopSeconds": 0}


@pytest.fixture
def render(helm):
    def render_values(values=None, name="demo"):
        with helm.Chart.load(str(CHART)) as chart:
            texts = chart.render(values or {}, name=name, namespace="ns")
        texts = {path: text for path, text in texts.items() if path.endswith(".yaml")}
        return [one for text in texts.values() for one in yaml.safe_load_all(text) if one]

    return render_values


def of(objects, kind):
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def container(objects):
    (one,) = of(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return one


def test_helm_finds_no_fault(helm):
    findings = helm.lint(str(CHART))
    assert findings["errors"] == []
    assert [one["error"] for one in findings["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [{}, EVERYTHING, SMALL, {"replicas": 3}], ids=["default", "all", "small", "three"])
@pytest.mark.parametrize("version", ["1.27", "1.34"])
def test_objects_are_valid(render, values, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make check-deploy")
    objects = render(values)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    for one in objects:
        if not one["apiVersion"].startswith("monitoring.coreos.com"):  # no schemas of other people's types
            kubernetes_validate.validate(copy.deepcopy(one), version, strict=True)


def test_what_all_values_make(render):
    kinds = sorted(one["kind"] for one in render(EVERYTHING))
    assert kinds == sorted(
        [
            *("ConfigMap", "ConfigMap", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"),
            *("PrometheusRule", "Secret", "Service", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet"),
        ]
    )
    assert sorted(one["kind"] for one in render(SMALL)) == [
        *("ConfigMap", "Service", "Service", "ServiceAccount", "StatefulSet")
    ]


def test_arguments_and_configuration_are_the_servers(render, tmp_path):
    objects = render(EVERYTHING)
    config = next(one for one in objects if one["kind"] == "ConfigMap" and "server.yaml" in one["data"])
    (tmp_path / "server.yaml").write_text(config["data"]["server.yaml"])
    assert read_file(str(tmp_path / "server.yaml")) == VALUES["config"]
    (tmp_path / "api-keys.yaml").write_text(of(objects, "Secret")["stringData"]["api-keys.yaml"])
    (key,) = read_key_file(str(tmp_path / "api-keys.yaml"))
    assert (key.name, key.requests_per_minute, key.budget.seconds) == ("team-a", 60, 60)
    first, *flags = container(objects)["args"]
    assert first == "serve"
    pairs = [flag.removeprefix("--").split("=", 1) for flag in flags]
    given = {name.replace("-", "_"): value for name, value in pairs}
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container(objects)["volumeMounts"]}
    assert Path(given["config"]).parent == mounts["config"]
    assert Path(given["api_key_file"]).parent == mounts["keys"]
    given |= {"config": str(tmp_path / "server.yaml"), "api_key_file": str(tmp_path / "api-keys.yaml")}
    loaded = load_config(given, {}).config
    assert loaded.max_waiting == VALUES["config"]["max_waiting"]
    assert loaded.host == "0.0.0.0"


def test_probes_ask_what_exists(render, live_url):
    one = container(render())
    (port,) = one["ports"]
    assert f"--port={port['containerPort']}" in one["args"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = one[name]["httpGet"]
        assert probe["port"] == port["name"]
        assert httpx.get(live_url + probe["path"]).status_code == 200  # without a key, though keys are set
    assert httpx.get(live_url + "/v1/models").status_code == 401


@pytest.fixture(scope="module")
def live_url():
    with live_server({"api_key": ["k"]}) as server:
        yield server.url


def test_a_drain_has_the_time_that_it_may_take(render):
    for values in ({}, {"shutdownTimeoutSeconds": 600, "preStopSeconds": 20}):
        objects = render(values)
        (timeout,) = [flag for flag in container(objects)["args"] if flag.startswith("--shutdown-timeout=")]
        sleep = int(container(objects)["lifecycle"]["preStop"]["exec"]["command"][1])
        grace = of(objects, "StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= sleep + float(timeout.split("=")[1]) + 10


@pytest.mark.parametrize("values", [{}, EVERYTHING, SMALL], ids=["default", "all", "small"])
def test_the_pod_meets_the_restricted_standard(render, values):
    pod = of(render(values), "StatefulSet")["spec"]["template"]["spec"]
    (one,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {volume["name"] for volume in pod["volumes"]} <= {"config", "keys", "cache", "tmp", "shared-memory"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    written = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
    assert written - {"/dev/shm"} == {"/var/cache/decoding-server", "/tmp"}
    assert ("/dev/shm" in written) is ("sharedMemory" in values)


def test_selectors_find_the_pods_and_only_one_service_is_scraped(render):
    objects = render(EVERYTHING)
    labels = of(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    services = [one for one in objects if one["kind"] == "Service"]
    for service in services:
        assert service["spec"]["selector"].items() <= labels.items()
    wanted = of(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert [wanted.items() <= one["metadata"]["labels"].items() for one in services].count(True) == 1
    (endpoint,) = of(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for one in services for port in one["spec"]["ports"]}
    assert (
        of(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of(objects, "StatefulSet")["metadata"]["name"]
    )
    assert of(objects, "StatefulSet")["spec"]["serviceName"] in {one["metadata"]["name"] for one in services}
    assert "replicas" not in of(objects, "StatefulSet")["spec"]  # the autoscaler's business


def test_rules_and_dashboard_come_through_unchanged(render):
    objects = render(EVERYTHING)
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert of(objects, "PrometheusRule")["spec"] == rules
    texts = [one["data"].get("decoding-server.json") for one in objects if one["kind"] == "ConfigMap"]
    assert (CHART / "files" / "dashboard.json").read_text().strip() in [text.strip() for text in texts if text]


def test_the_autoscaler_asks_for_what_the_adapter_makes(render):
    metric = of(render(EVERYTHING), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((CHART.parent / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    query = re.search(r"__name__=~\"([^\"]*)\"", rule["seriesQuery"])[1]
    name = "decoding:num_requests_waiting"
    assert re.search(query, name)
    assert re.sub(rule["name"]["matches"], rule["name"]["as"].replace("${1}", r"\1"), name) == metric


def test_a_gpu_is_asked_for_unless_the_values_do(render):
    def gpus(values):
        return container(render(values))["resources"]["limits"].get("nvidia.com/gpu")

    assert gpus({}) is None
    assert gpus({"image": {"target": "cuda"}}) == gpus({"image": {"target": "vllm"}}) == 1
    assert gpus({"image": {"target": "cuda"}, "resources": {"limits": {"nvidia.com/gpu": 4}}}) == 4


def test_shared_memory_is_as_large_as_asked_for(render):
    def volume(values):
        objects = render(values)
        mounts = {one["mountPath"]: one["name"] for one in container(objects)["volumeMounts"]}
        volumes = {one["name"]: one for one in of(objects, "StatefulSet")["spec"]["template"]["spec"]["volumes"]}
        return volumes[mounts["/dev/shm"]]["emptyDir"] if "/dev/shm" in mounts else None

    assert volume({}) is None
    assert volume({"sharedMemory": "2Gi"}) == {"medium": "Memory", "sizeLimit": "2Gi"}


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"replicas": "two"},
        {"image": {"target": "tpu"}},
        {"config": {"host": "1.2.3.4"}},
        {"config": {"api_key": "x"}},
        {"keys": {"list": [{"name": "a"}]}},
        {"keys": {"list": [{"name": "a", "key": "b", "requests": 5}]}},
        {"service": {"port": 0}},
        {"autoscaling": {"waitingRequests": 0}},
    ],
)
def test_wrong_values_are_refused(helm, values):
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema({})
        with pytest.raises(helm.HelmError):
            chart.validate_schema(chart.merge_values(values))


def test_the_chart_does_not_hold_the_tests_of_its_rules(helm, tmp_path):
    copied = tmp_path / "decoding-server"
    shutil.copytree(CHART, copied)
    with helm.Chart.load(str(copied)) as chart:
        names = [one["name"] for one in chart.files]
    assert "files/alerts.yaml" in names
    assert not [name for name in names if "_test" in name]
