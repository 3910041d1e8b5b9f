"""Who is told of an alert, as Alertmanager's own program reads the routes, and that no credential is in git."""

import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from tests.support.running import ROOT
from tools import programs

FILE = ROOT / "monitoring/alertmanager.yml"
CONFIG = yaml.safe_load(FILE.read_text())
RULES = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())
ALERTS = [
    (rule["alert"], rule["labels"]["severity"])
    for group in RULES["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
# Severity, and the ways by which somebody is told.
TOLD = {
    "page": {"pagerduty", "slack"},
    "critical": {"pagerduty", "slack", "email"},
    "warning": {"slack"},
}
ANYTHING_ELSE = {"email"}


def test_alertmanager_takes_its_configuration() -> None:
    assert "SUCCESS" in _amtool("check-config", str(FILE))


@pytest.mark.parametrize(("name", "severity"), ALERTS)
def test_an_alert_goes_where_its_severity_says(name: str, severity: str) -> None:
    assert _told(alertname=name, severity=severity, namespace="iris-prod") == TOLD[severity]


@pytest.mark.parametrize("severity", TOLD)
def test_nobody_is_woken_for_dev(severity: str) -> None:
    assert _told(alertname="Unheard", severity=severity, namespace="iris-dev") == TOLD["warning"]


@pytest.mark.parametrize(("severity", "ways"), [*TOLD.items(), ("unheard", ANYTHING_ELSE)])
def test_every_severity_has_its_ways_and_an_unknown_one_is_read_as_well(severity: str, ways: set[str]) -> None:
    assert _told(alertname="Unheard", severity=severity) == ways


def test_an_alert_without_a_severity_is_read_as_well() -> None:
    assert _told(alertname="Unheard") == ANYTHING_ELSE


def test_credentials_come_from_files_alone() -> None:
    found = dict(_credentials(CONFIG))
    assert len(found) == 3 + 1  # PagerDuty's twice
    for name, value in found.items():
        assert name.endswith("_file")
        assert re.fullmatch(r"/etc/alertmanager/secrets/[\w-]+", value)
    assert not re.search(r"hooks\.slack\.com|://[^/\s]*@", FILE.read_text())


def test_alerts_that_inhibit_or_are_inhibited_are_ones_that_there_are() -> None:
    for rule in CONFIG["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            name, _, value = re.fullmatch(r'(\w+) (=~?) "?([^"]+)"?', matcher).groups()  # type: ignore[union-attr]
            for pattern in value.split("|") if name == "alertname" else []:
                assert any(re.fullmatch(pattern, alert) for alert, _ in ALERTS), pattern


def _credentials(part: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and value of each setting that is, or leads to, a credential."""
    if isinstance(part, dict):
        for name, inner in part.items():
            yield from _credentials(inner, f"{path}.{name}")
    elif isinstance(part, list):
        for number, inner in enumerate(part):
            yield from _credentials(inner, f"{path}.{number}")
    elif re.search(r"key|token|secret|password|api_url|authorization|credentials", path):
        yield path, str(part)


def _told(**labels: str) -> set[str]:
    """Return the ways by which somebody is told of an alert with these labels."""
    arguments = [f"{name}={value}" for name, value in labels.items()]
    names = _amtool("config", "routes", "test", f"--config.file={FILE}", *arguments).strip().split(",")
    receivers = {receiver["name"]: receiver.keys() - {"name"} for receiver in CONFIG["receivers"]}
    return {way.removesuffix("_configs") for name in names for way in receivers[name]}


def _amtool(*arguments: str) -> str:
    amtool = programs.folder("alertmanager", print) / "amtool"
    done = subprocess.run([amtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
