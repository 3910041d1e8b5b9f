"""A pod reads its role and weight from its own labels."""

from pathlib import Path

import pytest

from service.pod import read
from tests.support.running import RunningService

LABELS = 'app="iris"\nrollouts-pod-template-hash="5d4f"\n'


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("", ("stable", 100)),
        (LABELS, ("stable", 100)),
        (f'{LABELS}role="canary"\ncanary-percentage="10"\n', ("canary", 10)),
        (f'canary-percentage="10"\n{LABELS}role="canary"', ("canary", 10)),
        (f'{LABELS}role="preview"\n', ("preview", 100)),
        ('canary-percentage="0"', ("stable", 0)),
        ('canary-percentage="ten"\nrole="canary"', ("canary", 100)),
        ('not-a-role="canary"\nmy-canary-percentage="10"', ("stable", 100)),
        ('note="role=\\"canary\\""', ("stable", 100)),
    ],
)
def test_role_and_weight_are_read_from_the_labels(tmp_path: Path, labels: str, expected: tuple[str, int]) -> None:
    (tmp_path / "labels").write_text(labels)
    pod = read(tmp_path / "labels")
    assert (pod.role, pod.canary_percentage) == expected
    assert pod.pod_template_hash == ("5d4f" if LABELS in labels else "")


def test_outside_a_cluster_the_role_is_stable_with_all_traffic(tmp_path: Path) -> None:
    assert read(tmp_path / "labels") == ("stable", 100, "")


def test_labels_that_cannot_be_read_are_not_those_of_a_stable_pod(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_info_follows_label_changes_while_the_pod_runs(model: Path, database: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.write_text(f'{LABELS}role="canary"\ncanary-percentage="10"\n')
    with RunningService(
        model, database, tmp_path / "journal", pod_labels=str(labels), environment="prod"
    ) as service:
        info = service.client.get("/info").json()
        assert (info["environment"], info["role"], info["canary_percentage"]) == ("prod", "canary", 10)
        assert info["pod_template_hash"] == "5d4f"
        labels.write_text(f'{LABELS}role="stable"\n')
        info = service.client.get("/info").json()
        assert (info["environment"], info["role"], info["canary_percentage"]) == ("prod", "stable", 100)
