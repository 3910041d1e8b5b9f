"""Pass this host's package index, proxy and certificates on to pip in a build.

`make .env` uses this before anything is installed: import only the standard library.
"""

import configparser
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


def pip_configuration(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return a pip.conf with this host's index and proxy for use in a build, and the path of its certificates.

    Where pip has no configuration, the text is empty and the path None.
    """
    parser = configparser.ConfigParser(interpolation=None)
    home = Path.home()
    files = ("/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf", f"{sys.prefix}/pip.conf")
    parser.read((*files, environ.get("PIP_CONFIG_FILE", "")))
    pip: dict[str, str] = {}
    for section in filter(parser.has_section, ("global", "install")):
        pip |= parser[section]
    for name, value in environ.items():
        if name.startswith("PIP_"):
            pip[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    candidates = (pip.get("cert"), environ.get("REQUESTS_CA_BUNDLE"), environ.get("SSL_CERT_FILE"))
    certificates = next((file for file in candidates if file and Path(file).is_file()), None)
    lines = [f"{key} = {' '.join(pip[key].split())}" for key in PIP_OPTIONS if key in pip]
    if certificates:
        lines.append("cert = /run/secrets/certificates")
    return "\n".join(["[global]", *lines, ""]) if lines else "", certificates


@contextmanager
def pip_secrets(environ: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield build options that pass this host's index, proxy and certificates to pip as secrets."""
    text, certificates = pip_configuration(environ)
    with tempfile.TemporaryDirectory(prefix="iris-pip-") as folder:
        options = []
        if certificates:
            options.append(f"--secret=id=certificates,src={certificates}")
        if text:
            file = Path(folder) / "pip.conf"
            file.write_text(text)
            options.append(f"--secret=id=pip.conf,src={file}")
        yield options
