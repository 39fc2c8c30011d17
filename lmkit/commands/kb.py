"""`lmkit kb build|add|search|stats`: knowledge bases, made and looked into."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmkit.base.units import show_seconds
from lmkit.commands.app import app
from lmkit.commands.options import Encoding, Json

if TYPE_CHECKING:
    from lmkit.kb.knowledge_base import Added

SNIPPET = 160  # characters of a passage that are shown
kb_app = typer.Typer(no_args_is_help=True, help="Knowledge bases: facts, triples and passages to answer from.")
app.add_typer(kb_app, name="kb")
Kb = Annotated[Path, typer.Argument(metavar="KB", help="A knowledge base.", show_default=False)]
NewKb = Annotated[Path, typer.Argument(metavar="OUT", show_default=False)]
Facts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders or globs: .csv, .xlsx, .jsonl, .json, .parquet, .arrow, .txt. Columns: subject, relation, "
        "object; question, answer; title, text; name, alias; relation, phrase.",
        show_default=False,
    ),
]


@kb_app.command(name="build", epilog="Example: lmkit kb build facts.sqlite countries.csv articles/*.txt")
def kb_build(out: NewKb, sources: Facts, encoding: Encoding = "utf-8") -> None:
    """Make a knowledge base of files."""
    from lmkit.kb.knowledge_base import build_knowledge_base

    began = time.monotonic()
    _tell(out, build_knowledge_base(out, sources, encoding), began)


@kb_app.command(name="add", epilog="Example: lmkit kb add facts.sqlite more.jsonl")
def kb_add(kb: Kb, sources: Facts, encoding: Encoding = "utf-8") -> None:
    """Put files in: known ones are passed over, changed ones replace what they were."""
    from lmkit.kb.knowledge_base import KnowledgeBase

    began = time.monotonic()
    with KnowledgeBase(kb) as knowledge:
        added = knowledge.add(sources, encoding)
    _tell(kb, added, began)


def _tell(path: Path, added: "Added", began: float) -> None:
    from lmkit.base.display import note

    for name in added.known:
        note(f"{name} is in already: passed over")
    for name in added.replaced:
        note(f"{name} has changed: its rows were replaced")
    for kind, n in added.problems.counts.items():
        note(f"left out: {n:,} {kind}, like {added.problems.examples[kind][0]}")
    counted = ", ".join(f"{n:,} {kind}" for kind, n in added.rows.items() if n) or "nothing new"
    print(f"{path}: {counted} in {show_seconds(time.monotonic() - began)}; {path.stat().st_size / 1e6:,.1f} MB")
    print(f"  next   lmkit kb search {path} 'a question'   or   lmkit answer MODEL 'a question' --kb {path}")


@kb_app.command(name="search", epilog="Example: lmkit kb search facts.sqlite 'What is the capital of Peru?'")
def kb_search(
    kb: Kb,
    query: Annotated[str, typer.Argument(help="A question, or words.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="How many of each.", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """What would be looked up, and which passages would be read."""
    from lmkit.kb.knowledge_base import KnowledgeBase, shown

    with KnowledgeBase(kb) as knowledge:
        candidates, passages = knowledge.lookup(query, most=k), knowledge.search(query, k)
    if as_json:
        facts = {"query": query, "candidates": [asdict(c) for c in candidates]}
        print(json.dumps(facts | {"passages": [asdict(p) for p in passages]}, ensure_ascii=False))
        return
    for c in candidates:
        print(f"{c.score:6.3f}  {shown(c.answer)}\n        {shown(c.evidence)} from {shown(c.source)}")
    for p in passages:
        text = shown(f"{p.title}: {p.text}" if p.title else p.text)
        print(f"{p.score:6.2f}  {text[:SNIPPET]}{'…' if len(text) > SNIPPET else ''}\n        from {shown(p.source)}")
    if not candidates:
        print("nothing to look up: no name in the question is one of a subject")
    if not passages:
        print("no passage has a word of the question")


@kb_app.command(name="stats", epilog="Example: lmkit kb stats facts.sqlite")
def kb_stats(kb: Kb, as_json: Json = False) -> None:
    """What is in a knowledge base: rows, relations, files."""
    from lmkit.kb.knowledge_base import KnowledgeBase, shown

    with KnowledgeBase(kb) as knowledge:
        facts = knowledge.stats()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    print(f"{kb}: {facts['bytes'] / 1e6:,.1f} MB, {facts['subjects']:,} subjects")
    for title in ("rows", "relations"):
        listed = ", ".join(f"{shown(name)} {n:,}" for name, n in facts[title].items())
        print(f"  {title:10}{listed or 'none'}")
    for source in facts["sources"]:
        print(f"  {source['rows']:>12,}  {shown(source['file'])}")
