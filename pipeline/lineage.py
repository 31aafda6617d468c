"""Where a run came from: commit, command, versions."""

import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

PACKAGES = ("vaegan", "torch", "ray", "mlflow", "pyarrow")
PASSWORD = re.compile(r"//[^/\s]+@")
"""In an address, up to its last @: a password may hold one."""


def lineage(ray_job_id: str) -> dict[str, str]:
    """Tags of a run. The commit is that of the working folder, marked where files differ from it."""
    tags = {
        "vaegan.command": redacted(shlex.join(["vaegan", *sys.argv[1:]])),
        "vaegan.ray_job_id": ray_job_id,
        "vaegan.python": platform.python_version(),
    }
    tags |= {f"vaegan.version.{package}": version(package) for package in PACKAGES}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["vaegan.git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def redacted(text: str) -> str:
    """Without the names and passwords of addresses: for what others will read."""
    return PASSWORD.sub("//***@", text)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
