"""docker-compose.yml brought up on a real Docker engine: NOT YET RUN, and therefore in no target that CI runs.

The engine is Debian's, inside the running cluster's machine, with its containerd. Grafana is left out: its image
cannot be had here. The other foreign images are stand-ins: the same programs, with the folders of the originals.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster import images, machine, programs
from local import compose, packages
from local.debian import base_image
from local.engine import Engine, buildah
from local.image import find_base, pip_secrets
from tests.running import ROOT, SETOSA, wait_until

pytestmark = pytest.mark.stack

MINUTES = 60.0
CGROUP = "iris-compose"
MONITOR = """\
FROM {base}
COPY --chmod=0755 {programs} /usr/local/bin/
RUN install --directory --owner=65534 --group=65534 {folder}
USER 65534:65534
ENTRYPOINT ["{first}"]
"""
DATABASE = """\
USER 0:0
RUN install --directory --owner=999 --group=999 /var/lib/postgresql/data
USER 999:999
"""


class Stack(NamedTuple):
    """A project of Docker Compose on that engine."""

    host: str
    env_file: Path

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine."""
        return self._run("docker", *arguments)

    def compose(self, *arguments: str) -> str:
        """Run a command of Docker Compose; return what it prints."""
        program = programs.folder("compose", print) / "docker-compose"
        options = (f"--file={ROOT / 'docker-compose.yml'}", f"--env-file={self.env_file}")
        done = self._run(str(program), *options, *arguments)
        assert done.returncode == 0, f"{done.stderr}\n{self._run(str(program), *options, 'logs').stdout[-5000:]}"
        return done.stdout

    def containers(self) -> dict[str, Any]:
        """Return what the engine says of each container, by service."""
        lines = self.compose("ps", "--all", "--format=json").splitlines()
        return {container["Service"]: container for container in map(json.loads, lines)}

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.env_file.parent), "DOCKER_HOST": self.host}
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=15 * MINUTES, check=False
        )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Docker engine in the machine of the running cluster; yields its address."""
    machine.inside([])  # or an error that says how to get one
    packages.need("dockerd", "docker.io")
    folder = tmp_path_factory.mktemp("docker")
    options = [f"--host=unix://{folder}/socket", f"--data-root={folder}/data", f"--pidfile={folder}/pid"]
    options += [f"--containerd={machine.state()}/containerd.sock", "--exec-root=/run/docker", "--bip=10.30.0.1/16"]
    options += ["--oom-score-adjust=0", f"--cgroup-parent=/{CGROUP}"]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            machine.inside(["dockerd", *options]), env=machine.environment(), stdout=log, stderr=log
        )
    stack = Stack(f"unix://{folder}/socket", folder / "none")
    try:
        wait_until(
            lambda: daemon.poll() is not None or stack.docker("version").returncode == 0, "the engine to answer"
        )
        assert daemon.poll() is None, (folder / "log").read_text()[-3000:]
        yield stack.host
    finally:
        if daemon.poll() is None:
            machine.run("kill", (folder / "pid").read_text())  # the number that it has inside
            daemon.wait(MINUTES)
        shutil.rmtree(folder / "data", ignore_errors=True)
        for tree in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"):
            tree.rmdir()


@pytest.fixture(scope="module")
def stack(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All but Grafana, brought up by one command from nothing, and taken down with its volumes."""
    stack = Stack(engine, compose.write(tmp_path_factory.mktemp("desk"), os.environ))
    services = json.loads(stack.compose("config", "--format=json"))["services"]
    with tempfile.TemporaryDirectory(prefix="iris-stack-") as folder:
        builder = buildah()
        base = find_base(builder)
        for name, image in _built_here(builder, base, Path(folder)):
            _load(stack, builder, image, services[name]["image"], Path(folder))
    try:
        stack.compose("up", "--detach", "--no-build", "api", "prometheus")
        yield stack
    finally:
        stack.compose("down", "--volumes")


