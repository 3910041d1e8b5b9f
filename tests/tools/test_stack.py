"""docker-compose.yml, brought up and used on a real Docker engine; without Grafana, whose image is not available.

The images that docker-compose.yml does not build are stand-ins: the same programs in the same folders.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import yaml

from tests.support import docker_engine
from tests.support.running import ROOT, SETOSA, wait_until
from tests.tools.test_compose import PORTS
from tools import compose, packages, programs
from tools.base_image import base_image
from tools.cluster import images
from tools.engine import Engine as Builder
from tools.engine import buildah
from tools.image import find_base
from tools.pip_configuration import pip_secrets

pytestmark = pytest.mark.stack

MINUTES = 60.0
NOT_AVAILABLE = "grafana"
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
Container = dict[str, Any]


class Stack(NamedTuple):
    """A project of Docker Compose on its own engine."""

    engine: docker_engine.Engine
    env_file: Path
    services: tuple[str, ...]

    def up(self, *files: Path) -> None:
        """Bring up every service as a person does, except that the images are already there.

        `files` are compose files whose settings come on top of those of docker-compose.yml.
        """
        options = [f"--file={file}" for file in files]
        self.compose(*options, "up", "--detach", "--no-build", *self.services)

    def compose(self, *arguments: str) -> str:
        """Run a command of Docker Compose; return what it prints."""
        done = _compose(self.env_file, *arguments, DOCKER_HOST=self.engine.host)
        if done.returncode:
            logs = _compose(self.env_file, "logs", "--tail=50", DOCKER_HOST=self.engine.host)
            pytest.fail(f"{arguments}: {done.stderr}\n{logs.stdout}")
        return done.stdout

    def containers(self) -> dict[str, Container]:
        """Return the engine's description of each container, by service."""
        with self.engine.api() as client:
            found = {
                item["Labels"]["com.docker.compose.service"]: item["Id"]
                for item in client.get("/containers/json", params={"all": True}).json()
            }
            return {name: client.get(f"/containers/{number}/json").json() for name, number in found.items()}

    def ask(self, service: str, path: str, **body: Any) -> Any:
        """Send a request to a published port, a POST if it has a body; return the JSON of the answer."""
        options = ["--silent", "--show-error", "--fail-with-body", "--max-time", "30"]
        if body:
            options += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        return json.loads(self.engine.nsenter("curl", *options, f"http://127.0.0.1:{PORTS[service]}{path}"))

    def predict(self) -> str:
        """Request a prediction; return the request's id."""
        answer: str = self.ask("api", "/predict", features=SETOSA)["request_id"]
        return answer

    def value(self, query: str) -> float | None:
        """Return the value of a query to Prometheus, None if it has no such series."""
        [*samples] = self.ask("prometheus", f"/api/v1/query?query={quote(query)}")["data"]["result"]
        return float(samples[0]["value"][1]) if samples else None

    def alerts(self) -> dict[tuple[str, str], str]:
        """Return the state of each alert in Alertmanager, by name and job."""
        found = self.ask("alertmanager", "/api/v2/alerts")
        return {
            (alert["labels"]["alertname"], alert["labels"].get("job", "")): alert["status"]["state"]
            for alert in found
        }

    def rows(self) -> list[str]:
        """Return the request ids in the table."""
        psql = ("psql", "--username=postgres", "--dbname=iris", "--no-align", "--tuples-only")
        statement = "SELECT request_id FROM predictions"
        return self.compose("exec", "-T", "postgres", *psql, f"--command={statement}").split()

    def registered(self) -> Any:
        """Return the model versions in MLflow's registry."""
        return self.ask("mlflow", "/api/2.0/mlflow/model-versions/search")["model_versions"]


