"""`lmkit doctor` finds what is wrong with a machine and says what to do."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmkit.base import environment
from lmkit.ops import doctor


def found(findings, state: str = "wrong") -> dict[str, doctor.Finding]:
    findings = [findings] if isinstance(findings, doctor.Finding) else list(findings)
    return {f.check: f for f in findings if f.state == state}


def test_the_command_checks_everything_and_its_exit_code_says_whether_something_is_wrong(tmp_path):
    got = subprocess.run(
        [sys.executable, "-m", "lmkit", "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    rows = [json.loads(line) for line in got.stdout.splitlines()]
    wanted = {"packages", "compile", "disk", "cache", "temp", "files", "cpu", "threads", "gpu", "speed"}
    assert wanted <= {row["check"] for row in rows}, got.stderr
    wrong = [row for row in rows if row["state"] == "wrong"]
    assert got.returncode == bool(wrong) and all(row["cure"] for row in wrong)
    assert not (tmp_path / "runs").exists()


def test_for_people_a_problem_stands_above_its_cure(monkeypatch, capsys):
    for name in ("check_python", "check_cpu", "check_gpu", "check_speed", "check_limits"):
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setattr(doctor, "check_compiler", lambda: doctor.Finding("compile", "ok", "fine"))
    monkeypatch.setattr(doctor, "check_disk", lambda: [doctor.Finding("disk", "wrong", "too small", "buy one")])
    assert doctor.check_machine(as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [" ✓ compile  fine", " ✗ disk     too small", "            → buy one", "1 problem"]
    monkeypatch.setattr(doctor, "check_disk", list)
    assert doctor.check_machine(as_json=False) == 0


def test_packages_that_are_old_missing_or_broken_come_with_the_command_that_mends_them(monkeypatch):
    versions = {"numpy": "1.26.4", "tokenizers": None}
    monkeypatch.setattr(doctor, "version", lambda p: versions.get(p, "99.0"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # importing it fails
    told = [(f.found, f.cure) for f in doctor.check_python()]
    assert ("numpy: 1.26.4 is too old, lmkit needs 2 or newer", "pip install 'numpy>=2'") in told
    assert any("tokenizers: not installed" in text for text, _ in told)
    assert any("sentencepiece cannot be loaded" in text for text, _ in told)
    assert len(told) == 3


def test_versions_are_compared_as_numbers():
    assert doctor._numbers("2.13.0+cpu") >= doctor._numbers("2.13") > doctor._numbers("2.9.1")


def test_threads_are_held_against_the_cores_there_are(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(doctor, "usable_cores", lambda: threads - 1)
    assert found(doctor.check_cpu())["threads"].cure == f"export OMP_NUM_THREADS={threads - 1}"
    monkeypatch.setattr(doctor, "usable_cores", lambda: threads + 1)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert "unset it" in found(doctor.check_cpu(), "note")["threads"].cure
    monkeypatch.delenv("OMP_NUM_THREADS")  # torch chose so itself: one for each core, not for each hyperthread
    assert "threads" in found(doctor.check_cpu(), "ok")


def test_a_compiler_is_tried_and_what_it_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "train.compile stays off" in found(doctor.check_compiler(), "note")["compile"].found
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho 'f.cpp:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    problem = found(doctor.check_compiler())["compile"]
    assert "Python.h" in problem.found and "python3-dev" in problem.cure
    fake.write_text("#!/bin/sh\nexit 0\n")
    assert "compile" in found(doctor.check_compiler(), "ok")
    fake.write_text("#!/bin/sh\nexec /bin/sleep 10\n")
    monkeypatch.setattr(doctor, "LONGEST", 0.1)
    assert "busy" in found(doctor.check_compiler(), "note")["compile"].found


def test_places_that_cannot_be_written_to_or_are_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()  # a file where a folder is to be
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "runs/cache"))
    bad = found(doctor.check_disk())
    assert "cannot be written to" in bad["disk"].found and "LMKIT_CACHE" in bad["cache"].cure
    Path("runs").unlink()
    monkeypatch.delenv("LMKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found(doctor.check_disk()) == {}
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage._replace(free=10**8))
    assert found(doctor.check_disk())["disk"].found == "100 MB free in ./runs: too little for checkpoints"


@pytest.mark.parametrize(("files", "state"), [(100, "wrong"), (512, "note"), (1024, "ok"), (-1, "ok")])
def test_few_file_descriptors_are_a_problem(monkeypatch, files, state):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, -1))
    assert "files" in found(doctor.check_limits(), state)


@pytest.mark.parametrize(
    ("built_for", "gpu", "runs"),
    [
        (["sm_80", "sm_90"], (8, 6), True),  # of its generation, older
        (["sm_86"], (8, 0), False),  # newer than it
        (["sm_80", "sm_90"], (12, 0), False),  # of another generation
        (["sm_80", "compute_90"], (12, 0), True),  # translated by the driver
        (["sm_90a"], (9, 0), True),
        (["sm_100", "sm_120"], (12, 0), True),
        (["compute_90"], (8, 0), False),
    ],
)
def test_a_gpu_runs_what_torch_was_built_for(built_for, gpu, runs):
    assert doctor.runs_on(built_for, *gpu) is runs


@pytest.mark.parametrize(("own", "files", "cores", "memory"), [
    ("0::/", {"cpu.max": "150000 100000", "memory.max": "1000000"}, 2, 1_000_000),
    ("0::/pod/me", {"pod/cpu.max": "100000 100000", "pod/me/cpu.max": "max 100000", "pod/memory.max": "max",
                    "pod/me/memory.max": "2000000"}, 1, 2_000_000),
    ("3:cpu,cpuacct:/me\n2:memory:/me", {"cpu/me/cpu.cfs_quota_us": "50000", "cpu/me/cpu.cfs_period_us": "100000",
                                         "memory/me/memory.limit_in_bytes": "3000000"}, 1, 3_000_000),
    ("2:memory:/docker/x", {"memory/memory.limit_in_bytes": "4000000"}, 99, 4_000_000),
    ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 99, 2**99),
], ids=["v2", "v2 below others", "v1", "v1 seen from inside", "none"])  # fmt: skip
def test_limits_of_containers_are_those_of_the_groups_a_process_is_in(own, files, cores, memory, tmp_path, monkeypatch):
    for name, content in files.items() | {("own", own)}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(environment, "GROUPS", tmp_path)
    monkeypatch.setattr(environment, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(99))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (environment.usable_cores(), environment.usable_memory()) == (cores, min(memory, whole))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert environment.usable_cores() == min(cores, os.cpu_count())
