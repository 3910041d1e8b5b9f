"""The configuration of Prometheus: valid wherever it is used, tested rules, and alerts that say what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.running import ROOT
from tools import programs

MONITORING = ROOT / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
NAMES = {rule["alert"] for rule in ALERTS}
# Agreed on: the condition, for how long, and how loud.
FIXED = {
    "HighErrorRate": ("> 0.05", "5m", "page"),
    "HighLatency": ("> 1", "5m", "page"),
    "HighCPUUsage": ("> 80", "5m", "warning"),
    "HighMemoryUsage": ("> 0.85", "5m", "warning"),
    "ModelNotLoaded": ("== 1", "1m", "critical"),
    "LowRPS": ("< 0.1", "10m", "warning"),
}


@pytest.mark.parametrize("scraped", sorted((MONITORING / "scrape").glob("*.yml")), ids=lambda file: file.stem)
def test_prometheus_takes_its_configuration_wherever_it_runs(tmp_path: Path, scraped: Path) -> None:
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(MONITORING / name, tmp_path)
    shutil.copy(scraped, tmp_path / "scrape.yml")
    done = _promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml", where=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    configured = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert configured["scrape_config_files"] == ["scrape.yml"]
    jobs = {job["job_name"] for job in yaml.safe_load(scraped.read_text())["scrape_configs"]}
    assert jobs >= {"iris", "prometheus", "alertmanager"}


def test_the_rules_hold_what_their_tests_say() -> None:
    done = _promtool("test", "rules", "rules.test.yml", where=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_firing_and_silent() -> None:
    text = (MONITORING / "rules.test.yml").read_text()
    fires = r'alertname="(\w+)", alertstate="firing"[^}]*\}\', value: 1|exp_labels: \{alertname: (\w+)'
    firing = {first or second for first, second in re.findall(fires, text)}
    assert firing == NAMES
    silent = set(re.findall(r'alertname="(\w+)"[^}]*\}\', eval_time: \w+, exp_samples: \[\]', text))
    silent |= set(re.findall(r"alertname: (\w+)\s*,?\s*eval_time: \w+\s*,?\s*exp_alerts: \[\]", text))
    assert silent == NAMES


@pytest.mark.parametrize("name", FIXED)
def test_what_was_agreed_on_is_kept(name: str) -> None:
    condition, lasting, severity = FIXED[name]
    (rule,) = (rule for rule in ALERTS if rule["alert"] == name)
    assert rule["expr"].rstrip().endswith(condition)
    assert (rule["for"], rule["labels"]) == (lasting, {"severity": severity})


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"page", "critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    start = "{{ $externalLabels.repository }}/blob/main/monitoring/RUNBOOK.md#"
    anchor = rule["alert"].lower()  # as GitHub makes one of a heading
    assert rule["annotations"]["runbook_url"] == start + anchor


def test_the_runbook_has_a_heading_for_each_alert_and_none_for_others() -> None:
    text = (MONITORING / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == NAMES
    for name, section in sections.items():
        for part in ("- Look: ", "- Causes", "- Do: "):
            assert part in section, f"{name}: {part}"
    anchors = {name.lower() for name in sections}
    assert set(re.findall(r"\]\(#(\S+?)\)", text)) <= anchors


def test_links_lead_to_the_repository_that_argo_cd_reads() -> None:
    links = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["external_labels"]["repository"]
    told = yaml.safe_load((ROOT / "manifests/argocd/kustomization.yaml").read_text())["configMapGenerator"]
    assert told[0]["literals"] == [f"url={links}.git"]


def test_ratios_and_quantiles_are_read_from_recording_rules() -> None:
    for rule in ALERTS:
        assert not re.search(r"\brate\(|histogram_quantile", rule["expr"]), rule["alert"]


def _promtool(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    promtool = programs.folder("prometheus", print) / "promtool"
    return subprocess.run([promtool, *arguments], cwd=where, capture_output=True, text=True, check=False)
