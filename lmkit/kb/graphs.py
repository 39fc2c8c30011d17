"""Knowledge graphs of other tools as triples and aliases: RDF (Turtle, N-Triples, RDF/XML, JSON-LD), and the JSON of
Wikidata's entities."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lmkit.base.errors import DataError

# The endings of RDF, with rdflib's names of these formats.
RDF = {".ttl": "turtle", ".nt": "nt", ".n3": "n3", ".rdf": "xml", ".owl": "xml", ".jsonld": "json-ld"}
LABELS = ("label", "name", "prefLabel", "title")  # of the properties that name a thing; all but the first are aliases
LANGUAGES = ("en", None)  # of names, the first that exists; else any
Fact = tuple[str, tuple[str, ...]]  # kind (triples, aliases), values


def read_rdf(file: str) -> Iterator[Fact]:
    """Yields the triples of a file, with the names of things in the place of their addresses, and their other names.

    A thing without a name is called by the last part of its address. Raises DataError for a file that rdflib cannot
    read, and where rdflib is not installed."""
    try:
        from rdflib import Graph, URIRef
    except ImportError:
        raise DataError(f"{file}: RDF needs rdflib\n  → pip install 'lmkit[rdf]'") from None
    graph = Graph()
    try:
        graph.parse(file, format=RDF[Path(file).suffix])
    except Exception as error:  # every parser of rdflib has errors of its own
        raise DataError(f"{file}: rdflib cannot read it: {str(error)[:200]}") from None
    names: dict[Any, dict[str | None, list[str]]] = {}
    for thing, prop, value in graph:
        if _last_part(prop) in LABELS and not isinstance(value, URIRef):
            names.setdefault(thing, {}).setdefault(getattr(value, "language", None), []).append(str(value))
    chosen: dict[Any, str] = {thing: _chosen(by_language) for thing, by_language in names.items()}
    name = lambda thing: chosen.get(thing) or (_last_part(thing) if isinstance(thing, URIRef) else str(thing))
    for thing, prop, value in graph:
        if _last_part(prop) not in LABELS or isinstance(value, URIRef):
            yield "triples", (name(thing), name(prop), name(value))
        elif str(value) != name(thing):
            yield "aliases", (str(value), name(thing))


def _chosen(by_language: Mapping[str | None, list[str]]) -> str:
    language = next((language for language in LANGUAGES if language in by_language), next(iter(by_language)))
    return min(by_language[language])


def _last_part(address: Any) -> str:
    return unquote(re.split(r"[/#]", str(address).rstrip("/#"))[-1]).replace("_", " ")


# ---------------------------------------------------------------- Wikidata


def is_wikidata(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("claims"), dict) and isinstance(record.get("labels"), dict) and "id" in record


def label_of(record: Mapping[str, Any]) -> str:
    """Returns the name of an entity: English, else the first; its id where it has none."""
    labels = record["labels"]
    chosen: Mapping[str, Any] = labels.get("en") or next(iter(labels.values()), {})
    return str(chosen.get("value") or record["id"])


def read_entity(record: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[Fact]:
    """Yields the aliases and the statements of an entity. labels: names of entities and properties by their ids; those
    that are not in it stay ids."""
    subject = label_of(record)
    others = [label["value"] for label in record["labels"].values()]
    others += [alias["value"] for group in record.get("aliases", {}).values() for alias in group]
    for alias in dict.fromkeys(others):
        if alias != subject:
            yield "aliases", (alias, subject)
    for prop, statements in record["claims"].items():
        for statement in statements:
            value = statement.get("mainsnak", {}).get("datavalue", {}).get("value")
            if (text := _text_of(value, labels)) is not None:
                yield "triples", (subject, labels.get(prop, prop), text)


def _text_of(value: Any, labels: Mapping[str, str]) -> str | None:
    """Returns a value of Wikidata as text: a name, a date, a number with its unit, or None for other kinds."""
    if not isinstance(value, dict):
        return None if value is None else str(value)
    if "id" in value:
        return labels.get(value["id"], str(value["id"]))
    if "time" in value:  # +1952-03-11T00:00:00Z; 00 stands for an unknown month or day
        return re.sub(r"(-00)+$", "", str(value["time"]).lstrip("+").partition("T")[0])
    if "amount" in value:
        unit = labels.get(str(value.get("unit", "1")).rpartition("/")[2], "")
        return f"{str(value['amount']).lstrip('+')} {unit}".strip()
    return str(value["text"]) if "text" in value else None
