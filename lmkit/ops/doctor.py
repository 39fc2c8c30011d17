"""`lmkit doctor`: whether this machine is fit for training, and what to do where it is not."""

import importlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lmkit.base.environment import cpu_model, requirements, usable_cores, usable_memory, version
from lmkit.base.errors import StorageError
from lmkit.base.units import show_bytes
from lmkit.data.tokens.cache import cache_folder

MARKS = {"ok": "✓", "note": "–", "wrong": "✗"}
IMPORTED = (
    "torch",
    "numpy",
    "pyarrow",
    "tokenizers",
    "safetensors",
    "sentencepiece",
)  # built with C, and quick to load
LITTLE_DISK, LITTLE_SHM = 1e9, 1e9  # bytes: a few checkpoints of a small model; what NCCL is comfortable with
FEW_FILES, ENOUGH_FILES = 256, 1024  # descriptors: macOS's default, and Linux's
COMPILERS = ("g++", "clang++", "c++")
COMPILED = '#include <Python.h>\n#include <omp.h>\nextern "C" int f() { return omp_get_max_threads(); }\n'
LONGEST = 20  # seconds for the compiler


@dataclass(frozen=True)
class Finding:
    check: str
    state: Literal["ok", "note", "wrong"]
    found: str
    cure: str = ""


def check_machine(as_json: bool) -> int:
    """Prints a line a check. Returns the exit code: 1 where something is wrong."""
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(check_compiler)  # takes seconds, as importing torch does
        findings = [*check_python(), compiling.result(), *check_disk(), *check_limits()]
    if "torch" in sys.modules:  # else it is among what was found
        findings += [*check_cpu(), *check_gpu(), *check_speed()]
    wrong = sum(f.state == "wrong" for f in findings)
    if as_json:
        print("\n".join(json.dumps(asdict(f), ensure_ascii=False) for f in findings))
        return int(wrong > 0)
    print(f"lmkit {version('lmkit')} · Python {platform.python_version()} · torch {version('torch')}"
          f" · {platform.system()} {platform.machine()}")  # fmt: skip
    for f in findings:
        print(f" {MARKS[f.state]} {f.check:<8} {f.found}" + (f"\n{'':12}→ {f.cure}" if f.cure else ""))
    print("nothing is wrong" if not wrong else f"{wrong} problem{'s' if wrong > 1 else ''}")
    return int(wrong > 0)


# ---------------------------------------------------------------- software


def check_python() -> Iterator[Finding]:
    """Compares Python and the packages that lmkit needs with what it asks for."""
    least = str(metadata.metadata("lmkit")["Requires-Python"] or "").removeprefix(">=")
    if _numbers(platform.python_version()) < _numbers(least):
        yield Finding("python", "wrong", f"{platform.python_version()}, and lmkit needs {least}", "a newer Python")
    needed = requirements()
    have = {package: version(package) for package in needed}
    bad = [p for p, v in have.items() if v is None or _numbers(v) < _numbers(needed[p])]
    for package in bad:
        what = "not installed" if have[package] is None else f"{have[package]} is too old"
        install = f"pip install '{package}>={needed[package]}'"
        yield Finding("packages", "wrong", f"{package}: {what}, lmkit needs {needed[package]} or newer", install)
    for name in [n for n in IMPORTED if n not in bad]:
        try:
            importlib.import_module(name)
        except Exception as e:
            bad.append(name)
            again = f"pip install --force-reinstall {name}"
            yield Finding("packages", "wrong", f"{name} cannot be loaded: {str(e).splitlines()[0]}", again)
    if not bad:
        yield Finding("packages", "ok", f"all {len(needed)} that lmkit needs, recent enough")


def _numbers(text: str) -> tuple[int, ...]:
    """Returns the numbers of a version: (2, 13, 0) of `2.13.0+cpu`."""
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0]))


