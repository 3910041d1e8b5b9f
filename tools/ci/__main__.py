"""`python -m tools.ci`: the steps of the workflows on GitHub that are neither `make` nor `delivery`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from delivery import changes
from delivery.release import IMAGE
from delivery.repository import Repository
from tools import command_line, programs
from tools.ci import manifest_diff as differences
from tools.ci import promotion as promotions
from tools.ci import push as images
from tools.ci import slack, supply_chain
from tools.progress import step

PARTS = Path(".local/parts.cdx.json")
app = typer.Typer(help="Steps of the workflows.", pretty_exceptions_enable=False, no_args_is_help=True)
Digest = Annotated[str, typer.Argument(help="sha256:... of the image that was pushed")]


@app.command()
def difference(base: Annotated[str, typer.Argument(help="a commit or branch")]) -> None:
    """Print what HEAD would change in the cluster since it left the base, as Markdown."""
    with step("programs: kustomize") as say:
        kustomize = programs.folder("kustomize", say) / "kustomize"
    typer.echo(differences.difference(Path(), base, kustomize), nl=False)


@app.command()
def push() -> None:
    """Build and push the serving image of model/, and print its digest as an output."""
    typer.echo(f"digest={images.push(Path('model'), IMAGE)}")


@app.command()
def parts(digest: Digest) -> None:
    """Write the list of an image's parts (SBOM) to .local/parts.cdx.json."""
    with step("parts") as say:
        supply_chain.list_parts(f"{IMAGE}@{digest}", PARTS, say)


@app.command()
def sign(digest: Digest) -> None:
    """Sign an image and the list of its parts, as the workflow that this is run by."""
    with step("signature") as say:
        supply_chain.sign(f"{IMAGE}@{digest}", PARTS, supply_chain.keyless(), say)


@app.command()
def verify(digest: Digest) -> None:
    """Fail unless the release workflow of main has signed an image and the list of its parts."""
    with step("verified") as say:
        supply_chain.verify(f"{IMAGE}@{digest}", supply_chain.keyless(), say)


@app.command()
def promotion() -> None:
    """Print what a promotion would ship, its figures and the model card, as Markdown."""
    typer.echo(promotions.promotion(Repository(Path())))


@app.command()
def digest() -> None:
    """Print the digest that runs in dev, as an output."""
    typer.echo(f"digest={changes.running(Repository(Path()), 'dev').digest}")


@app.command()
def kubeconfig(file: Annotated[Path, typer.Argument(help="where kubectl is to find it")]) -> None:
    """Write KUBECONFIG_SECRET to a file for its owner alone; print whether there is one, as an output."""
    if secret := os.environ.get("KUBECONFIG_SECRET"):
        file.touch(mode=0o600)
        file.write_text(secret)
    typer.echo(f"there={str(bool(secret)).lower()}")


@app.command()
def tell(text: Annotated[str, typer.Argument(help="what to say")]) -> None:
    """Say something in Slack, where SLACK_WEBHOOK is set."""
    webhook = os.environ.get("SLACK_WEBHOOK")
    if not webhook:
        typer.echo("SLACK_WEBHOOK is not set: nothing was sent")
    elif reason := slack.tell(webhook, text):
        typer.echo(f"Slack was not told: {reason}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(command_line.run(app, "ci"))
