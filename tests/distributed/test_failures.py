"""What happens to a job when one of its processes is killed, hangs or is told to stop: through the real command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lmkit.base.errors import STOPPED_RESUMABLE, ProcessFailed, UserError
from lmkit.recipe.pretraining import ParallelConfig
from lmkit.training.distributed.world import join, layout
from tests.distributed.conftest import ROOT, environment, free_port, write_texts

RECIPE = """
model: {family: gpt2, hidden_size: 32, num_layers: 2, num_heads: 4, context: 32}
tokenizer: {type: bytes}
data: {train: corpus.txt, validation: 20%, separator: "\\n"}
optimizer: {name: muon, lr: 0.02, embedding_lr: 0.01, head_lr: 0.01}
train: {budget: 75 steps, batch: 256}
evaluate: {every: 30, sample: null}
checkpoint: {every: 15, keep: 99}
parallel: {patience: 6}
"""
FILES = ("model.safetensors", "training/optimizer.safetensors")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(folder)
        write_texts()
        Path("r.yaml").write_text(RECIPE)
        yield folder


def started(*args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(job: subprocess.Popen, within: float = 600) -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    try:
        _, said = job.communicate(timeout=within)
    finally:
        job.kill()
    return job.returncode, said


def ranks(job: subprocess.Popen) -> dict[int, int]:
    """rank -> pid of the processes that a launcher has started."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = place.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == job.pid:
            found |= {int(v[5:]): int(place.name) for v in variables if v.startswith(b"RANK=")}
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_step(run: str, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        path = Path(run, "metrics.jsonl")
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} did not reach step {step}")


def assert_same(run: str, straight: str) -> None:
    assert Path(run, "metrics.jsonl").read_bytes() == Path(straight, "metrics.jsonl").read_bytes()
    for name in FILES:
        one, other = (Path(r, "checkpoints/step-00000075", name).read_bytes() for r in (run, straight))
        assert one == other, name


@pytest.fixture(scope="module")
def straight(here) -> str:
    """By torchrun, as on many machines; all others by --processes."""
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
         "-m", "lmkit", "pretrain", "r.yaml", "--out", "straight"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("done in") == 1  # said once, not by every process
    return "straight"


def test_a_killed_process_is_named_and_its_run_goes_on_bit_for_bit(straight):
    job = started("pretrain", "r.yaml", "--out", "killed", "--processes", "2")
    wait_for_step("killed", 20)
    os.kill(ranks(job)[1], signal.SIGKILL)
    began = time.monotonic()
    code, said = ended(job)
    assert code == ProcessFailed.exit_code and time.monotonic() - began < 60
    assert "process 1 (pid" in said and "SIGKILL" in said and "--resume killed --processes 2" in said
    assert "Traceback" not in said
    assert ended(started("pretrain", "--resume", "killed", "--processes", "2"))[0] == 0
    assert_same("killed", straight)


def test_with_max_restarts_it_goes_on_by_itself(straight):
    job = started("pretrain", "r.yaml", "--out", "restarted", "--processes", "2", "--max-restarts", "1")
    wait_for_step("restarted", 20)
    os.kill(ranks(job)[0], signal.SIGKILL)  # the one that writes
    code, said = ended(job)
    assert code == 0 and "resuming restarted at step" in said, said
    assert_same("restarted", straight)


def test_a_process_that_hangs_is_named_and_all_end(here):
    job = started("pretrain", "r.yaml", "--out", "hung", "--processes", "2")
    wait_for_step("hung", 40)
    os.kill(ranks(job)[1], signal.SIGSTOP)
    code, said = ended(job)
    assert code == ProcessFailed.exit_code, said
    assert "for 6 s" in said and "process 1: " in said and "no sign of life" in said, said
    assert "File" in Path("hung/stacks/process-0.txt").read_text()


