"""Records what is needed to understand a result later, and to reproduce it: versions, code, command, machine.

There is no torch here. Environment variables are not recorded, since they may hold secrets; what looks like a secret on
the command line is left out."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lmkit.base.errors import ModelError

RUN_FORMAT = 1  # of run directories; a change that an older version cannot read raises it
PACKAGE = Path(__file__).parents[1]  # lmkit/
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
REDACTED = "[left out]"
_SECRET_NAME = r"(?:token|secret|password|passwd|credentials?|authorization|(?:api|access|private|secret)[_-]?key)"
_OPTION = re.compile(rf"--?(?:[\w-]*[_-])?{_SECRET_NAME}", re.IGNORECASE)  # the value of the option is the next word
_ASSIGNED = re.compile(rf"(-*(?:[\w.-]*[_.-])?{_SECRET_NAME}=)(.+)", re.IGNORECASE | re.DOTALL)
_VARIABLE = re.compile(r"([A-Z][A-Z0-9_]*=)(.+)", re.DOTALL)  # recipe keys are lower-case
_BY_LOOK = re.compile(  # of Hugging Face, OpenAI and the like, GitHub, GitLab, AWS, Slack, Google; JSON web tokens
    r"\b(?:hf_|api_org_|sk-|gh[pousr]_|github_pat_|glpat-|AKIA|xox[abprs]-|AIza|eyJ)[A-Za-z0-9_.-]{12,}"
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password in an address
)


def environment() -> dict[str, Any]:
    """Returns what a run records of this process and machine; memory is in bytes."""
    return {
        "run_format": RUN_FORMAT,
        "command": redacted(sys.argv),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
        **git_state(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory": usable_memory(),
    }


def read_environment(run: Path) -> dict[str, Any]:
    """Returns what a run recorded when it began. Raises ModelError where that cannot be read."""
    file = run / "environment.json"
    try:
        facts = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as e:
        problem = e.strerror if isinstance(e, OSError) else f"damaged ({e})"
        raise ModelError(
            f"{file}: {problem}, so whether data and software are the same cannot be told\n"
            "  → restore the file, or start a new run"
        ) from None
    if (number := facts.get("run_format", RUN_FORMAT)) > RUN_FORMAT:
        newer = facts.get("versions", {}).get("lmkit", "a newer version")
        raise ModelError(f"{run}: written by lmkit {newer}, in format {number}; this one reads up to {RUN_FORMAT}\n"
                         "  → install that version")  # fmt: skip
    return facts


def redacted(arguments: list[str]) -> list[str]:
    """Returns a command line without what looks like a secret.

    That is the X in `--token X`, `password=X` and `NAME=X`, and tokens whose form is known."""
    shown_arguments, secret = list[str](), False
    for argument in arguments:
        shown = _ASSIGNED.sub(rf"\1{REDACTED}", argument, count=1) if _ASSIGNED.fullmatch(argument) else argument
        shown = _VARIABLE.sub(rf"\1{REDACTED}", shown, count=1) if _VARIABLE.fullmatch(shown) else shown
        shown = REDACTED if secret else _BY_LOOK.sub(REDACTED, shown)
        shown_arguments.append(shown.encode(errors="backslashreplace").decode())  # bytes that are no UTF-8 fit no JSON
        secret = _OPTION.fullmatch(argument) is not None
    return shown_arguments


# ---------------------------------------------------------------- software


def requirements() -> dict[str, str]:
    """Returns the packages that lmkit needs, with the oldest version of each that works.

    It is {} for a copy of lmkit that is not installed."""
    try:
        lines = metadata.requires("lmkit") or []
    except metadata.PackageNotFoundError:
        return {}
    matches = (re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines if ";" not in line)
    return {match[1]: match[2] for match in matches if match}


def versions() -> dict[str, str | None]:
    """Returns the versions of lmkit and of everything it needs; None for what is not installed."""
    return {package: version(package) for package in ["lmkit", *sorted(requirements())]}


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """Returns the commit of the checkout that lmkit runs from, whether its code has changed since, and a fingerprint of
    these changes.

    They are None for an installed package, also if it is installed inside another repository."""
    root = _git("rev-parse", "--show-toplevel").strip() if shutil.which("git") else ""
    if not root or Path(root).resolve() != PACKAGE.parent.resolve():
        return {"git": None, "git_dirty": None, "git_changes": None}
    code = ("--", "lmkit", "recipes")
    new = _git("ls-files", "--others", "--exclude-standard", *code).splitlines()
    changes = [_git("diff", "HEAD", *code), *new, *(_read(str(PACKAGE.parent / name)) for name in new)]
    dirty = any(changes)
    digest = hashlib.sha256("\0".join(changes).encode()).hexdigest() if dirty else None
    return {"git": _git("rev-parse", "HEAD").strip() or None, "git_dirty": dirty, "git_changes": digest}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True).stdout


# ---------------------------------------------------------------- machine


def cpu_model() -> str:
    name = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Returns how many cores this process may use, by its affinity and by the limit of its container.

    torch does not look at the latter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu"):
        line = _read(group / "cpu.max") or " ".join(_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        quota, period = (*line.split(), "", "")[:2]
        if quota.isdigit() and period.isdigit() and int(quota) > 0:
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory() -> int:
    """Returns the usable memory in bytes: that of the machine, or the container's limit if that is lower."""
    files = (group / name for group in _control_groups("memory") for name in ("memory.max", "memory.limit_in_bytes"))
    limits = (_read(file).strip() for file in files)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def _control_groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups, of version 2 or 1, that limit this process: its own and its parents.

    Inside a container, its own folder may be at another place than its path says; then the container's limit is in the
    root folder."""
    for line in (_read(OWN_GROUPS) or "0::/").splitlines():
        _, named, path = line.split(":", 2)
        if not named or controller in named.split(","):
            root = GROUPS / controller if named else GROUPS
            group = root / path.strip("/")
            yield from (group, *(folder for folder in group.parents if folder.is_relative_to(root)))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
