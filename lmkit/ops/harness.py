"""lm-evaluation-harness (Gao et al.) over lmkit's models: the class `lmkit` of its models, and a run of its tasks.

What is scored is what the harness's own `hf` model scores with a batch of one, so that the numbers are the same: the
ids of contexts and continuations, where they are cut, how texts are written and ended. Encoders, which `hf` does not
take, give pseudo-log-likelihoods and write nothing."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate, tasks
from lm_eval.api.metrics import mean
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import get_metric_aggregation, register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lmkit.base.display import note
from lmkit.base.errors import UserError, did_you_mean
from lmkit.evaluation.intervals import Estimate, means
from lmkit.evaluation.likelihood import Likelihood, Question, likelihoods
from lmkit.generation.engine import generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import Pretrained, load, say_not_followed

LOCAL_BUILDERS = ("json", "csv", "text", "parquet", "arrow", "pandas")  # of `datasets`, that read files
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
HARMLESS = ("until", "max_gen_toks", "do_sample", "num_beams", "use_cache")


@register_model("lmkit")
class HarnessModel(TemplateLM):
    """A model of lmkit for the harness: `lm_eval.simple_evaluate(model="lmkit", model_args="pretrained=FOLDER")` after
    this module is imported."""

    def __init__(self, pretrained: str | Pretrained, device: str | None = None, **_: Any):
        super().__init__()
        self.loaded = load(pretrained, device=device or "auto") if isinstance(pretrained, str) else pretrained
        self.words, self.stacks = self.loaded.needs_tokenizer(), self.loaded.config.stacks
        self.backend = "seq2seq" if self.stacks == "encoder_decoder" else "causal"

    @property
    def eot_token_id(self) -> int | None:
        return self.words.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text that has no context."""
        ids = (self.words.bos_id, self.words.eos_id, self.words.cls_id)
        return next((i for i in ids if i is not None), None)

    @property
    def max_length(self) -> int:
        c, longest = self.loaded.config, self.words.settings.get("model_max_length")
        if c.positions != "relative":
            return c.context
        return self.loaded.config_json.get("n_positions") or (longest if longest and longest < 1e9 else 2048)

    @property
    def tokenizer_name(self) -> str:
        return self.words.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.loaded.chat(str(self.loaded.folder)).template.source if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation; without the generation prompt it ends with the last message, as
        transformers' `continue_final_message` has it."""
        text = self.loaded.chat(str(self.loaded.folder)).template.render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        last = last if last in text else last.strip()
        return text[: text.rindex(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        bos = self.words.bos_id
        if add_special_tokens is None:
            begun = bos is not None and string.startswith(self.words.decode([bos], skip_special=False))
            add_special_tokens = not begun
        return self.words.encode_control(string, framed=add_special_tokens and self.stacks != "encoder")

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **_: Any) -> list[Likelihood]:
        bare = [self.prefix_token_id] if self.stacks == "encoder" else None  # [CLS] stands before every text anyway
        questions = [Question([] if context == bare else context, words) for _, context, words in requests]
        return self._likelihoods(questions)

    def _likelihoods(self, questions: list[Question]) -> list[Likelihood]:
        start = self.loaded.decoder_start if self.stacks == "encoder_decoder" else None
        return likelihoods(self.loaded.model, self.words, questions, start)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        questions, owners = list[Question](), list[int]()
        for number, request in enumerate(requests):
            parts = self._windows(self.tok_encode(request.args[0]))
            questions += parts
            owners += [number] * len(parts)
        sums = [0.0] * len(requests)
        for owner, scored in zip(owners, self._likelihoods(questions), strict=True):
            sums[owner] += scored.log_prob
        return sums

    def _windows(self, ids: list[int]) -> list[Question]:
        if self.stacks == "encoder":
            room = self.max_length - 2
            return [Question([], ids[i : i + room]) for i in range(0, len(ids), room)]
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
        return [Question(*make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.loaded.check_use("generate")
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        texts = dict[int, str]()
        for numbers in alike.values():
            prompts = [requests[number].args[0] for number in numbers]
            texts |= zip(numbers, self._write(prompts, requests[numbers[0]].args[1]), strict=True)
        return [texts[number] for number in range(len(requests))]

    def _write(self, prompts: list[str], asked: dict[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(asked, 256)
        most, stops = settings["max_gen_toks"], [stop for stop in settings["until"] if stop]
        if idle := [f"{k}={v}" for k, v in settings.items() if k not in (*SAMPLED, *HARMLESS)]:
            note(f"generation settings that are not followed here: {', '.join(idle)}")
        chosen = {key: settings[key] for key in SAMPLED if key in settings} if settings["do_sample"] else {}
        sampling = {"temperature": 0.0} | chosen
        ids = [self.tok_encode(prompt) for prompt in prompts]
        room, limits = self.max_length, [most] * len(ids)
        if self.stacks == "decoder":
            room -= most
        else:  # `hf` counts the source among the tokens of the text
            limits = [min(len(i), room) + most - 1 for i in ids]
        if room <= 0:
            raise UserError(f"a task writes {most:,} tokens, and the model's context has {self.max_length:,}")
        loaded, texts = self.loaded, dict[int, str]()
        for limit in sorted(set(limits)):
            rows = [n for n, other in enumerate(limits) if other == limit]
            config = SamplingConfig(max_tokens=limit, stop=tuple(stops), rules=loaded.rules, **sampling)
            cut = [ids[n][-room:] for n in rows]
            written = generate(loaded.model, cut, config, loaded.eos, tokenizer=self.words, opening=loaded.opening)
            texts |= zip(rows, (self._cut(self.words.decode(c.ids), stops) for c in written), strict=True)
        return [texts[n] for n in range(len(prompts))]

    @staticmethod
    def _cut(text: str, stops: list[str]) -> str:
        for stop in stops:
            text = text.split(stop)[0]
        return text


def run_tasks(
    loaded: Pretrained, named: list[str], folder: Path | None, shots: int | None, limit: int | None,
    apply_chat_template: bool = False, by: str | None = None,
) -> dict:  # fmt: skip
    """Returns what the harness says of tasks: names of its own or of YAML files in `folder`, or paths of such files.

    apply_chat_template: as its own option, rows are conversations by the model's template, examples ahead their turns.
    by: a column that rows of one of the tasks must have.
    Says which of them need a data set that is not on this machine, before it is fetched. Raises UserError for a name
    that is no task."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names, folders = list[str](), [folder] if folder else []
    for name in named:
        if Path(name).is_dir():
            names += TaskManager(include_path=name, include_defaults=False).all_subtasks
            folders.append(Path(name))
        else:
            names.append(name)
    if not names:
        raise UserError(f"--tasks {','.join(named)}: holds no YAML file of a task, and no .jsonl file of CORE")
    manager = _manager(names, folders)
    remote = sorted({source for name in names for source in _remote(manager, name)})
    if remote:
        note(
            f"the data sets {', '.join(remote)} are taken from Hugging Face's cache here, or else fetched from its hub"
        )
    say_not_followed(loaded)
    try:
        if by:
            _check_column(by, simple_evaluate("dummy", tasks=names, limit=1, task_manager=manager, bootstrap_iters=0))
        return simple_evaluate(
            HarnessModel(loaded), tasks=names, num_fewshot=shots, limit=limit, task_manager=manager,
            bootstrap_iters=1000, apply_chat_template=apply_chat_template,
        )  # fmt: skip
    except (OSError, KeyError, ValueError) as e:  # a data set that cannot be had, a YAML file that says too little
        what = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise UserError(f"--tasks {','.join(names)}: the harness ends with {what}") from e


def _check_column(column: str, results: dict[str, Any]) -> None:
    columns = {name: list(rows[0]["doc"]) for name, rows in results["samples"].items() if rows}
    if not any(column in names for names in columns.values()):
        listed = "".join(f"\n  {name}: {', '.join(names)}" for name, names in columns.items())
        raise UserError(f"--by {column}: no task has this column{listed}")


def answer_facts(name: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Returns what a model made of one row of a task: `right`, where a score of the row says so; `loss`, the nats of
    the right answer, or of the text; `given`, the number of the choice, or what was written."""
    responses, target = sample["filtered_resps"], sample["target"]
    scores = [sample[metric] for metric in sample["metrics"] if isinstance(sample[metric], int | float)]
    right = bool(scores[0]) if scores and scores[0] in (0, 1) else None
    loss, given = None, responses[0]
    if isinstance(given, Likelihood | tuple):
        logs = [response[0] for response in responses]
        given = int(np.argmax(logs)) if len(logs) > 1 else bool(given[1])
        wanted = 0 if len(logs) == 1 else target
        loss = -logs[wanted] if isinstance(wanted, int) and 0 <= wanted < len(logs) else None
    elif isinstance(given, float):
        loss, given = -given, None
    place = f"{name}:{sample['doc_id']}"
    return {"place": place, "right": right, "loss": loss, "given": given, "row": sample["doc"]}


def slice_scores(samples: list[dict[str, Any]]) -> dict[str, Estimate]:
    """Returns the scores of some rows of a task: the means of those that each row has alone, and of the others the
    harness's own, where it has one."""
    scores = dict[str, Estimate]()
    for metric in samples[0]["metrics"]:
        values = [sample[metric] for sample in samples]
        aggregate = get_metric_aggregation(metric)
        if aggregate in (None, mean) and all(isinstance(value, int | float) for value in values):
            scores |= means({metric: values})
        elif aggregate is not None:
            scores[metric] = Estimate(float(aggregate(values)), None, None)
    return scores


def _manager(names: list[str], folders: list[Path]) -> TaskManager:
    """Returns an index that has all the tasks. That of all the harness's own takes half a minute, so tasks in a folder
    of their own name are looked for there first. Raises UserError for a name that is no task."""
    own = [name for name in names if not Path(name).is_file()]
    near = [folder for folder in Path(tasks.__file__).parent.iterdir()
            if folder.is_dir() and any(name.startswith(folder.name) for name in own)]  # fmt: skip
    manager = TaskManager(include_path=[*near, *folders], include_defaults=False)
    if not set(own) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=folders)
    for name in own:
        if name not in manager.task_index:
            raise UserError(f"--tasks {name}: no task of the harness{did_you_mean(name, manager.all_tasks)}")
    return manager


def _remote(manager: TaskManager, name: str) -> set[str]:
    """Returns the data sets of a task, group or tag that are no local files."""
    entry = manager.task_index.get(name)
    config = (entry.cfg if entry else load_yaml(Path(name), resolve_func=False)) or {}
    parts = config["task"] if isinstance(config.get("task"), list) else entry.tags if entry and not entry.cfg else ()
    if parts:
        names = [part if isinstance(part, str) else part.get("task", "") for part in parts]
        return {source for part in names if part in manager.task_index for source in _remote(manager, part)}
    source = config.get("dataset_path")
    files = str((config.get("dataset_kwargs") or {}).get("data_files", ""))
    local = source in LOCAL_BUILDERS and "://" not in files
    return set() if source is None or local or Path(source).exists() else {source}
