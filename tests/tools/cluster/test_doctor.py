"""The doctor reports each problem with the command that fixes it."""

import os
import socket
from pathlib import Path

import pytest

from tools import programs
from tools.cluster import doctor, node
from tools.cluster.doctor import Check, examine
from tools.errors import ToolError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _check(name: str) -> Check:
    return next(check for check in examine() if check.name == name)


def test_it_checks_every_requirement_of_the_cluster() -> None:
    names = {check.name for check in examine()}
    assert {"root", "Python", "Go", "packages", "cgroups", "cores", "memory", "disk", "leftovers"} <= names
    assert os.geteuid() or {"namespaces", "overlay", "nftables", "bridge device", "veth device"} <= names


def test_without_root_it_says_so_and_tries_no_kernel_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _check("root") == Check("root", "no", "sudo make up")
    assert "namespaces" not in {check.name for check in examine()}
    with pytest.raises(ToolError, match="root: no; fix: sudo make up"):
        doctor.prepare()


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-program": "its-package", "sh": "dash"})
    check = _check("packages")
    assert check.found == "missing: its-package"
    assert check.fix == "sudo apt-get install --yes its-package"


def test_a_port_in_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(node, "PORT_FORWARDS", (node.PortForward("router", port, "somewhere:80"),))
        assert f"sport = :{port}" in _check(f"port {port}").fix
    assert _check(f"port {port}") == Check(f"port {port}", "free for router")


def test_too_few_cores_memory_or_disk_are_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CORES", 4096)
    monkeypatch.setattr(doctor, "MEMORY", 1e6)
    monkeypatch.setattr(doctor, "DISK", 1e6)
    assert not doctor.show()
    shown = capsys.readouterr().err
    for name in ("cores", "memory", "disk"):
        assert f"  no  {name}" in shown
    assert shown.count("fix: ") >= 3


def test_more_disk_is_required_until_the_programs_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{doctor.DISK + doctor.DISK_TO_BUILD:.0f} needed" in _check("disk").found
    monkeypatch.setattr(programs, "is_built", lambda _: True)
    assert f"{doctor.DISK:.0f} needed" in _check("disk").found


def test_leftovers_of_a_killed_cluster_are_reported() -> None:
    (node.state() / "log").mkdir(parents=True)
    assert _check("leftovers") == Check("leftovers", str(node.state()), "make down")


def test_a_missing_kernel_feature_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root can try kernel features")
    monkeypatch.setitem(doctor.KERNEL, "nftables", "echo no such thing >&2; exit 1")
    assert _check("nftables") == Check("nftables", "no such thing", "sudo modprobe nf_tables")
