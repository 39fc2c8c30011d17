"""What gpu_check.py runs: `lmkit` in processes of their own, and beside it what only Python can ask for.

The functions at the end are parts of checks. On a GPU each runs in a process of its own:

    python benchmarks/gpu_runs.py NAME '[ARGUMENT, ...]'     # prints what it returns, as JSON, on its last line
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch

from lmkit.plan.cost import Forecast, fastest, forecast_meshes
from lmkit.plan.hardware import HARDWARE, Hardware
from lmkit.plan.memory import Plan
from lmkit.plan.report import planned

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 240  # seconds for one process: none needs as many, so it hangs
WARM_UP = 5  # steps that are not timed
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
PEAK = (
    "import atexit, torch; atexit.register(lambda: print('peak', torch.cuda.max_memory_allocated()));"
    "from lmkit.commands.main import main; main()"
)


class Size(NamedTuple):
    """A GPT-2, and how it is trained here."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    context: int
    rows: int  # a step
    steps: int


TOY = Size(2, 32, 2, 320, 64, 4, 4)
SIZES = {
    "small": Size(4, 256, 4, 50304, 256, 32, 30),
    "124M": Size(12, 768, 12, 50304, 1024, 32, 30),
    "350M": Size(24, 1024, 16, 50304, 1024, 16, 20),
}


class Ran(NamedTuple):
    """What a run of `lmkit pretrain` left."""

    folder: Path
    code: int
    messages: str
    peak: float = 0.0  # bytes of the GPU

    def rows(self, log: str) -> list[dict[str, Any]]:
        path = self.folder / log
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def losses(self) -> list[float]:
        """Raises RuntimeError where the run failed or a loss is not finite."""
        values = [row["loss"] for row in self.rows("metrics.jsonl")]
        if self.code or not values or None in values:
            raise RuntimeError(f"code {self.code}, losses {values}: {self.messages[-600:]}")
        return values

    def step_seconds(self) -> float:
        """The median of those after warming up. Raises RuntimeError as `losses`."""
        assert self.losses
        return median_step([row["seconds"] for row in self.rows("timing.jsonl")])

    @property
    def place(self) -> str:
        facts = json.loads((self.folder / "environment.json").read_text())
        return f"{facts['processes']} processes, {facts['device']}, {facts['precision']}"


def median_step(seconds: list[float]) -> float:
    """Without the first steps, which compile and choose kernels."""
    return median(seconds[WARM_UP:] or seconds[1:])


class NoTime(Exception):
    """The time for all checks is over."""


