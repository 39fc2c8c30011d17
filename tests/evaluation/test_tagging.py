"""Entities are those of seqeval's strict mode (1.2.2); here worked by hand from its definition."""

import random

import pytest
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import IOB2 as IOB
from seqeval.scheme import IOBES

from lmkit.data.tables.labels import settle_tags, with_prefixes
from lmkit.evaluation.tagging import entities, scheme, score_tags, score_types

IOB2 = {
    "B-P I-P O B-L": {("P", 0, 2), ("L", 3, 4)},
    "B-P B-P I-P": {("P", 0, 1), ("P", 1, 3)},
    "B-P I-L I-P": {("P", 0, 1)},  # what another type follows ends; an I that follows no entity of its type is nothing
    "I-P I-P O": set(),
    "O I-P B-P": {("P", 2, 3)},
    "B-X-Y I-X-Y": {("X-Y", 0, 2)},
    "": set(),
}
BIOES = {
    "B-P I-P E-P S-L": {("P", 0, 3), ("L", 3, 4)},
    "B-P E-P": {("P", 0, 2)},
    "B-P I-P O": set(),  # no end
    "B-P": set(),
    "B-P E-L": set(),
    "I-P E-P": set(),
    "B-P B-P E-P": {("P", 1, 3)},
    "B-P S-P E-P": {("P", 1, 2)},
    "S-P I-P E-P": {("P", 0, 1)},
    "B-P E-P E-P": {("P", 0, 2)},
}


@pytest.mark.parametrize("cases, bioes", [(IOB2, False), (BIOES, True)])
def test_entities(cases, bioes):
    assert {text: entities(text.split(), bioes) for text in cases} == cases


def test_the_scheme_is_found_from_the_tags():
    assert scheme(["O", "B-P", "I-P"]) == scheme(["B-P"]) == "iob2"
    assert scheme(["O", "I-P", "I-L"]) == "iob1" and scheme(["B-P", "M-P", "E-P", "S-P"]) == "bmes"
    assert scheme(["B-P", "I-P", "L-P", "U-L"]) == "bilou" and scheme(["B-P", "L-P", "E-P"]) == "words"
    assert scheme(["O", "B-P", "E-P"]) == scheme(["S-P", "O"]) == "bioes"
    assert scheme(["NOUN", "VERB"]) == scheme(["O", "PER"]) == scheme(["O"]) == scheme(["B-P", "I-"]) == "words"


def test_scores_of_entities():
    gold = [["B-P", "I-P", "O"], ["O", "B-L", "O", "B-P"], ["O"]]
    said = [["B-P", "I-P", "O"], ["O", "B-P", "O", "B-P"], ["B-L"]]
    found = score_tags(gold, said)
    assert {k: e.value for k, e in found.items()} == {"f1": 4 / 7, "precision": 0.5, "recall": 2 / 3, "accuracy": 6 / 8}
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in found.values())
    assert {k: e.value for k, e in score_tags(gold, gold).items()} == dict.fromkeys(found, 1)
    # tags that are in the data but not in these rows decide how entities are written
    assert score_tags([["B-P", "I-P"]], [["B-P", "I-P"]], tags=["B-P", "I-P", "E-P"])["f1"] == (0, None, None)
    assert score_tags([["O"]], [["O"]], tags=["O", "B-P"]) == {
        "f1": (0, None, None), "precision": (0, None, None), "recall": (0, None, None), "accuracy": (1, None, None)
    }  # fmt: skip
    with pytest.raises(ValueError, match="differ in length"):
        score_tags([["O", "O"]], [["O"]])


def test_scores_of_words():
    gold, said = [["N", "V", "N"], ["V"]], [["N", "V", "V"], ["X"]]
    found = score_tags(gold, said, intervals=False)
    assert found == {"accuracy": (0.5, None, None), "macro_f1": (pytest.approx((2 / 3 + 1 / 2 + 0) / 3), None, None)}


def test_schemes_in_other_letters_have_the_same_entities():
    bioes, said = ["B-P", "I-P", "E-P", "O", "S-L"], ["B-P", "E-P", "O", "O", "S-L"]
    wanted = {k: e.value for k, e in score_tags([bioes], [said]).items()}
    assert wanted["f1"] == 0.5
    for letters in ("BILU", "BMES"):
        other = [
            ["O" if tag == "O" else letters["BIES".index(tag[0])] + tag[1:] for tag in row] for row in (bioes, said)
        ]
        assert {k: e.value for k, e in score_tags([other[0]], [other[1]]).items()} == wanted
    assert score_tags([["I-P", "I-P", "I-L"]], [["I-P", "I-P", "O"]])["f1"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("spelling", ["{1}-{0}", "{0}_{1}", "{1}_{0}"])
def test_tags_with_the_prefix_elsewhere_are_the_entities_of_seqeval(spelling):
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "B-LOC"]]
    said = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "B-LOC", "B-LOC"]]
    write = lambda tags: ["O" if tag == "O" else spelling.format(*tag.split("-")) for tag in tags]
    rows = [{"words": ["w"] * 4, "tags": write(tags)} for tags in gold + said]
    (note,) = settle_tags(rows, ["a:1"] * 4)
    tags = [row["tags"] for row in rows]
    assert tags == gold + said and f"{spelling.format('B', 'LOC')} as B-LOC" in note
    assert score_tags(tags[:2], tags[2:])["f1"].value == pytest.approx(f1_score(gold, said, mode="strict", scheme=IOB))


@pytest.mark.parametrize("tags", [["NOUN", "X-B"], ["vitamin-E", "O"], ["B-PER", "I-B"], ["I-M", "I-S", "O"]])
def test_other_tags_with_a_letter_at_an_end_stay_as_they_are(tags):
    assert with_prefixes(tags) == tuple(tags)


@pytest.mark.parametrize("tags", ["O B-P I-P B-L I-L", "O S-P B-P E-P S-L"])
def test_scores_of_each_type_are_those_of_seqeval(tags):
    rng, tags = random.Random(0), tags.split()
    gold, said = ([rng.choices(tags, k=9) for _ in range(40)] for _ in range(2))
    kind = IOBES if "S-P" in tags else IOB
    wanted = classification_report(gold, said, mode="strict", scheme=kind, output_dict=True, zero_division=0)
    for name, score in score_types(gold, said, tags).items():
        assert tuple(score) == pytest.approx(tuple(wanted[name].values()))
    words = {name: tuple(score) for name, score in score_types([["N", "V"]], [["N", "N"]], ["N", "V"]).items()}
    assert words == {"N": (0.5, 1, 2 / 3, 1), "V": (0, 0, 0, 1)}
