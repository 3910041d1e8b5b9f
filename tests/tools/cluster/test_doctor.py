"""The doctor names each problem and the command that fixes it."""

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


def test_it_looks_at_all_that_the_cluster_needs() -> None:
    names = {check.name for check in examine()}
    assert {"root", "Python", "Go", "packages", "cgroups", "cores", "memory", "disk", "leftovers"} <= names
    assert os.geteuid() or {"namespaces", "overlay", "nftables", "bridge device", "veth device"} <= names


def test_who_is_not_root_is_told_so_and_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _check("root") == Check("root", "no", "sudo make up")
    assert "namespaces" not in {check.name for check in examine()}
    with pytest.raises(ToolError, match="root: no; fix: sudo make up"):
        doctor.prepare()


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-program": "its-package", "sh": "dash"})
    check = _check("packages")
    assert check.found == "missing: its-package"
    assert check.fix == "sudo apt-get install --yes its-package"


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(node, "PORT_FORWARDS", (node.PortForward("router", port, "somewhere:80"),))
        assert f"sport = :{port}" in _check(f"port {port}").fix
    assert _check(f"port {port}") == Check(f"port {port}", "free for router")


def test_too_little_is_a_problem_that_show_reports(
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


def test_more_disk_is_needed_while_the_programs_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{doctor.DISK + doctor.DISK_TO_BUILD:.0f} needed" in _check("disk").found
    monkeypatch.setattr(programs, "is_built", lambda _: True)
    assert f"{doctor.DISK:.0f} needed" in _check("disk").found


def test_what_a_killed_cluster_has_left_is_named() -> None:
    (node.state() / "log").mkdir(parents=True)
    assert _check("leftovers") == Check("leftovers", str(node.state()), "make down")


def test_a_kernel_that_cannot_do_a_thing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root may try what the kernel can do")
    monkeypatch.setitem(doctor.KERNEL, "nftables", "echo no such thing >&2; exit 1")
    assert _check("nftables") == Check("nftables", "no such thing", "sudo modprobe nf_tables")
