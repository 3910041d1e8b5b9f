"""Check Prometheus's configuration in every environment, its rules, and that each alert has a runbook section."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.support.running import ROOT
from tools import programs

MONITORING = ROOT / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
NAMES = {rule["alert"] for rule in ALERTS}
RULE_TESTS = yaml.load((MONITORING / "rules.test.yml").read_text(), yaml.CSafeLoader)["tests"]
# The contract: the end of the condition, the duration and the severity.
CONTRACT = {
    "HighErrorRate": ("> 0.05", "5m", "page"),
    "HighLatency": ("> 1", "5m", "page"),
    "HighCPUUsage": ("> 80", "5m", "warning"),
    "HighMemoryUsage": ("> 0.85", "5m", "warning"),
    "ModelNotLoaded": ("== 1", "1m", "critical"),
    "LowRPS": ("< 0.1", "10m", "warning"),
}


@pytest.mark.parametrize("scrape", sorted((MONITORING / "scrape").glob("*.yml")), ids=lambda file: file.stem)
def test_prometheus_accepts_its_configuration(tmp_path: Path, scrape: Path) -> None:
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(MONITORING / name, tmp_path)
    shutil.copy(scrape, tmp_path / "scrape.yml")
    done = _promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml", where=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    configured = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert configured["scrape_config_files"] == ["scrape.yml"]
    jobs = {job["job_name"] for job in yaml.safe_load(scrape.read_text())["scrape_configs"]}
    assert jobs >= {"iris", "prometheus", "alertmanager"}


@pytest.mark.parametrize("name", [test["name"] for test in RULE_TESTS], ids=str)
def test_the_rules_pass_their_promtool_tests(tmp_path: Path, name: str) -> None:
    # One at a time: the failure says which, and a seeded defect needs only the one that finds it.
    report = tmp_path / "report.xml"
    options = (f"--run=^{re.escape(name)}$", f"--junit={report}")
    done = _promtool("test", "rules", *options, "rules.test.yml", where=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr
    played = [case.get("name") for case in ElementTree.parse(report).iter("testcase")]  # noqa: S314 - our own
    assert played == [name]  # promtool succeeds also if it has run nothing


def test_every_alert_is_tested_firing_and_silent() -> None:
    text = (MONITORING / "rules.test.yml").read_text()
    fires = r'alertname="(\w+)", alertstate="firing"[^}]*\}\', value: 1|exp_labels: \{alertname: (\w+)'
    firing = {first or second for first, second in re.findall(fires, text)}
    assert firing == NAMES
    silent = set(re.findall(r'alertname="(\w+)"[^}]*\}\', eval_time: \w+, exp_samples: \[\]', text))
    silent |= set(re.findall(r"alertname: (\w+)\s*,?\s*eval_time: \w+\s*,?\s*exp_alerts: \[\]", text))
    assert silent == NAMES


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_alerts_keep_condition_duration_and_severity(name: str) -> None:
    condition, duration, severity = CONTRACT[name]
    (rule,) = (rule for rule in ALERTS if rule["alert"] == name)
    assert rule["expr"].rstrip().endswith(condition)
    assert (rule["for"], rule["labels"]) == (duration, {"severity": severity})


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_severity_a_summary_a_description_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"page", "critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    start = "{{ $externalLabels.repository }}/blob/main/monitoring/RUNBOOK.md#"
    anchor = rule["alert"].lower()  # GitHub's anchor of the heading
    assert rule["annotations"]["runbook_url"] == start + anchor


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    text = (MONITORING / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == NAMES
    for name, section in sections.items():
        for part in ("- Check: ", "- Causes", "- Action: "):
            assert part in section, f"{name}: {part}"
    anchors = {name.lower() for name in sections}
    assert set(re.findall(r"\]\(#(\S+?)\)", text)) <= anchors


def test_runbook_links_lead_to_the_repository_that_argo_cd_reads() -> None:
    links = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["external_labels"]["repository"]
    argo_cd = yaml.safe_load((ROOT / "manifests/argocd/kustomization.yaml").read_text())["configMapGenerator"]
    assert argo_cd[0]["literals"] == [f"url={links}.git"]


def test_alerts_read_ratios_and_quantiles_from_recording_rules() -> None:
    for rule in ALERTS:
        assert not re.search(r"\brate\(|histogram_quantile", rule["expr"]), rule["alert"]


def _promtool(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    promtool = programs.folder("prometheus", print) / "promtool"
    return subprocess.run([promtool, *arguments], cwd=where, capture_output=True, text=True, check=False)