def _compose(env_file: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = programs.folder("compose", print) / "docker-compose"
    command = [str(program), f"--file={ROOT / 'docker-compose.yml'}", f"--env-file={env_file}", *arguments]
    environ = {"PATH": os.defpath, "HOME": str(env_file.parent), **variables}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=10 * MINUTES, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, brought up by one command on an empty engine, and removed with that engine."""
    packages.need("curl", "curl")
    desk = tmp_path_factory.mktemp("desk")
    env_file = compose.write(desk, os.environ)
    configured = json.loads(_compose(env_file, "config", "--format=json").stdout)["services"]
    with docker_engine.running() as running:
        stack = Stack(running, env_file, tuple(sorted(configured.keys() - {NOT_AVAILABLE})))
        with tempfile.TemporaryDirectory(prefix="iris-stack-") as folder:
            builder = buildah()
            for name, image in _images(builder, Path(folder)):
                archive = Path(folder, "image.tar")
                pushed = builder.run("push", image, f"docker-archive:{archive}:{configured[name]['image']}")
                assert pushed.returncode == 0, pushed.stderr
                running.load(archive)
                archive.unlink()
        stack.up()
        yield stack


def _images(builder: Builder, folder: Path) -> Iterator[tuple[str, str]]:
    """Build the image of each service; yield a service that uses the image, and the image."""
    base = find_base(builder)
    with pip_secrets(os.environ) as secrets:
        options = (f"--build-arg=BASE={base}", *secrets)
        yield "api", builder.build(ROOT, "iris-api:stack", "--target=service", *options)
        yield (
            "train",
            builder.build(ROOT, "iris-pipeline:stack", f"--file={ROOT / 'pipeline/Dockerfile'}", *options),
        )
    for name, tool in (("prometheus", "promtool"), ("alertmanager", "amtool")):
        context = folder / name
        context.mkdir()
        for program in (name, tool):
            shutil.copy2(programs.folder(name, print) / program, context)
        monitor = MONITOR.format(base=base, programs=f"{name} {tool}", folder=f"/{name}", first=name)
        (context / "Dockerfile").write_text(monitor)
        yield name, builder.build(context, f"{name}:stack")
    context = folder / "postgres"
    context.mkdir()
    shutil.copy2(images.POSTGRES_ENTRYPOINT, context)
    debian = base_image(builder, "cluster", *images.POSTGRES_DEBIAN)
    (context / "Dockerfile").write_text((images.HERE / "dockerfiles/postgres").read_text() + DATABASE)
    yield "postgres", builder.build(context, "postgres:stack", f"--build-arg=DEBIAN={debian}")


def _wait_until_healthy(stack: Stack) -> None:
    def healthy() -> bool:
        states = {name: found["State"] for name, found in stack.containers().items() if name != "train"}
        return all(state["Health"]["Status"] == "healthy" for state in states.values())

    wait_until(healthy, "every service to be healthy", 5 * MINUTES)


def test_one_command_starts_every_service_and_trains_a_model(stack: Stack) -> None:
    _wait_until_healthy(stack)
    found = stack.containers()
    assert found.keys() == set(stack.services)
    assert (found["train"]["State"]["Status"], found["train"]["State"]["ExitCode"]) == ("exited", 0)
    assert all(container["RestartCount"] == 0 for container in found.values())


def test_a_prediction_reaches_log_table_and_prometheus_with_the_version_of_its_mlflow_run(stack: Stack) -> None:
    answer = stack.ask("api", "/predict", features=SETOSA)
    info = stack.ask("api", "/info")
    [version] = stack.registered()
    assert (answer["model"], answer["version"]) == (version["name"], version["version"])
    assert info["run_id"] == {tag["key"]: tag["value"] for tag in version["tags"]}["run_id"]
    run = stack.ask("mlflow", f"/api/2.0/mlflow/runs/get?run_id={info['run_id']}")["run"]
    assert run["info"]["status"] == "FINISHED"

    wait_until(lambda: answer["request_id"] in stack.rows(), "the row")
    logs = {row["request_id"]: row for row in stack.ask("api", "/logs")["logs"]}
    assert logs[answer["request_id"]]["model_version"] == answer["version"]
    wait_until(lambda: stack.value("sum(iris_predictions_total)") == 1, "Prometheus to count it")
    targets = dict.fromkeys(("iris", "iris-drift", "prometheus", "alertmanager"), 1.0)
    wait_until(lambda: {name: stack.value(f'up{{job="{name}"}}') for name in targets} == targets, "every target")


def test_drift_is_measured_beside_the_service_and_scraped(stack: Stack) -> None:
    stack.ask("api", "/predict/batch", features=[SETOSA] * 200)
    wait_until(lambda: stack.value("iris_drift_sample_size") == 201, "the rows to be compared", 2 * MINUTES)
    # All rows are of one class, unlike the training data.
    wait_until(lambda: (stack.value("max(iris:drift_ratio)") or 0) > 1, "drift to be detected")


def test_ports_are_local_and_containers_run_unprivileged_on_a_read_only_root(stack: Stack) -> None:
    listening = re.findall(r"^LISTEN +\d+ +\d+ +(\S+)", stack.engine.nsenter("ss", "-ltn"), re.MULTILINE)
    assert sorted(listening) == sorted(f"127.0.0.1:{PORTS[name]}" for name in PORTS.keys() - {NOT_AVAILABLE})
    for name, container in stack.containers().items():
        if name == "train":
            continue
        status = stack.compose("exec", "-T", name, "cat", "/proc/1/status")
        process = dict(line.split(":\t", 1) for line in status.splitlines())
        assert "0" not in process["Uid"].split() + process["Gid"].split(), name
        assert {process[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, name
        assert process["NoNewPrivs"] == "1", name
        with pytest.raises(pytest.fail.Exception, match="Read-only file system"):
            stack.compose("exec", "-T", name, "mkdir", "/written")
        assert container["HostConfig"]["LogConfig"]["Type"] == "local"


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    def state() -> Any:
        services = {name: found for name, found in stack.containers().items() if name != "train"}
        started = {name: (found["Id"], found["State"]["StartedAt"]) for name, found in services.items()}
        return started, stack.registered(), stack.ask("api", "/info")

    before = state()
    stack.up()
    assert state() == before


def test_prometheus_evaluates_the_rules_of_the_repository(stack: Stack) -> None:
    def evaluated() -> bool:
        groups = stack.ask("prometheus", "/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert sorted((rule["name"], rule.get("duration", 0)) for rule in rules) == written
        return all(rule["health"] == "ok" for rule in rules)

    groups = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())["groups"]
    written = sorted(  # Prometheus lists the groups in an order of its own
        (rule.get("alert") or rule["record"], 60 * int(rule.get("for", "0m").removesuffix("m")))
        for group in groups
        for rule in group["rules"]
    )
    wait_until(evaluated, "every rule to be evaluated")


def test_without_postgresql_the_service_answers_alerts_fire_and_no_prediction_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    # rules.test.yml proves how long each alert waits. This test is about the way from a rule to Alertmanager.
    impatient = re.sub(r"\bfor: \d+m", "for: 5s", (ROOT / "monitoring/rules.yml").read_text())
    (tmp_path / "rules.yml").write_text(impatient)
    mount = f"{tmp_path}/rules.yml:/etc/prometheus/rules.yml:ro"
    override = tmp_path / "compose.yml"
    override.write_text(json.dumps({"services": {"prometheus": {"volumes": [mount]}}}))
    stack.up(override)
    _wait_until_healthy(stack)
    stack.compose("stop", "postgres", "drift")
    answered = []

    def predict_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}; the alerts are {stack.alerts()}"
            answered.append(stack.predict())
            time.sleep(0.3)

    # No process of drift answers: TargetGone fires, and inhibits TargetDown, which is about a single process.
    gone = {("TargetGone", "iris-drift"): "active", ("TargetDown", "iris-drift"): "suppressed"}
    predict_until(lambda: gone.items() <= stack.alerts().items(), "the alerts of drift", 3 * MINUTES)
    growing = ("JournalGrowing", "iris")
    predict_until(lambda: stack.alerts().get(growing) == "active", "the journal's alert", 4 * MINUTES)
    stack.up(override)
    predict_until(lambda: not stack.alerts().keys() & {growing, *gone}, "the end of the alerts", 5 * MINUTES)
    wait_until(lambda: set(answered) <= set(stack.rows()), "every answered prediction to be in the table")
    assert len(answered) > 100
    stack.up()


def test_on_stop_the_service_ships_every_answered_prediction_and_exits_without_an_error(stack: Stack) -> None:
    answered = [stack.predict() for _ in range(5)]
    stack.compose("stop", "api")
    assert stack.containers()["api"]["State"]["ExitCode"] == 0
    assert set(answered) <= set(stack.rows())


def test_predictions_and_models_survive_down_and_up(stack: Stack) -> None:
    rows, registered = stack.rows(), stack.registered()
    stack.compose("down")
    assert not stack.containers()
    stack.up()
    _wait_until_healthy(stack)
    assert (stack.rows(), stack.registered()) == (rows, registered)
    logs = stack.ask("api", "/logs?limit=1000")["logs"]
    assert {row["request_id"] for row in logs} == set(rows)
    assert stack.ask("api", "/predict", features=SETOSA)["version"] == registered[0]["version"]
    assert (stack.value("max_over_time(iris_drift_sample_size[1h])") or 0) >= 201


def test_a_retrained_model_is_the_registrys_next_version_and_serves_after_a_restart(stack: Stack) -> None:
    train = ("python", "-m", "pipeline", "--algorithm", "svm", "--out", "/models/iris")
    stack.compose("run", "--rm", "--pull=never", "train", *train)
    stack.compose("restart", "api", "drift")
    _wait_until_healthy(stack)
    assert stack.ask("api", "/predict", features=SETOSA)["version"] == "2"
    assert {version["version"] for version in stack.registered()} == {"1", "2"}
