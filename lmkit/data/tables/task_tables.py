"""What the table of each task is: its columns, the formats it is read from, and how its rows are made and parted."""

from collections.abc import Callable
from dataclasses import dataclass

from lmkit.data.tables import rows
from lmkit.data.tables.labels import settle_labels, settle_tags


@dataclass(frozen=True)
class Role:
    name: str  # in the rows of a table
    names: str  # of columns, in lower case, by blanks; one that is called by the first is it whatever else is there
    noun: str = ""  # in messages; "" when rows may be without it
    key: str = ""  # of the recipe's `data` section: names its column
    answer: bool = False  # what is learnt: rows to predict from do without it


@dataclass(frozen=True)
class TaskTable:
    """What the table of one task is."""

    roles: tuple[Role, ...]
    make_row: rows.Maker | None  # None: the rows are documents
    messages: tuple[Role, ...] = ()  # the roles in files whose conversations are lists of messages
    formats: tuple[str, ...] = ()  # that are read besides those with columns
    allowed: str = ""  # these formats, in messages
    lines: str = ""  # the role of a line of a file of text to predict from; "": such files are not read
    settle: Callable[..., list[str]] | None = None  # what makes labels one kind, as `labels.settle_labels` does
    by_article: bool = False  # rows about one article stay on one side of a split
    length_ratio: int = 0  # a target this many times as long as its source, or as short, is reported; 0: none is

    @property
    def learnt(self) -> str:
        """The role that is learnt; "" where all of a row is."""
        return next((role.name for role in self.roles if role.answer), "")


QUESTION = "question query"
ANSWERS = "answers answer answer_text"
SYSTEM, TOOLS = Role("system", "system system_prompt"), Role("tools", "tools")
TABLES = {
    "classify": TaskTable(
        (Role("text", "text sentence sentence1 text_a text1 review content body comment tweet headline document "
                      "premise question question1 query phrase message utterance", "a text", "text"),
         Role("pair", "pair sentence2 text_b text2 hypothesis question2 passage", key="pair"),
         Role("label", "label labels gold_label class category sentiment target stars rating score topic intent "
                       "emotion cats", "a label", "label", answer=True)),
        rows.classify_row, formats=("folder", "idx", "cifar10"), lines="text", settle=settle_labels,
        allowed="; a folder with a sub-folder of .txt files for each label; MNIST's images in idx files, "
                "their labels beside them; CIFAR-10's .bin files",
    ),
    "tag": TaskTable(
        (Role("words", "words tokens text sentence form", "words", "text"),
         Role("tags", "tags ner_tags pos_tags labels ner pos upos", "their tags", "label", answer=True)),
        rows.tag_row, formats=("conll", "spans"), lines="words", settle=settle_tags,
        allowed="; CoNLL columns in .conll, .conllu, .iob, .bio, .txt",
    ),
    "qa": TaskTable(
        (Role("context", "context passage paragraph text document", "a context", "text"),
         Role("question", QUESTION, "a question", "pair"),
         Role("answers", ANSWERS, "answers", "target", answer=True),
         Role("start", "answer_start start"), Role("id", "id"), Role("title", "title")),
        rows.qa_row, formats=("squad",), by_article=True,
    ),
    "translate": TaskTable(
        (Role("source", "source src input text en english", "a source", "text"),
         Role("target", "target tgt output translation", "a target", "target", answer=True)),
        rows.writing_row, formats=("po", "lines"), lines="source",
        allowed="; .po; files of a sentence a line, with data.text and data.target the endings of their names",
        length_ratio=9,  # no sentence is so much longer than its translation (Koehn et al. 2007 leave such pairs out)
    ),
    "summarize": TaskTable(
        (Role("source", "source src document article text dialogue input content body", "a source", "text"),
         Role("target", "target tgt summary highlights abstract output", "a summary", "target", answer=True)),
        rows.writing_row, formats=("lines",), lines="source",
        allowed="; files of a text a line, with data.text and data.target the endings of their names",
    ),
    "chat": TaskTable(
        (Role("prompt", "prompt instruction question query user", "a prompt", "text"),
         Role("response", "response completion output answer", "a response", "target", answer=True),
         Role("input", "input"), SYSTEM, Role("history", "history"), TOOLS),
        rows.chat_row,
        messages=(Role("messages", "messages conversations conversation", "messages", "text"), SYSTEM, TOOLS),
    ),
    "lm": TaskTable((Role("text", "text", "a text", "text"),), make_row=None),
    "answer": TaskTable(
        (Role("question", QUESTION + " text prompt", "a question", "text"),
         Role("answers", ANSWERS + " target response output", "answers", "target", answer=True)),
        rows.answer_row, formats=("squad",), lines="question",
    ),
}  # fmt: skip
