"""Imports run one way: tools may import delivery; service, pipeline and delivery import nothing of each other."""

import ast
from pathlib import Path

import pytest

from tests.support.running import ROOT

PACKAGES = ("service", "pipeline", "delivery", "tools", "tests")
# What each package may import besides itself.
ALLOWED: dict[str, set[str]] = {"service": set(), "pipeline": set(), "delivery": set(), "tools": {"delivery"}}
# These run in the serving image, where they break the service on purpose.
IN_THE_SERVING_IMAGE = ROOT / "tools/drill/faults"


def _imported_packages(source: str) -> set[str]:
    """Return the packages of this repository that Python source imports, at any depth of the code."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return {module.partition(".")[0] for module in modules} & set(PACKAGES)


def _allowed(file: Path) -> set[str]:
    package = file.relative_to(ROOT).parts[0]
    in_the_serving_image = file.is_relative_to(IN_THE_SERVING_IMAGE)
    return {package} | ALLOWED[package] | ({"service"} if in_the_serving_image else set())


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    forbidden = {
        str(file.relative_to(ROOT)): found
        for file in files
        if (found := _imported_packages(file.read_text()) - _allowed(file))
    }
    assert forbidden == {}


@pytest.mark.parametrize(
    "source",
    [
        "import service",
        "import service.model as model",
        "from service import model",
        "from service.model import Model",
        "def later():\n    from service.model import Model",
        "if TYPE_CHECKING:\n    import os, service",
    ],
)
def test_every_form_of_an_import_is_found(source: str) -> None:
    assert _imported_packages(source) == {"service"}


def test_what_is_not_an_import_of_this_repository_is_not_found() -> None:
    assert (
        _imported_packages("import os\nfrom . import service\nfrom servicelib import x\n'import service'") == set()
    )