class Machine:
    """What all checks share: the device, sizes, a scratch folder and the time that is left."""

    def __init__(self, toy: bool, scratch: Path, seconds: float):
        self.toy, self.scratch, self.deadline = toy, scratch, time.monotonic() + seconds
        self.gpu, self.numbers = torch.cuda.is_available(), count()  # of the runs
        # before there are threads, one of which could read what another is writing
        self.recipes = {size: self._write_recipe(size) for size in (TOY, *SIZES.values())}

    def _write_recipe(self, size: Size) -> Path:
        """A recipe of this size on the novels of the repository; a token is a byte, so no tokenizer is trained."""
        model = {k: v for k, v in size._asdict().items() if k not in ("rows", "steps")}
        batch = size.rows * size.context
        tree = {
            "model": {"family": "gpt2"} | model,
            "tokenizer": {"type": "bytes"},
            "data": {"train": f"{ROOT}/recipes/corpus/*.txt", "validation": 0, "separator": "\n\f\n"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": {"warmup": "10%"},
            "train": {"budget": f"{size.steps} steps", "batch": batch, "micro_batch": batch, "clip": 1.0},
            "evaluate": {"sample": None},
            "checkpoint": {"every": "0"},  # but for the last
        }
        path = self.scratch / f"{size.hidden_size}.yaml"
        path.write_text(json.dumps(tree))  # which is YAML too
        return path

    def size(self, name: str) -> Size:
        return TOY if self.toy else SIZES[name]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python with these arguments. Raises NoTime, TimeoutExpired."""
        left = self.deadline - time.monotonic()
        if left < 10:
            raise NoTime
        command = (sys.executable, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=min(left, LONGEST))

    def part(self, name: str, *arguments: Any) -> Any:
        """What the function `name` of this file returns. On a GPU it runs in a process of its own, since an error of
        CUDA spoils all that follows it; on a CPU it runs here, which saves imports."""
        if not self.gpu:
            with redirect_stdout(sys.stderr):
                return globals()[name](*arguments)
        got = self.call(__file__, name, json.dumps(arguments))
        if got.returncode:
            raise RuntimeError(got.stderr[-600:])
        return json.loads(got.stdout.splitlines()[-1])

    @cache  # noqa: B019 - one machine lives as long as the script; checks share runs
    def pretrain(self, size: Size, *changes: str, processes: int = 1) -> Ran:
        folder = self.scratch / f"run-{next(self.numbers)}"
        several = ("--processes", str(processes)) if processes > 1 else ()
        arguments = ("pretrain", str(self.recipes[size]), *changes, *several, "--out", str(folder))
        got = self.call("-c", PEAK, *arguments)
        peak = next((float(line.split()[1]) for line in got.stdout.splitlines() if line.startswith("peak ")), 0.0)
        return Ran(folder, got.returncode, got.stderr, peak)

    def timed_run(self, name: str, compiled: bool) -> Ran:
        """The run of this size whose speed and memory are of interest, in micro-batches as `lmkit plan` advises."""
        size, changes = self.size(name), [f"train.compile={'on' if compiled else 'off'}"]
        if self.gpu:
            plan = self.plan(size)
            changes += [f"train.micro_batch={plan.micro_batch}", f"train.recompute={str(plan.recompute).lower()}"]
        return self.pretrain(size, *changes)

    def hardware(self) -> Hardware | None:
        """The data sheet of this GPU, if lmkit has it; a PCIe card has the name of a faster one."""
        name = torch.cuda.get_device_name().lower() if self.gpu else ""
        known = (hw for key, hw in HARDWARE.items() if key.partition("-")[0] in name and "pcie" not in name)
        return next(known, None)

    def planned(self, size: Size) -> Plan:
        return planned(self.recipes[size], (), None)[0]

    def plan(self, size: Size) -> Forecast:
        """What `lmkit plan` says of one such GPU."""
        estimates = forecast_meshes(self.planned(size), self.hardware() or HARDWARE["h100"], 1)
        return fastest(estimates) or estimates[0]


# ---------------------------------------------------------------- parts of checks


def on_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def parity() -> dict[str, Any]:
    """For each family of tests/model/families.py: the largest differences of logits from transformers' in float32 and
    under bf16 autocast, and that of transformers' own logits between the two (`rounding`), all as shares of the largest
    logit; or what it raised."""
    sys.path.insert(0, str(ROOT))
    from tests.model.families import CASES

    found: dict[str, Any] = {}
    for name in CASES:
        try:
            found[name] = family_gaps(name)
        except Exception as e:
            found[name] = f"{type(e).__name__}: {e}"[:300]
    return found


@torch.no_grad()
def family_gaps(name: str) -> dict[str, float]:
    from tests.model.families import decoder_inputs, inputs, ours, reference

    torch.set_float32_matmul_precision("highest")  # no TF32
    device = on_device()
    theirs = reference(name)
    model = ours(theirs).to(device)
    theirs = theirs.to(device)
    feed = {key: value.to(device) for key, value in inputs(theirs).items()}
    ids, keep = feed["input_ids"], feed["attention_mask"].bool()
    targets = decoder_inputs().to(device) if model.config.stacks == "encoder_decoder" else None
    more = {} if targets is None else {"decoder_input_ids": targets}
    scored = keep if targets is None else slice(None)  # logits of padding mean nothing
    logits = {}
    for precision in ("fp32", "bf16"):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            got = model.head(model(ids, keep, types=feed.get("token_type_ids"), targets=targets))
            logits[precision] = got.float()[scored], theirs(**feed, **more).logits.float()[scored]
    largest = logits["fp32"][1].abs().max()
    gap = lambda a, b: ((a - b).abs().max() / largest).item()
    rounding = gap(logits["bf16"][1], logits["fp32"][1])
    return {"fp32": gap(*logits["fp32"]), "bf16": gap(*logits["bf16"]), "rounding": rounding}


def train_as_torchrun_does(recipe: str, out: str, changes: list[str], mesh: bool) -> int:
    """`lmkit pretrain` as the only process of torchrun. By itself it shards nothing then; with `mesh` it is told that
    it is a mesh of FSDP2 and tensor parallelism. Returns the exit code."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from lmkit.training import pretraining_run, run_shell
    from lmkit.training.distributed import world

    class SharesMatrices(world.World):
        shares_matrices = True

    def join(*_: Any) -> world.World:
        backend = "cpu:gloo,cuda:nccl" if on_device() == "cuda" else "gloo"  # as lmkit's own `join`
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        shape = init_device_mesh(on_device(), (1, 1, 1), mesh_dim_names=("replicate", "shard", "tensor"))
        return SharesMatrices(mesh=shape, saving=dist.new_group(backend="gloo"))

    with (
        mock.patch.dict(os.environ, TORCHRUN),
        mock.patch.object(run_shell, "join", join if mesh else world.join),
    ):
        try:
            return pretraining_run.start(Path(recipe), tuple(changes), Path(out))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def train_transformers(size: dict[str, int], gpu: bool) -> list[float]:
    """Seconds of each step of a plain loop around transformers' GPT-2; with a GPU compiled and in bf16. Its batch size,
    clipping and optimizer are those of the recipe, and like lmkit's its loop reads the loss of every step."""
    import transformers

    s = Size(**size)
    config = transformers.GPT2Config(
        vocab_size=s.vocab_size, n_embd=s.hidden_size, n_layer=s.num_layers, n_head=s.num_heads, n_positions=s.context,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).to(on_device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if gpu else model
    text = torch.frombuffer(bytearray((ROOT / "recipes/corpus/austen-emma.txt").read_bytes()), dtype=torch.uint8)
    batch, seconds = s.rows * s.context, list[float]()
    for step in range(s.steps):
        began = time.perf_counter()
        start = step * batch % (len(text) - batch)
        tokens = text[start : start + batch].view(s.rows, s.context).long().to(on_device())
        with torch.autocast(on_device(), torch.bfloat16, enabled=gpu):
            loss = run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def write_beside_transformers(folder: str, batches: list[int], prompt: int, new: int) -> list[dict[str, float]]:
    """For each batch size: the seconds in which lmkit and transformers write `new` tokens after `prompt` tokens, the
    faster of two times after one to warm up; how many rows are equal, and how many differ from a near tie on."""
    import transformers

    import lmkit
    from lmkit.generation.engine import generate
    from lmkit.generation.sampling import SamplingConfig

    loaded = lmkit.load(folder, device=on_device())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).to(on_device()).eval()
    # a configuration of its own, since both are to write on past an end token
    greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=new, pad_token_id=0)
    ids = loaded.needs_tokenizer().encode((ROOT / "recipes/corpus/austen-emma.txt").read_text()[:100_000])
    found = []
    for batch in batches:
        prompts = [ids[i * 1000 : i * 1000 + prompt] for i in range(batch)]
        feed = torch.tensor(prompts, device=on_device())
        config = SamplingConfig(max_tokens=new, temperature=0)
        write = lambda prompts=prompts, config=config: [row.ids for row in generate(loaded.model, prompts, config)]
        ask = lambda feed=feed: theirs.generate(feed, attention_mask=torch.ones_like(feed), generation_config=greedy)
        (ours, mine), (other, beside) = fastest_of_two(write), fastest_of_two(ask)
        pairs = list(zip(prompts, ours, other[:, prompt:].tolist(), strict=True))
        equal = sum(one == two for _, one, two in pairs)
        ties = sum(differ_by_a_near_tie(theirs, *row) for row in pairs if row[1] != row[2])
        found.append({"batch": batch, "ours": mine, "theirs": beside, "equal": equal, "near_ties": ties})
    return found


def fastest_of_two(write: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds; one call before warms up."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        written = write()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return written, min(times[1:])


@torch.no_grad()
def differ_by_a_near_tie(model: Any, prompt: list[int], one: list[int], two: list[int]) -> bool:
    """Whether the model's logits of the first two tokens that differ are within 1e-4 of the largest."""
    first = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
    logits = model(torch.tensor([prompt + one[:first]], device=on_device())).logits[0, -1]
    return bool((logits[one[first]] - logits[two[first]]).abs() < 1e-4 * logits.abs().max())


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what lmkit prints is no answer
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))), file=answers)