def check_compiler() -> Finding:
    """Tries whether a C++ compiler builds what torch.compile builds: with OpenMP, against Python's headers."""
    compiler = next((c for c in COMPILERS if shutil.which(c)), None)
    if compiler is None:
        return Finding("compile", "note", "no C++ compiler, so train.compile stays off", "install g++ to have it")
    try:
        with tempfile.TemporaryDirectory(prefix="lmkit-doctor-") as folder:
            source = Path(folder) / "f.cpp"
            source.write_text(COMPILED)
            include = sysconfig.get_paths()["include"]
            command = [compiler, "-shared", "-fPIC", "-fopenmp", "-I", include, str(source), "-o", f"{folder}/f.so"]
            completed = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return Finding("compile", "note", f"{compiler} took over {LONGEST} s for three lines; is the machine busy?")
    except OSError as e:
        return Finding("compile", "wrong", f"{compiler} cannot be run: {e.strerror}", "set TMPDIR to a writable folder")
    if completed.returncode == 0:
        return Finding("compile", "ok", f"{compiler} builds what torch.compile needs")
    lines = completed.stderr.strip().splitlines()
    problem = next((line for line in lines if "error" in line), lines[-1] if lines else f"code {completed.returncode}")
    header = " (package python3-dev)" if "Python.h" in problem else ""
    return Finding(
        "compile", "wrong", f"{compiler}: {problem}", f"install what is missing{header}, or train.compile=off"
    )


# ---------------------------------------------------------------- machine


