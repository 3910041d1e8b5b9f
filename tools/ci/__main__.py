"""`python -m tools.ci`: steps of the workflows on GitHub that are neither `make` nor `delivery`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from delivery import changes
from delivery.release import IMAGE
from delivery.repository import Repository
from tools import command_line, programs
from tools.ci import image_push as images
from tools.ci import slack, supply_chain
from tools.ci.manifest_diff import manifest_diff
from tools.ci.promotion import promotion as promotion_summary
from tools.progress import step

SBOM = Path(".local/sbom.cdx.json")
app = typer.Typer(help="Steps of the workflows.", pretty_exceptions_enable=False, no_args_is_help=True)
Digest = Annotated[str, typer.Argument(help="sha256:... of the pushed image")]


@app.command()
def diff(base: Annotated[str, typer.Argument(help="a commit or branch")]) -> None:
    """Print the changes that HEAD would make in the cluster, compared with a base, as Markdown."""
    with step("programs: kustomize") as say:
        kustomize = programs.folder("kustomize", say) / "kustomize"
    typer.echo(manifest_diff(Path(), base, kustomize), nl=False)


@app.command()
def push() -> None:
    """Build and push the serving image of model/, and print its digest as an output."""
    typer.echo(f"digest={images.push(Path('model'), IMAGE)}")


@app.command()
def sbom(digest: Digest) -> None:
    """Write the SBOM of an image to .local/sbom.cdx.json."""
    with step("SBOM") as say:
        supply_chain.write_sbom(f"{IMAGE}@{digest}", SBOM, say)


@app.command()
def sign(digest: Digest) -> None:
    """Sign an image and its SBOM with the identity of the workflow that runs this."""
    with step("signature") as say:
        supply_chain.sign(f"{IMAGE}@{digest}", SBOM, supply_chain.keyless(), say)


@app.command()
def verify(digest: Digest) -> None:
    """Fail unless the release workflow of main has signed an image and its SBOM."""
    with step("verified") as say:
        supply_chain.verify(f"{IMAGE}@{digest}", supply_chain.keyless(), say)


@app.command()
def promotion() -> None:
    """Print the release that a promotion would ship, with its scores and the model card, as Markdown."""
    typer.echo(promotion_summary(Repository(Path())))


@app.command()
def digest() -> None:
    """Print the digest of dev's release as an output."""
    typer.echo(f"digest={changes.running(Repository(Path()), 'dev').digest}")


@app.command()
def kubeconfig(file: Annotated[Path, typer.Argument(help="the file that kubectl reads")]) -> None:
    """Write KUBECONFIG_SECRET to a file that only its owner can read; print as an output whether it is set."""
    secret = os.environ.get("KUBECONFIG_SECRET")
    if secret:
        file.touch(mode=0o600)
        file.write_text(secret)
    else:
        typer.echo("KUBECONFIG is not set: the cluster is not asked for anything", err=True)
    typer.echo(f"configured={'true' if secret else 'false'}")


@app.command()
def notify(text: Annotated[str, typer.Argument(help="the message")]) -> None:
    """Send a message to Slack, if SLACK_WEBHOOK is set."""
    if webhook := os.environ.get("SLACK_WEBHOOK"):
        slack.notify(webhook, text)
    else:
        typer.echo("SLACK_WEBHOOK is not set: no message was sent")


if __name__ == "__main__":
    sys.exit(command_line.run(app, "ci"))
