"""`lmkit kb build|add|search|stats`: knowledge bases, made and looked into."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from lmkit.base.display import note
from lmkit.base.units import show_seconds
from lmkit.kb import knowledge_base
from lmkit.kb.knowledge_base import Added, KnowledgeBase, shown

SNIPPET = 160


def build(out: Path, sources: list[str]) -> None:
    """Raises what `knowledge.build` does."""
    began = time.monotonic()
    added = knowledge_base.build(out, sources)
    _say(out, added, began)


def add(path: Path, sources: list[str]) -> None:
    """Raises what `KnowledgeBase.add` does."""
    began = time.monotonic()
    with KnowledgeBase(path) as kb:
        added = kb.add(sources)
    _say(path, added, began)


def _say(path: Path, added: Added, began: float) -> None:
    for name in added.known:
        note(f"{name} is in already: passed over")
    for name in added.replaced:
        note(f"{name} has changed: its rows were replaced")
    for kind, n in added.problems.counts.items():
        note(f"left out: {n:,} {kind}, like {added.problems.examples[kind][0]}")
    counted = ", ".join(f"{n:,} {kind}" for kind, n in added.rows.items() if n) or "nothing new"
    print(f"{path}: {counted} in {show_seconds(time.monotonic() - began)}; {path.stat().st_size / 1e6:,.1f} MB")
    print(f"  next   lmkit kb search {path} 'a question'   or   lmkit generate MODEL 'a question' --kb {path}")


def search(path: Path, query: str, k: int, as_json: bool) -> None:
    """Candidates, scored as before any fit, and passages by BM25."""
    with KnowledgeBase(path) as kb:
        candidates, passages = kb.lookup(query, most=k), kb.search(query, k)
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


def stats(path: Path, as_json: bool) -> None:
    with KnowledgeBase(path) as kb:
        found = kb.stats()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"{path}: {found['bytes'] / 1e6:,.1f} MB, {found['subjects']:,} subjects")
    for title in ("rows", "relations"):
        listed = ", ".join(f"{shown(name)} {n:,}" for name, n in found[title].items())
        print(f"  {title:10}{listed or 'none'}")
    for source in found["sources"]:
        print(f"  {source['rows']:>12,}  {shown(source['file'])}")
