"""What can be asked about what a model says: the logit of a label of a text or of a word, of an answer, of a token."""

from typing import NamedTuple

from torch import Tensor

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.data.inputs import Problems
from lmkit.data.tables.spans import split_words
from lmkit.data.tables.table import Table
from lmkit.inspect.reading import check_view, decoder_ids, text_ids
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import settings_of
from lmkit.tasks.qa import SpanFinder, best_span
from lmkit.tasks.table import task_of, trained_task
from lmkit.tasks.tag import Tagger
from lmkit.tasks.task import Task


class Question(NamedTuple):
    """What a model reads, and which of its logits are asked about; of several the sum is."""

    ids: list[int]
    logits: list[tuple[int | None, int]]  # the place of a token, None for the whole text; number of a label or token
    says: str  # the label, answer or token that the logits are of
    types: list[int] | None = None  # which text of a pair each token belongs to
    written: list[int] | None = None  # what the decoder beside an encoder reads, unless that is the text once more
    chance: float | None = None  # of what it says; None where that is a number, or an answer
    likeliest: str = ""  # what the model says itself
    tags: list[tuple[str, str]] | None = None  # the words of a text and what a tagger says of each


def question(
    loaded: Pretrained, text: str, label: str | None = None, word: str | None = None, context: str | None = None,
    target: str | None = None,
) -> Question:  # fmt: skip
    """Returns the question about `label` or, where that is None, about what the model says itself.

    word: of taggers, a word or its number from 1; None: the first whose label is not O. context: of models that find
    answers, what the answer to `text` stands in. target: what an encoder-decoder has written. Raises UserError for a
    model without a head, and for what it does not read."""
    check_view(loaded, "--attribute")
    c = loaded.config
    if word is not None and c.head != "token":
        raise UserError(f"--word is of models that label words, and {loaded.folder} is none")
    if (context is None) == (c.head == "span"):
        raise UserError(
            "--context is where a model that finds answers looks for that to TEXT, and no other model has it"
        )
    written = decoder_ids(loaded, target)
    if c.head == "token":
        return _of_word(loaded, text, word, label)
    if c.head == "span" and context is not None:
        if label is not None:
            raise UserError(f"--label is of models that label texts or words, and {loaded.folder} finds answers")
        return _of_answer(loaded, text, context)
    ids, tokenizer, place = text_ids(loaded, text), loaded.needs_tokenizer(), None
    if c.head != "sequence":
        place = -1
        if c.stacks == "encoder":
            if tokenizer.mask_id not in ids:
                advice = (
                    f"\n  → write {tokenizer.special.mask} in TEXT" if tokenizer.special.mask else ", and this has none"
                )
                raise UserError(f"--attribute of an encoder is about the word at a mask{advice}")
            place = ids.index(tokenizer.mask_id)
    logits = loaded.logits([ids], decoder_input_ids=written and [written])[0]
    logits = logits if place is None else logits[place]
    number, best = _number(list(c.labels), label), int(logits.argmax())
    number = best if number is None else number
    says, likeliest = (c.labels[n] if c.labels else tokenizer.decode([n], skip_special=False) for n in (number, best))
    chance = _chance(logits, number, loaded.config_json.get("problem_type"))
    return Question(ids, [(place, number)], says, written=written, chance=chance, likeliest=likeliest)


def _chance(logits: Tensor, number: int, problem_type: str | None = None) -> float | None:
    """Returns the probability of a label or token. problem_type: of a classifier, as transformers names it."""
    if problem_type == "regression":
        return None
    chances = logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(-1)
    return float(chances[number])


def _number(labels: list[str], label: str | None) -> int | None:
    if label is None or label in labels:
        return None if label is None else labels.index(label)
    raise UserError(f"--label {label!r}: the model's labels are {', '.join(labels) or 'words of the text'}")


def _of_word(loaded: Pretrained, text: str, word: str | None, label: str | None) -> Question:
    settings = settings_of(loaded.folder)
    words = text.split()
    if settings is not None and settings.words == "punctuation":
        words = [text[start:end] for start, end in split_words(text)]
    task = _task(loaded)
    assert isinstance(task, Tagger)
    [example] = task.examples(_table({"words": words}))
    ids, firsts = example["tokens"].tolist(), example["firsts"]
    logits = loaded.logits([ids])[0]
    numbers = [None if at is None else int(logits[at].argmax()) for at in firsts]
    tags = [(word, "" if n is None else task.labels[n]) for word, n in zip(words, numbers, strict=True)]
    chosen = next((i for i, (_, tag) in enumerate(tags) if tag not in ("", "O")), 0)
    if word is not None:
        position = words.index(word) if word in words else int(word) - 1 if word.isdecimal() else -1
        if not 0 <= position < len(words):
            raise UserError(
                f"--word {word!r}: the text has {len(words):,} words\n  allowed: one of them, or its number from 1"
            )
        chosen = position
    if not words or (place := firsts[chosen]) is None or (predicted := numbers[chosen]) is None:
        raise UserError(f"{loaded.folder} reads no word there: it has {len(ids):,} tokens of {len(words):,} words")
    number = _number(list(task.labels), label)
    number = predicted if number is None else number
    says, likeliest = (f"{task.labels[n]} at {words[chosen]}" for n in (number, predicted))
    chance = _chance(logits[place], number)
    return Question(ids, [(place, number)], says, tags=tags, chance=chance, likeliest=likeliest)


def _of_answer(loaded: Pretrained, text: str, context: str) -> Question:
    """Returns the question about the start and the end of the best answer, in the window that it stands in."""
    task = _task(loaded)
    assert isinstance(task, SpanFinder)
    windows = task.examples(_table({"question": text, "context": context}))
    if not windows:
        raise UserError(f"the question leaves no room for a text in {task.max_length:,} tokens")
    typed = loaded.config.type_vocab_size > 1
    score = lambda w: loaded.logits([w["tokens"].tolist()], None, [w["types"].tolist()] if typed else None)[0]
    spans = [best_span(score(w).cpu().numpy(), w["inside"], task.config.max_answer) for w in windows]
    window, span = max(zip(windows, spans, strict=True), key=lambda pair: pair[1].score)
    if task.threshold is not None and min(s.null_score for s in spans) - span.score > task.threshold:
        note("the model says that there is no answer; this is about the likeliest one")
    answer = context[int(window["offsets"][span.first, 0]) : int(window["offsets"][span.last, 1])]
    types = window["types"].tolist() if typed else None
    return Question(window["tokens"].tolist(), [(span.first, 0), (span.last, 1)], answer, types)


def _task(loaded: Pretrained) -> Task:
    config = task_of(loaded.folder)
    assert config is not None, "a head for labels has a task"
    return trained_task(loaded.folder, loaded, config)


def _table(row: dict[str, object]) -> Table:
    return Table([row], ["TEXT"], {}, "text", Problems())
