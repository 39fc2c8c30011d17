"""What clients send, as checked objects: the bodies of OpenAI's API, with fields of our own for what it has not."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmkit.base.errors import UserError
from lmkit.generation.grammar import matching, of_schema, one_of
from lmkit.generation.rules import Rules
from lmkit.generation.sampling import SamplingConfig

MOST_TEXTS = 64  # texts that one request may ask for
Bias = dict[int, float]
Texts = str | list[str] | list[int] | list[list[int]]


class Body(BaseModel):
    """Fields that change nothing here are read and left; what is not known is refused."""

    model_config = ConfigDict(extra="forbid")
    model: str
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class WritingBody(Body):
    """What bodies that ask for texts have in common."""

    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = Field(1, ge=1, le=MOST_TEXTS)
    stop: str | list[str] | None = None
    seed: Annotated[int | None, Field(ge=0)] = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Bias | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # fields that OpenAI does not have
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    choices: list[str] | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None

    def sampling(self, rules: Rules, most: int, alternatives: int) -> SamplingConfig:
        """Returns how tokens are chosen. most: tokens of a text that asks for more or names no number. Raises
        UserError for a value out of range."""
        names = (
            "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p",
            "repetition_penalty",
        )  # fmt: skip
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        return SamplingConfig(
            **given, max_tokens=min(self.wanted or most, most), seed=seed, stop=tuple(stop), rules=rules,
            logit_bias=tuple((self.logit_bias or {}).items()), top_logprobs=alternatives,
        )  # fmt: skip

    @property
    def wanted(self) -> int | None:
        return self.max_tokens

    def constraint(self) -> str | None:
        """Returns the definition of what texts have to match, None for nothing. Raises UserError."""
        named = [name for name in ("choices", "regex", "json_schema") if getattr(self, name) is not None]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)}: a text can follow only one of them")
        if self.choices is not None:
            return one_of(self.choices)
        if self.regex is not None:
            return matching(self.regex)
        return None if self.json_schema is None else of_schema(self.json_schema)


class CompletionBody(WritingBody):
    prompt: Texts
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool = False
    source_lang: str | None = None
    target_lang: str | None = None


class SchemaFormat(BaseModel):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaFormat | None = None


class ChatBody(WritingBody):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat = ResponseFormat()

    @property
    def wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> list[dict[str, Any]]:
        """Returns the messages with their parts of text as one text. Raises UserError for other parts, and for what is
        no message."""
        out = list[dict[str, Any]]()
        for number, message in enumerate(self.messages, 1):
            content = message.get("content")
            if isinstance(content, list):
                texts = [
                    part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
                ]
                if len(texts) < len(content):
                    raise UserError(f"messages: number {number} has a part that is no text")
                content = "\n".join(texts)
            if not isinstance(message.get("role"), str) or not isinstance(content, str | None):
                raise UserError(f"messages: number {number} needs a `role` and a `content` of text")
            out.append(message | {"content": content})
        return out

    def constraint(self) -> str | None:
        asked = self.response_format
        if asked.type == "text":
            return super().constraint()
        if asked.type == "json_schema" and asked.json_schema is None:
            raise UserError("response_format: json_schema is missing")
        return of_schema(asked.json_schema.schema_ if asked.json_schema else {"type": "object"})


class InputBody(Body):
    """Texts to label or to embed."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class RowsBody(Body):
    """Rows of a task, with the names of its columns; or one row, in the body itself."""

    model_config = ConfigDict(extra="allow")
    rows: list[dict[str, Any]] | None = None