@pytest.mark.parametrize("who", ["all", "one"])
def test_a_signal_to_the_launcher_or_to_one_process_stops_all_with_a_checkpoint(who, here):
    out = f"stopped-{who}"
    tensor = "parallel.tensor=2" if who == "one" else "parallel.tensor=1"  # where sums leave the second process out
    job = started("pretrain", "r.yaml", tensor, "--out", out, "--processes", "2", "--max-restarts", "1")
    wait_for_step(out, 20)
    if who == "all":
        job.send_signal(signal.SIGTERM)
    else:
        os.kill(ranks(job)[1], signal.SIGUSR1)
    code, said = ended(job)
    assert code == STOPPED_RESUMABLE, said
    status = json.loads(Path(out, "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] >= 20  # the next test resumes such a run


def test_processes_save_and_end_with_their_launcher(straight):
    """Killed as a machine's own reaper kills: nobody is told, and the next start finds the run free."""
    job = started("pretrain", "r.yaml", "--out", "orphans", "--processes", "2")
    wait_for_step("orphans", 20)
    workers = ranks(job).values()
    job.kill()
    job.communicate()
    deadline = time.monotonic() + 20  # for a step and a save on a busy machine
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)]
    assert json.loads(Path("orphans/status.json").read_text())["state"] == "stopped"
    assert ended(started("pretrain", "--resume", "orphans", "--processes", "2"))[0] == 0
    assert_same("orphans", straight)


def test_a_mistake_is_told_once_and_ends_all(here):
    code, said = ended(started("pretrain", "r.yaml", "data.train=nowhere.txt", "--out", "x", "--processes", "2"))
    assert code == 3 and said.count("no such file") == 1 and "Traceback" not in said, said
    code, said = ended(started("pretrain", "r.yaml", "parallel.shards=3", "parallel.data=fsdp", "--processes", "2"))
    assert code == 2 and said.count("parallel.shards 3 does not divide") == 1, said


def test_processes_that_were_given_different_recipes_are_refused(here):
    """As where one of two machines has another copy of it."""
    port = free_port()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "lmkit", "pretrain", "r.yaml", f"train.seed={rank}", "--out", "apart"],
            env=environment(2, rank, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    (code, said), (other, _) = ended(jobs[0]), ended(jobs[1])
    assert code == other == 2 and "another recipe than rank 0: [1]" in said and "Traceback" not in said, said
    assert not Path("apart", "recipe.yaml").exists()


def test_variables_of_a_launcher_that_is_not_there(monkeypatch, capsys):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE is set.*RANK"):
        join(ParallelConfig(), torch.device("cpu"))
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        for name, value in (("RANK", 0), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", taken.getsockname()[1])):
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ProcessFailed, match="do not meet at localhost"):
            join(ParallelConfig(), torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="needs 2 processes"):
        join(ParallelConfig(tensor=2), torch.device("cpu"))
    assert join(ParallelConfig(data="fsdp"), torch.device("cpu")).size == 1
    assert "there is one process, so nothing is sharded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "keys, size, found",
    [({}, 6, (6, 1, 1)), ({"data": "fsdp"}, 6, (1, 6, 1)), ({"data": "fsdp", "shards": 2, "tensor": 3}, 12, (2, 2, 3))],
)
def test_layouts(keys, size, found):
    assert layout(ParallelConfig(**keys), size) == found
    with pytest.raises(UserError, match="does not divide"):
        layout(ParallelConfig(tensor=5), size)


@pytest.fixture
def two_machines():
    """Network namespaces with a cable between them: (name, interface, address) of each."""
    ends = [(f"lmkit{os.getpid()}{x}", f"lm{os.getpid() % 10**6}{x}", f"10.99.0.{n}") for x, n in (("a", 1), ("b", 2))]
    ip = lambda *args: subprocess.run(["ip", *args], check=True, capture_output=True)
    try:
        for name, _, _ in ends:
            ip("netns", "add", name)
        ip("link", "add", ends[0][1], "netns", ends[0][0], "type", "veth",
           "peer", "name", ends[1][1], "netns", ends[1][0])  # fmt: skip
        for name, interface, address in ends:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            for link in ("lo", interface):
                ip("-n", name, "link", "set", link, "up")
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no network namespaces here: {e}")
    yield ends
    for name, _, _ in ends:
        ip("netns", "del", name)


def test_both_sides_of_a_cut_cable_end_and_say_whom_they_lost(here, two_machines):
    jobs = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "lmkit", "pretrain", "r.yaml", "--out", "cut",
             "train.budget=5000 steps"],
            env=environment(2, rank, 29511) | {"MASTER_ADDR": two_machines[0][2], "GLOO_SOCKET_IFNAME": interface},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, (name, interface, _) in enumerate(two_machines)
    ]  # fmt: skip
    wait_for_step("cut", 40)
    subprocess.run(["ip", "-n", two_machines[0][0], "link", "set", two_machines[0][1], "down"], check=True)
    for rank, job in enumerate(jobs):
        code, said = ended(job)
        assert code == ProcessFailed.exit_code and "for 6 s" in said, said
        assert f"process {1 - rank}: " in said and "no sign of life" in said
