"""Conversations as a model reads them: its chat template, and which tokens are the assistant's own words.

A template is Jinja, as transformers runs it, and the text is the same byte for byte. Models come from anywhere, so it
runs in a sandbox. Control tokens are those that the template writes: what a message says is text, even where it spells
one."""

import json
import os
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from lmkit.base.errors import ModelError, UserError
from lmkit.text.sandbox import Sandbox, limits
from lmkit.text.tokenizer import ROLES, Tokenizer, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Messages = Sequence[Mapping[str, Any]]  # of `role`, `content` and what else a template reads; `weight` is ours
Tools = Sequence[Mapping[str, Any]] | None  # JSON schemas of functions, as templates read them

TEMPLATE_FILE = "chat_template.jinja"  # of a model folder
CHATML = (  # OpenAI's markup as published templates have it, behind the model's BOS
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NANOCHAT = (  # as karpathy/nanochat renders conversations: what the system says opens the user's first message
    "{{ bos_token }}{% set system = '' %}{% set turns = messages %}"
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|user_start|>' + (system if loop.first else '') + message['content'] + '<|user_end|>' }}"
    "{% elif message['role'] == 'assistant' and not (system and loop.first) %}"
    "{{ '<|assistant_start|>' + message['content'] + '<|assistant_end|>' }}"
    "{% else %}{{ raise_exception('after a system message comes the user; other roles are user and assistant') }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"
)
CONTROL = re.compile(r"<\|\w+\|>")  # what tokens look like that a template of no model needs
MARK = "\ufdd0"  # stands inside a token that a message spells, and is taken out again: no character, so in no text
SAMPLE = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user", "assistant")]


class Spelled(UserError):
    """A message spells a control token, and this tokenizer cannot keep that as text."""


class EncodedChat(NamedTuple):
    ids: list[int]
    learnt: list[bool]  # the words of the assistant, and the token that ends its turn


# ---------------------------------------------------------------- templates


class _Generation(jinja2.ext.Extension):
    """{% generation %}: marks the assistant's words for transformers; here they are found for every template."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@dataclass(frozen=True)
class ChatTemplate:
    source: str
    special: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token and so on, as templates name them
    name: str = "chatml"  # for messages
    foreign: bool = True  # to the model: its tokenizer may lack tokens of it

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """Raises UserError."""
        env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        env.filters["tojson"] = _tojson
        env.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            return env.bounded(self.source)
        except jinja2.TemplateSyntaxError as e:
            raise UserError(f"chat template {self.name}, line {e.lineno}: {e.message}") from None
        except (RecursionError, SyntaxError, ValueError, MemoryError) as e:  # of the Python that Jinja makes of it
            raise UserError(f"chat template {self.name}: cannot be read: {str(e) or type(e).__name__}") from None

    def render(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None) -> str:
        """The text, up to where the assistant begins to write if `add_generation_prompt`. Raises UserError with what
        the template says of such messages."""
        given = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt, **self.special}
        compiled = self._compiled
        try:
            return compiled.render(messages=[dict(m) for m in messages], **given, **limits())
        except Exception as e:  # a template is a program of someone else: it can raise anything
            raise UserError(f"chat template {self.name}: {str(e) or type(e).__name__}") from None

    def missing(self, tokenizer: Tokenizer) -> list[str]:
        """Control tokens that the template writes and the tokenizer lacks."""
        named = dict.fromkeys(CONTROL.findall(self.source)) if self.foreign else {}
        return [token for token in named if tokenizer.token_id(token) not in tokenizer.special_ids]


def find_template(folders: Sequence[Path], setting: str, tokenizer: Tokenizer) -> ChatTemplate:
    """setting: `auto`, the template in the first of a model's `folders` that has one, else nanochat's form where the
    tokenizer has its tokens, else ChatML; `chatml`; or a Jinja file. Raises UserError and ModelError."""
    special = {f"{role}_token": token for role in ROLES if (token := getattr(tokenizer.special, role)) is not None}
    if setting not in ("auto", "chatml"):
        try:
            return ChatTemplate(Path(os.path.expanduser(setting)).read_text(encoding="utf-8"), special, setting)
        except (OSError, ValueError) as e:
            raise UserError(
                f"task.template {setting}: cannot be read: {e}\n  allowed: auto, chatml, or a Jinja file"
            ) from None
    for folder in folders if setting == "auto" else ():
        if (source := own_template(folder)) is not None:
            return ChatTemplate(source, special, f"of {folder}", foreign=False)
    nanochat = ChatTemplate(NANOCHAT, special, "nanochat")
    if setting == "auto" and not nanochat.missing(tokenizer):
        return nanochat
    return ChatTemplate(CHATML, special)


def own_template(folder: Path) -> str | None:
    """Of the model in this folder. Raises ModelError."""
    file = folder / TEMPLATE_FILE
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ModelError(f"{file}: cannot be read: {e}") from None
    said = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(said, list):  # several, of which one is for conversations without tools
        said = next((t.get("template") for t in said if isinstance(t, dict) and t.get("name") == "default"), None)
    return said if isinstance(said, str) else None


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The same tokenizer with more control tokens; new ones get the ids behind all others. Raises ModelError for a
    tokenizer that would give them ids in use."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(tokenizer.definition))
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    changed = Tokenizer(backend, tokenizer.special, tokenizer.settings)
    new = [i for token in tokens if tokenizer.token_id(token) is None and (i := changed.token_id(token)) is not None]
    if any(i < tokenizer.vocab_size for i in new):
        raise ModelError(f"the tokenizer cannot take new tokens ({', '.join(tokens)}): its ids have holes")
    return changed


# ---------------------------------------------------------------- ids


class Chat:
    """A tokenizer and a template: conversations into ids. All raise UserError for what the template refuses, and
    `Spelled` (see there)."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self.tokenizer, self.template = tokenizer, template
        # ids that stand for words the vocabulary lacks are no control tokens, whatever files call them
        self.control = tokenizer.special_ids - {tokenizer.unk_id}
        longest_first = sorted((t for t, i in tokenizer.vocab.items() if i in self.control), key=len, reverse=True)
        self._spelled = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)()")
        self._finding, self._hiding = self._reader(longest_first, False), self._reader(longest_first, True)

    def _reader(self, control: list[str], hide: bool) -> "Backend":
        """hide: text that spells a control token stays text. Post-processing would trim offsets."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(json.dumps(self.tokenizer.definition | {"post_processor": None}))
        # as transformers does with the tokens that have a role
        backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in self._plain(control)])
        backend.encode_special_tokens = hide
        return backend

    def _plain(self, control: list[str]) -> list[str]:
        added = {token["content"] for token in self.tokenizer.definition["added_tokens"]}
        return [token for token in control if token not in added]

    def prompt(self, messages: Messages) -> list[int]:
        """What the assistant goes on from."""
        return self._ids(self._text(messages, True))[0]

    def encode(self, messages: Messages, tools: Tools = None) -> list[EncodedChat]:
        """The conversation with the assistant's turns marked, as one; where the template writes earlier turns in
        another way than the last, the part up to each turn by itself, in which only that turn is learnt. A turn of
        `weight` 0 is read and not learnt.

        Raises UserError for a template in which an answer does not go on from its prompt, or does not end."""
        whole, turns = (
            self._text(messages, tools=tools),
            list[tuple[str, int]](),
        )  # text up to the end of a turn, where it begins
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and message.get("weight", 1):
                before = self._text(messages[:i], True, tools)
                after = self._text(messages[: i + 1], tools=tools)
                if not after.startswith(before):
                    raise UserError(
                        f"chat template {self.template.name}: an answer does not go on from its prompt\n"
                        f"  the prompt ends {before[-40:]!r}, where the conversation has {_other(after, before)!r}\n"
                        "  → task.template=chatml, or a Jinja file whose add_generation_prompt writes what answers have"
                    )
                turns.append((after, len(before)))
        if all(whole.startswith(after) for after, _ in turns):
            return [self._encoded(whole, [(start, len(after)) for after, start in turns])]
        return [self._encoded(after, [(start, len(after))]) for after, start in turns]

    @cached_property
    def ends(self) -> list[int]:
        """The ids that end a turn of the assistant."""
        found = (e.ids[i] for e in self.encode(SAMPLE) for i in range(len(e.ids)) if _last(e.learnt, i))
        return list(dict.fromkeys(found))

    def ignored(self, messages: Messages, tools: Tools = None) -> list[str]:
        """The keys of messages, and `tools`, without which the template writes the same."""
        keys = dict.fromkeys(key for m in messages for key in m if key not in ("role", "content", "weight"))
        if not keys and not tools:
            return []
        whole = self._text(messages, tools=tools)
        variants: dict[str, tuple[Messages, Tools]] = {
            key: ([{k: v for k, v in m.items() if k != key} for m in messages], tools) for key in keys
        }
        if tools:
            variants["tools"] = (messages, None)
        return [key for key, variant in variants.items() if self._text_or_none(*variant) == whole]

    def _text_or_none(self, messages: Messages, tools: Tools) -> str | None:
        try:
            return self._text(messages, tools=tools)
        except UserError:
            return None

    def _text(self, messages: Messages, prompt: bool = False, tools: Tools = None) -> str:
        """Rendered, with MARK behind the first character of each control token that a message spells."""
        marked = [
            {key: value if key == "role" else self._marked(value) for key, value in message.items() if key != "weight"}
            for message in messages
        ]
        try:
            return self.template.render(marked, prompt, self._marked(tools))
        except UserError:  # OpenAI writes null beside calls of tools, which templates that join texts cannot take
            if all(message["content"] is not None for message in marked):
                raise
            texts = [message | {"content": message["content"] or ""} for message in marked]
            return self.template.render(texts, prompt, self._marked(tools))

    def _marked(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._marked(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(v) for v in value]
        if not isinstance(value, str):
            return value
        if MARK in value:
            raise Spelled(f"a message holds {MARK!r}, which is no character")
        while found := self._spelled.search(value):  # those that overlap take several turns
            if len(found[0]) == 1:
                raise Spelled(f"a message holds {found[0]!r}, which is a control token of this tokenizer")
            value = self._spelled.sub(lambda m: m[0][0] + MARK + m[0][1:], value)
        return value

    def _encoded(self, text: str, spans: list[tuple[int, int]]) -> EncodedChat:
        ids, starts = self._ids(text)
        learnt = [False] * len(ids)
        for start, end in spans:
            low, high = bisect_left(starts, start), bisect_left(starts, end)
            last = high - 1
            while last >= low and ids[last] not in self.control:
                last -= 1
            behind = starts[last + 1] if last + 1 < len(ids) else len(text)
            if last < low or text[behind:end].strip():
                raise UserError(
                    f"chat template {self.template.name}: an answer ends {text[:end][-30:]!r}, with no control token,"
                    " so a model could not learn where to stop\n"
                    "  → write {{ eos_token }} behind the assistant's content, or task.template=chatml"
                )
            while last > low and ids[last - 1] in self.control:  # the first of several that end it
                last -= 1
            learnt[low : last + 1] = [True] * (last + 1 - low)
        return EncodedChat(ids, learnt)

    def _ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the character each begins at in `text`, where they rise. Raises Spelled."""
        if MARK not in text:
            found = self._finding.encode(text, add_special_tokens=False)
            return found.ids, [start for start, _ in found.offsets]
        # Text between control tokens, encoded by itself, is what the tokenizer makes of the whole: most do, but not
        # those that treat the beginning of a text in a way of their own. A text as near as can be shows which it is.
        near = re.sub(f".{MARK}", "", text, flags=re.DOTALL)
        ids, starts = self._pieces(text)
        written = [i for i in ids if i in self.control]
        expected = [self.tokenizer.token_id(t) for t in self._spelled.findall(text)]
        whole = self._finding.encode(near, add_special_tokens=False).ids
        if written != expected or self._pieces(near)[0] != whole:
            raise Spelled("a message spells a control token, which this tokenizer cannot keep as text")
        return ids, starts

    def _pieces(self, text: str) -> tuple[list[int], list[int]]:
        ids, starts, at = list[int](), list[int](), 0
        for number, piece in enumerate(self._spelled.split(text)):
            if number % 2:
                ids.append(self.tokenizer.vocab[piece])
                starts.append(at)
            else:
                places = [at + i for i, c in enumerate(piece) if c != MARK] + [at + len(piece)]
                found = self._hiding.encode(piece.replace(MARK, ""), add_special_tokens=False)
                ids += found.ids
                starts += [places[start] for start, _ in found.offsets]
            at += len(piece)
        return ids, starts


def _last(learnt: list[bool], i: int) -> bool:
    return learnt[i] and not (i + 1 < len(learnt) and learnt[i + 1])


def _other(text: str, prompt: str) -> str:
    """What stands in a text where it departs from `prompt`."""
    at = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))
    return text[max(0, at - 20) : at + 20]
