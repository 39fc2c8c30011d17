"""Turns conversations into what a model reads, by its chat template, and marks which tokens the assistant wrote.

A template is Jinja, and gives the same text as in transformers, byte for byte. It runs in a sandbox, since models come
from anywhere. Only the template can write control tokens; what a message says stays text, even where it spells one."""

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
from lmkit.base.gguf_file import is_gguf
from lmkit.text.gguf import template_of_gguf
from lmkit.text.sandbox import Sandbox, set_limits
from lmkit.text.tokenizer import ROLES, Tokenizer, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Messages = Sequence[Mapping[str, Any]]  # `role`, `content` and other keys of a template; `weight` is lmkit's own
Tools = Sequence[Mapping[str, Any]] | None  # JSON schemas of functions, as templates read them

TEMPLATE_FILE = "chat_template.jinja"  # in a model folder
CHATML = (  # OpenAI's markup as in published templates, after the model's BOS
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NANOCHAT = (  # as in karpathy/nanochat, where the system message is put before the user's first message
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
CONTROL = re.compile(r"<\|\w+\|>")  # the form of control tokens in templates that do not come with the model
MARK = "\ufdd0"  # put inside control tokens that a message spells, and removed again; Unicode says it is no character
SAMPLE = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user", "assistant")]


class Spelled(UserError):
    """A message spells a control token, which this tokenizer cannot keep as text."""


class EncodedChat(NamedTuple):
    ids: list[int]
    learnt: list[bool]  # True for the words of the assistant, and for the token that ends its turn


def fold_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the conversation with its first message, if that is the system's, before the text of the user's first."""
    folded = [dict(message) for message in messages]
    first_user = next((message for message in folded if message["role"] == "user"), None)
    if not folded or folded[0]["role"] != "system" or first_user is None:
        return folded
    first_user["content"] = f"{folded[0]['content']}\n\n{first_user['content']}"
    return folded[1:]


# ---------------------------------------------------------------- templates


class _Generation(jinja2.ext.Extension):
    """Reads {% generation %}, which marks the assistant's words for transformers, and ignores it.

    Here the assistant's words are found without such marks."""

    tags = {"generation"}  # noqa: RUF012 - Jinja expects it like this

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
    """A template in Jinja that makes a text of a conversation."""

    source: str
    special: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token and so on, as templates name them
    name: str = "chatml"  # its name in errors
    foreign: bool = True  # whether it does not come with the model, so that the tokenizer may lack some of its tokens

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """Returns the compiled template. Raises UserError for one that cannot be read."""
        env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        env.filters["tojson"] = _tojson
        env.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            return env.bounded(self.source)
        except jinja2.TemplateSyntaxError as e:
            raise UserError(f"chat template {self.name}, line {e.lineno}: {e.message}") from None
        except (RecursionError, SyntaxError, ValueError, MemoryError) as e:  # Python raises these for Jinja's code
            raise UserError(f"chat template {self.name}: cannot be read: {str(e) or type(e).__name__}") from None

    def render(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None) -> str:
        """Returns the text of a conversation; with `add_generation_prompt`, up to where the assistant begins to write.

        Raises UserError, with the template's own words, where it refuses these messages."""
        given = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt, **self.special}
        compiled = self._compiled
        try:
            return compiled.render(messages=[dict(m) for m in messages], **given, **set_limits())
        except Exception as e:  # a template is somebody's program, which can raise anything
            raise UserError(f"chat template {self.name}: {str(e) or type(e).__name__}") from None

    def missing(self, tokenizer: Tokenizer) -> list[str]:
        """Returns the control tokens that the template writes and the tokenizer lacks."""
        named = dict.fromkeys(CONTROL.findall(self.source)) if self.foreign else {}
        return [token for token in named if tokenizer.token_id(token) not in tokenizer.special_ids]


def find_template(folders: Sequence[Path], setting: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns the template that `setting` names: `auto`, `chatml` or a Jinja file.

    `auto` is the template in the first of the model's `folders` that has one; else nanochat's, where the tokenizer has
    its tokens; else ChatML. Raises UserError for a file that cannot be read, and ModelError as `own_template` does."""
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
    """Returns the template of the model in this folder or GGUF file, or None. Raises ModelError where it cannot be
    read."""
    if is_gguf(folder):
        return template_of_gguf(folder)
    file = folder / TEMPLATE_FILE
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ModelError(f"{file}: cannot be read: {e}") from None
    own = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(own, list):  # there are several templates, of which `default` is for conversations without tools
        own = next((t.get("template") for t in own if isinstance(t, dict) and t.get("name") == "default"), None)
    return own if isinstance(own, str) else None


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """Returns the tokenizer with more control tokens; new ones get the ids after all others.

    Raises ModelError for a tokenizer that would give them ids between others."""
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
    """Turns conversations into ids, with a tokenizer and a template.

    All methods raise UserError for messages that the template refuses, and `Spelled` for messages with control tokens
    that the tokenizer cannot keep as text."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self.tokenizer, self.template = tokenizer, template
        # The unknown token stands for text, so it is no control token, even if files say so.
        self.control = tokenizer.special_ids - {tokenizer.unk_id}
        longest_first = sorted((t for t, i in tokenizer.vocab.items() if i in self.control), key=len, reverse=True)
        self._spelled = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)()")
        self._finding, self._hiding = self._reader(longest_first, False), self._reader(longest_first, True)

    def _reader(self, control: list[str], hide: bool) -> "Backend":
        """Returns a backend that reads text with control tokens; with `hide`, text that spells one stays text.

        It has no post-processor, which would change offsets."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(json.dumps(self.tokenizer.definition | {"post_processor": None}))
        # transformers does the same with tokens that have a role.
        backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in self._plain(control)])
        backend.encode_special_tokens = hide
        return backend

    def _plain(self, control: list[str]) -> list[str]:
        added = {token["content"] for token in self.tokenizer.definition["added_tokens"]}
        return [token for token in control if token not in added]

    def prompt(self, messages: Messages, tools: Tools = None) -> list[int]:
        """Returns the ids that the assistant continues."""
        return self._ids(self._text(messages, True, tools))[0]

    def encode(self, messages: Messages, tools: Tools = None) -> list[EncodedChat]:
        """Returns the conversation as ids, in which the assistant's turns are marked.

        Normally this is one list of ids. Some templates write earlier turns in another way than the last one; then
        there is one for each turn, with the conversation up to that turn, in which only that turn is learnt. A turn of
        `weight` 0 is read and not learnt. Raises UserError for a template in which an answer does not continue its
        prompt, or has no end."""
        whole, turns = (
            self._text(messages, tools=tools),
            list[tuple[str, int]](),
        )  # for each turn: the text up to its end, and where the turn begins
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
        """Returns the ids that end a turn of the assistant."""
        last_ids = (e.ids[i] for e in self.encode(SAMPLE) for i in range(len(e.ids)) if _last(e.learnt, i))
        return list(dict.fromkeys(last_ids))

    def ignored(self, messages: Messages, tools: Tools = None) -> list[str]:
        """Returns what the template does not use: the keys of messages, and `tools`, that do not change its text."""
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
        """Returns the rendered text, with MARK after the first character of every control token in a message."""
        marked = [
            {key: value if key == "role" else self._marked(value) for key, value in message.items() if key != "weight"}
            for message in messages
        ]
        try:
            return self.template.render(marked, prompt, self._marked(tools))
        except UserError:  # OpenAI writes null as content beside calls of tools, which many templates cannot join
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
        while match := self._spelled.search(value):  # overlapping ones need several turns
            if len(match[0]) == 1:
                raise Spelled(f"a message holds {match[0]!r}, which is a control token of this tokenizer")
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
            rest = starts[last + 1] if last + 1 < len(ids) else len(text)
            if last < low or text[rest:end].strip():
                raise UserError(
                    f"chat template {self.template.name}: an answer ends {text[:end][-30:]!r}, with no control token,"
                    " so a model could not learn where to stop\n"
                    "  → write {{ eos_token }} behind the assistant's content, or task.template=chatml"
                )
            while last > low and ids[last - 1] in self.control:  # of several control tokens, the first ends the turn
                last -= 1
            learnt[low : last + 1] = [True] * (last + 1 - low)
        return EncodedChat(ids, learnt)

    def _ids(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the ids, and for each the place in `text` where it begins, in ascending order. Raises Spelled."""
        if MARK not in text:
            encoding = self._finding.encode(text, add_special_tokens=False)
            return encoding.ids, [start for start, _ in encoding.offsets]
        # Most tokenizers give the same ids if the text between control tokens is encoded piece by piece; but some treat
        # the beginning of a text in another way. Whether this one does is tried on a similar text without marks.
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
                encoding = self._hiding.encode(piece.replace(MARK, ""), add_special_tokens=False)
                ids += encoding.ids
                starts += [places[start] for start, _ in encoding.offsets]
            at += len(piece)
        return ids, starts


def _last(learnt: list[bool], i: int) -> bool:
    return learnt[i] and not (i + 1 < len(learnt) and learnt[i + 1])


def _other(text: str, prompt: str) -> str:
    """Returns the part of a text where it begins to differ from `prompt`."""
    at = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))
    return text[max(0, at - 20) : at + 20]