def check_cpu() -> Iterator[Finding]:
    import torch

    cores, threads, omp_threads = usable_cores(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    kind = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    yield Finding("cpu", "ok", f"{cores} cores ({kind}) · {show_bytes(usable_memory())} memory")
    if threads > cores:
        slow = f"torch uses {threads} threads on {cores} cores, which wait for each other"
        yield Finding("threads", "wrong", slow, f"export OMP_NUM_THREADS={cores}")
    elif threads < cores and omp_threads:
        yield Finding(
            "threads", "note", f"{threads} on {cores} cores: OMP_NUM_THREADS is {omp_threads}", "unset it to use all"
        )
    else:
        yield Finding("threads", "ok", f"{threads} on {cores} cores")


def check_gpu() -> Iterator[Finding]:
    """Lists GPUs, and whether this build of torch can use them."""
    import torch

    build, hidden = torch.version.cuda or torch.version.hip, os.environ.get("CUDA_VISIBLE_DEVICES")
    with warnings.catch_warnings(record=True) as torch_warnings:  # torch says in a warning why it cannot
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    has_nvidia = any(Path("/dev").glob("nvidia[0-9]*"))
    if available:
        for i in range(torch.cuda.device_count()):
            yield from _gpu(torch, i)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple GPU (train.device mps)")
    elif has_nvidia and hidden is not None and not re.match(r"\d|GPU-", hidden):
        yield Finding("gpu", "note", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "unset it to use it")
    elif has_nvidia and build is None:
        cure = "install a CUDA build: https://pytorch.org/get-started/locally"
        yield Finding("gpu", "wrong", f"an NVIDIA GPU is here, and torch {torch.__version__} is a CPU build", cure)
    elif has_nvidia:
        why = f": {str(torch_warnings[-1].message).splitlines()[0]}" if torch_warnings else ""
        cure = "a newer driver, or the build of torch for the CUDA version that nvidia-smi shows"
        yield Finding("gpu", "wrong", f"torch for CUDA {build} cannot use the NVIDIA GPU{why}", cure)
    else:
        of = (
            "torch is a CPU build, which fits"
            if build is None
            else f"torch for CUDA {build} works on the CPU all the same"
        )
        yield Finding("gpu", "note", f"none found; {of}")


def _gpu(torch: Any, i: int) -> Iterator[Finding]:
    name, memory = torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory
    major, minor = torch.cuda.get_device_capability(i)
    if torch.version.cuda and not runs_on(torch.cuda.get_arch_list(), major, minor):
        built = ", ".join(torch.cuda.get_arch_list())
        what = f"{i}: {name} is sm_{major}{minor}; torch for CUDA {torch.version.cuda} is built for {built}"
        yield Finding("gpu", "wrong", what, "a build of torch for it: https://pytorch.org/get-started/locally")
        return
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding("gpu", "ok", f"{i}: {name}, {show_bytes(memory)} · {'bf16' if bf16 else 'no bf16: fp16 is used'}")


def runs_on(built_for: list[str], major: int, minor: int) -> bool:
    """Returns whether a GPU of this compute capability runs code for one of `sm_80`, `sm_90a`, `compute_90`, ...:
    machine code of its own generation, not newer than it; or intermediate code, which the driver translates, of any
    before."""
    for name in built_for:
        digits = re.sub(r"\D", "", name)
        of = (int(digits[:-1]), int(digits[-1]))
        if of <= (major, minor) and (name.startswith("compute") or of[0] == major):
            return True
    return False


def check_speed() -> Iterator[Finding]:
    """Measures matrix products: the best of a few."""
    import torch

    from lmkit.training.precision import multiplies_bf16

    def measured(n: int, device: str, dtype: torch.dtype, finish: Callable[[], None]) -> float:
        a, times = torch.ones(n, n, device=device, dtype=dtype), []
        for _ in range(8):
            began = time.perf_counter()
            a @ a
            finish()
            times.append(time.perf_counter() - began)
        return 2 * n**3 / min(times)

    shown = f"{measured(1024, 'cpu', torch.float32, lambda: None) / 1e9:,.0f} GFLOP/s fp32"
    if multiplies_bf16(torch.device("cpu")):
        shown += f", {measured(1024, 'cpu', torch.bfloat16, lambda: None) / 1e9:,.0f} bf16"
    shown += " in matrix products"
    try:
        if torch.cuda.is_available():
            precise = torch.cuda.is_bf16_supported(including_emulation=False)
            flops = measured(8192, "cuda", torch.bfloat16 if precise else torch.float16, torch.cuda.synchronize)
            shown += f" on the CPU · {flops / 1e12:,.0f} TFLOP/s {'bf16' if precise else 'fp16'} on GPU 0"
    except RuntimeError as e:
        yield Finding("gpu", "wrong", f"a matrix product on GPU 0 fails: {str(e).splitlines()[0]}", "see nvidia-smi")
    yield Finding("speed", "ok", shown)


# ---------------------------------------------------------------- places and limits


def check_disk() -> Iterator[Finding]:
    yield _place("disk", Path("runs"), "./runs", "--out PLACE/NAME, on another disk")
    try:
        yield _place("cache", cache_folder(), str(cache_folder()), "set LMKIT_CACHE to another folder")
    except StorageError as e:
        problem, _, cure = str(e).partition("\n  → ")
        yield Finding("cache", "wrong", problem, cure)
    try:
        yield Finding("temp", "ok", tempfile.gettempdir())
    except OSError:
        yield Finding("temp", "wrong", "no folder for temporary files can be written to", "set TMPDIR to one")


def _place(check: str, wanted: Path, shown: str, cure: str) -> Finding:
    """Tries whether files can be made in `wanted`, which may not be there yet, and how many bytes are left."""
    place = wanted.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as e:
        return Finding(check, "wrong", f"{shown}: {place} cannot be written to: {e.strerror}", cure)
    if free < LITTLE_DISK:
        return Finding(check, "wrong", f"{show_bytes(free)} free in {shown}: too little for checkpoints", cure)
    return Finding(check, "ok", f"{show_bytes(free)} free in {shown}")


def check_limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files >= ENOUGH_FILES:
        yield Finding(
            "files", "ok", f"{'any number of' if files == resource.RLIM_INFINITY else f'{files:,}'} open files"
        )
    else:
        raised = f"ulimit -n {ENOUGH_FILES}" + (
            "" if most < 0 or most >= ENOUGH_FILES else f", once the hard limit of {most} is raised"
        )
        yield Finding("files", "wrong" if files < FEW_FILES else "note", f"only {files:,} open files allowed", raised)
    if sys.platform != "linux":
        return
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.is_dir() and os.access(shm, os.W_OK) else 0
    if free >= LITTLE_SHM:
        yield Finding("shm", "ok", f"{show_bytes(free)} free in /dev/shm")
    else:
        many = len(list(Path("/dev").glob("nvidia[0-9]*"))) > 1
        what = f"{show_bytes(free)} free in /dev/shm: " + (
            "little for several GPUs" if many else "enough for one process"
        )
        yield Finding("shm", "wrong" if many else "note", what, "docker run --shm-size=2g, for several processes")
