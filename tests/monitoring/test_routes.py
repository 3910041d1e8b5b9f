"""Check the routes of alerts with Alertmanager's own amtool, and that git contains no credential."""

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
# The channels of each severity.
CHANNELS = {
    "page": {"pagerduty", "slack"},
    "critical": {"pagerduty", "slack", "email"},
    "warning": {"slack"},
}
UNKNOWN_SEVERITY = {"email"}


def test_alertmanager_accepts_its_configuration() -> None:
    assert "SUCCESS" in _amtool("check-config", str(FILE))


@pytest.mark.parametrize(("name", "severity"), ALERTS)
def test_every_alert_is_routed_by_its_severity(name: str, severity: str) -> None:
    assert _channels(alertname=name, severity=severity, namespace="iris-prod") == CHANNELS[severity]


@pytest.mark.parametrize("severity", CHANNELS)
def test_alerts_of_dev_never_page(severity: str) -> None:
    assert _channels(alertname="Unknown", severity=severity, namespace="iris-dev") == CHANNELS["warning"]


@pytest.mark.parametrize(("severity", "channels"), [*CHANNELS.items(), ("unknown", UNKNOWN_SEVERITY)])
def test_every_severity_has_channels_and_an_unknown_one_goes_to_mail(severity: str, channels: set[str]) -> None:
    assert _channels(alertname="Unknown", severity=severity) == channels


def test_an_alert_without_a_severity_goes_to_mail() -> None:
    assert _channels(alertname="Unknown") == UNKNOWN_SEVERITY


def test_credentials_come_only_from_files() -> None:
    found = dict(_credentials(CONFIG))
    assert len(found) == 3 + 1  # PagerDuty's key is used by two receivers
    for name, value in found.items():
        assert name.endswith("_file")
        assert re.fullmatch(r"/etc/alertmanager/secrets/[\w-]+", value)
    assert not re.search(r"hooks\.slack\.com|://[^/\s]*@", FILE.read_text())


def test_inhibit_rules_name_only_existing_alerts() -> None:
    for rule in CONFIG["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            name, _, value = re.fullmatch(r'(\w+) (=~?) "?([^"]+)"?', matcher).groups()  # type: ignore[union-attr]
            for pattern in value.split("|") if name == "alertname" else []:
                assert any(re.fullmatch(pattern, alert) for alert, _ in ALERTS), pattern


def _credentials(part: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and value of each setting that is a credential or the name of a credential file."""
    if isinstance(part, dict):
        for name, inner in part.items():
            yield from _credentials(inner, f"{path}.{name}")
    elif isinstance(part, list):
        for number, inner in enumerate(part):
            yield from _credentials(inner, f"{path}.{number}")
    elif re.search(r"key|token|secret|password|api_url|authorization|credentials", path):
        yield path, str(part)


def _channels(**labels: str) -> set[str]:
    """Return the channels that an alert with these labels goes to."""
    arguments = [f"{name}={value}" for name, value in labels.items()]
    names = _amtool("config", "routes", "test", f"--config.file={FILE}", *arguments).strip().split(",")
    receivers = {receiver["name"]: receiver.keys() - {"name"} for receiver in CONFIG["receivers"]}
    return {channel.removesuffix("_configs") for name in names for channel in receivers[name]}


def _amtool(*arguments: str) -> str:
    amtool = programs.folder("alertmanager", print) / "amtool"
    done = subprocess.run([amtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
