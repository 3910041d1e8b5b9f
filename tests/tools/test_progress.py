"""A step shows its name and its time, and on failure the reason and the log."""

import re
from pathlib import Path

import pytest

from tools import progress
from tools.errors import ToolError
from tools.progress import NotRunningError, step, wait_for


def test_a_step_that_ends_prints_its_name_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    with step("pods [all]"):
        pass
    assert re.match(r"  ok  pods \[all\] \(\d+\.\d s\)", capsys.readouterr().err)


def test_a_step_that_fails_prints_the_reason_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToolError), step("Kubernetes", Path("/somewhere/kubeadm.log")):
        raise ToolError("kubeadm could not")
    reason = r"  no  Kubernetes \(\d+ s\): kubeadm could not\n      log: /somewhere/kubeadm.log\n"
    assert re.search(reason, capsys.readouterr().err)


def test_an_interrupted_step_says_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), step("images"):
        raise KeyboardInterrupt
    assert "run the same command again to continue" in capsys.readouterr().err


def test_without_a_terminal_a_long_step_prints_its_progress_from_time_to_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with step("programs") as say:
        say("package 1")
        monkeypatch.setattr(progress, "QUIET", -1.0)
        say("package 2")
    assert "package 1" not in (shown := capsys.readouterr().err)
    assert re.search(r"  \.\.  programs \(\d+ s\): package 2", shown)


def test_waiting_ends_when_nothing_is_missing() -> None:
    answers = iter(["one", "two", None])
    said: list[str] = []
    wait_for(lambda: next(answers), 60, said.append)
    assert said == ["one", "two"]


def test_waiting_for_too_long_reports_what_is_missing() -> None:
    def fails() -> None:
        raise ToolError("nobody answers")

    with pytest.raises(ToolError, match="after 0 s: nobody answers"):
        wait_for(fails, 0, print)


def test_waiting_ends_at_once_when_no_cluster_is_running() -> None:
    def gone() -> None:
        raise NotRunningError

    with pytest.raises(NotRunningError, match="make up"):
        wait_for(gone, 3600, print)