def _built_here(builder: Engine, base: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Build an image for each service, yield the service's name and the image."""
    with pip_secrets(os.environ) as secrets:
        options = (f"--build-arg=BASE={base}", *secrets)
        builder.build(ROOT, "iris-api:stack", "--target=service", *options)
        builder.build(ROOT, "iris-pipeline:stack", f"--file={ROOT / 'pipeline/Dockerfile'}", *options)
    yield "api", "iris-api:stack"
    yield "train", "iris-pipeline:stack"
    for name, tool in (("prometheus", "promtool"), ("alertmanager", "amtool")):
        context = folder / name
        context.mkdir()
        for program in (name, tool):
            shutil.copy2(programs.folder(name, print) / program, context)
        monitor = MONITOR.format(base=base, programs=f"{name} {tool}", folder=f"/{name}", first=name)
        (context / "Dockerfile").write_text(monitor)
        builder.build(context, f"{name}:stack")
        yield name, f"{name}:stack"
    context = folder / "postgres"
    context.mkdir()
    shutil.copy2(ROOT / "cluster/postgres-entrypoint.sh", context)
    package, *hooks = images.POSTGRES_PACKAGES
    debian = base_image(builder, "cluster", [package], *hooks)
    (context / "Dockerfile").write_text(images.POSTGRES.format(debian=debian) + DATABASE)
    builder.build(context, "postgres:stack")
    yield "postgres", "postgres:stack"


def _load(stack: Stack, builder: Engine, image: str, name: str, folder: Path) -> None:
    """Give the engine an image of the builder's under the name that docker-compose.yml has."""
    archive = folder / "image.tar"
    pushed = builder.run("push", image, f"docker-archive:{archive}:{name}")
    assert pushed.returncode == 0, pushed.stderr
    loaded = stack.docker("load", f"--input={archive}")
    assert loaded.returncode == 0, loaded.stderr
    archive.unlink()


def _ask(url: str, *options: str) -> Any:
    """Ask a port of the loopback on which the engine publishes; return the JSON of the answer."""
    return json.loads(machine.run("curl", "--silent", "--show-error", *options, url))


def test_one_command_ends_with_every_service_well_and_the_training_done(stack: Stack) -> None:
    def well() -> bool:
        found = stack.containers()
        return all(container["Health"] == "healthy" for name, container in found.items() if name != "train")

    wait_until(well, "every service to be healthy", 2 * MINUTES)
    found = stack.containers()
    assert found.keys() == {"postgres", "mlflow", "train", "api", "prometheus", "alertmanager"}
    assert (found["train"]["State"], found["train"]["ExitCode"]) == ("exited", 0)


def test_a_prediction_is_in_the_log_the_table_and_prometheus_and_its_version_is_mlflows_run(stack: Stack) -> None:
    body = json.dumps({"features": SETOSA})
    answer = _ask("http://127.0.0.1:8000/predict", "--header", "Content-Type: application/json", "--data", body)
    info = _ask("http://127.0.0.1:8000/info")
    query = f"name={answer['model']}&version={answer['version']}"
    version = _ask(f"http://127.0.0.1:5000/api/2.0/mlflow/model-versions/get?{query}")["model_version"]
    assert info["run_id"] == {tag["key"]: tag["value"] for tag in version["tags"]}["run_id"]

    def rows() -> str:
        statement = f"SELECT model_version FROM predictions WHERE request_id = '{answer['request_id']}'"  # noqa: S608
        psql = ("psql", "--username=postgres", "--dbname=iris", "--no-align", "--tuples-only")
        return stack.compose("exec", "-T", "postgres", *psql, f"--command={statement}").strip()

    wait_until(lambda: rows() == answer["version"], "the row")
    logs = _ask("http://127.0.0.1:8000/logs")["logs"]
    assert answer["request_id"] in {row["request_id"] for row in logs}

    def counted() -> bool:
        result = _ask("http://127.0.0.1:9090/api/v1/query?query=sum(iris_predictions_total)")["data"]["result"]
        return bool(result) and float(result[0]["value"][1]) >= 1

    wait_until(counted, "Prometheus to have scraped it")
    targets = _ask("http://127.0.0.1:9090/api/v1/targets")["data"]["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(
        ("iris", "prometheus", "alertmanager"), "up"
    )


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before = _ask("http://127.0.0.1:5000/api/2.0/mlflow/model-versions/search"), _ask("http://127.0.0.1:8000/info")
    stack.compose("up", "--detach", "--no-build", "api", "prometheus")
    after = _ask("http://127.0.0.1:5000/api/2.0/mlflow/model-versions/search"), _ask("http://127.0.0.1:8000/info")
    assert after == before


def test_told_to_stop_the_service_drains_and_ends_without_an_error(stack: Stack) -> None:
    stack.compose("stop", "api")
    assert stack.containers()["api"]["ExitCode"] == 0
    stack.compose("up", "--detach", "--no-build", "api")
