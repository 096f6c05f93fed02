"""The container and the Kubernetes manifest: every option exists, and both agree."""

from __future__ import annotations

import ast
import compileall
import json
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import pytest

from echo7.settings import Settings
from tests.echo7.deploy.units import DEPLOY
from tests.support.basics import PROJECT
from tests.support.clients import echo_and_close
from tests.support.daemon import EchoProcess, Installation, serve_config

CONTAINERFILE = DEPLOY / "Containerfile"
INSTRUCTIONS = "ARG CMD COPY ENTRYPOINT EXPOSE FROM RUN STOPSIGNAL USER WORKDIR".split()


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found = [line.partition(" ") for line in text.splitlines() if line]
    return [(name, value) for name, _, value in found]


def said(name: str) -> str:
    """Return the last use of an instruction, which is the valid one."""
    return [value for each, value in instructions() if each == name][-1]


def config_of(arguments: list[str]) -> Settings:
    assert arguments[0] == "serve"
    return serve_config(*arguments[1:])


def manifest() -> dict[str, Any]:
    """Return the objects by kind."""
    yaml = pytest.importorskip("yaml", reason="PyYAML isn't installed: pip install -e '.[dev]'")
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert len(found) == 2
    return {each["kind"]: each for each in found}


# ---------------------------------------------------------------- the container


def test_image_runs_unprivileged_with_options_that_exist() -> None:
    assert {name for name, _ in instructions()} <= set(INSTRUCTIONS)
    assert said("USER") == "65532:65532"
    assert json.loads(said("ENTRYPOINT"))[1:] == ["-m", "echo7"]
    config = config_of(json.loads(said("CMD")))
    assert config.hosts == ("*",), "a container's loopback is its own"
    assert said("EXPOSE").split() == [f"{config.port}/tcp", f"{config.port}/udp"]
    assert config.port >= 1024, "no capability"


def test_copied_files_are_enough_to_serve(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the first stage by hand, and start the service from it."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)  # coverage must not count the copy
    first = instructions()[: [name for name, _ in instructions()].index("FROM", 1)]
    for source, target in [value.split() for name, value in first if name == "COPY"]:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / source, tmp_path / target.removeprefix("/app/"), ignore=unwanted)
    [run] = [value for name, value in first if name == "RUN"]
    removed = re.findall(r"/app/(\S+)", run.partition("&&")[0])
    assert removed
    for folder in removed:
        shutil.rmtree(tmp_path / folder)
    assert compileall.compile_dir(tmp_path, quiet=1)
    with EchoProcess("--host", "127.0.0.1", installation=Installation(sys.executable, tmp_path)) as echo:
        assert echo_and_close(echo.connect(), b"contained") == b"contained"
        assert echo.finish() == 0


def test_both_stages_have_the_same_python() -> None:
    """The second stage runs what the first has compiled: Debian 12 has Python 3.11."""
    build, final = [value for name, value in instructions() if name == "FROM"]
    assert "python:3.11-slim-bookworm" in build
    assert "python3-debian12:nonroot" in final


# ---------------------------------------------------------------- Kubernetes


def test_deployment_starts_with_options_that_exist() -> None:
    [container] = manifest()["Deployment"]["spec"]["template"]["spec"]["containers"]
    config = config_of(container["args"])
    assert config.hosts == ("*",)
    assert [port["containerPort"] for port in container["ports"]] == [config.port] * 2
    assert [port["protocol"] for port in container["ports"]] == ["TCP", "UDP"]


def test_kubernetes_service_has_port_7_over_both_and_keeps_client_addresses() -> None:
    found = manifest()
    service, pod = found["Service"]["spec"], found["Deployment"]["spec"]["template"]
    assert service["externalTrafficPolicy"] == "Local"
    assert [(port["port"], port["protocol"]) for port in service["ports"]] == [(7, "TCP"), (7, "UDP")]
    names = {port["name"]: port["protocol"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"]: port["protocol"] for port in service["ports"]} == names
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]


def test_pod_has_no_privileges() -> None:
    pod = manifest()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    ids = pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]
    assert said("USER") == "{}:{}".format(*ids)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_memory_limit_holds_with_every_client_stuck() -> None:
    """What each costs is in guard.md: `python3 -m benchmarks.stuck`, for just this --socket-buffer."""
    [container] = manifest()["Deployment"]["spec"]["template"]["spec"]["containers"]
    config = config_of(container["args"])
    [row] = re.findall(r"^\| 65536 \|(.*)\|$", (PROJECT / "echo7/docs/explanation/guard.md").read_text(), re.MULTILINE)
    ours, _, kernels = (int(figure.replace(",", "")) for figure in row.split("|"))
    limit = container["resources"]["limits"]["memory"]
    assert config.socket_buffer_bytes == 65_536
    assert config.max_connections is not None
    assert limit.endswith("Mi")
    assert config.max_connections * (ours + kernels) < 0.9 * int(limit[:-2]) * 2**20


def test_probes_use_a_port_that_is_served() -> None:
    [container] = manifest()["Deployment"]["spec"]["template"]["spec"]["containers"]
    tcp = {port["name"] for port in container["ports"] if port["protocol"] == "TCP"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"]["port"] in tcp


def test_ending_pod_first_waits_and_then_drains() -> None:
    pod = manifest()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    python, flag, code = container["lifecycle"]["preStop"]["exec"]["command"]
    assert [python, flag] == [json.loads(said("ENTRYPOINT"))[0], "-c"]
    ast.parse(code)
    [pause_s] = re.findall(r"time\.sleep\((\d+)\)", code)
    assert pod["terminationGracePeriodSeconds"] > int(pause_s) + config_of(container["args"]).drain_timeout_s
