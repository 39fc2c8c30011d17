"""BLEU and chrF are sacrebleu's to the last digit; ROUGE is rouge_score's."""

import random

import pytest
import sacrebleu

from lmkit.base.errors import UserError
from lmkit.evaluation.writing import longest_common_subsequence, rouge, score_texts, words_of

REFERENCES = [f"a man number {i} is riding his {thing}, slowly ." for i, thing in enumerate(["bike", "horse"] * 20)]
HYPOTHESES = [r.replace("is riding", ["rides", "is on"][i % 2]).replace("slowly", "") for i, r in enumerate(REFERENCES)]
JAPANESE = ["猫が好きです。", "犬は走った。"], ["猫が好きだ。", "犬が走った。"]


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "zh", "none"])
def test_scores_are_those_of_sacrebleu(tokenize):
    found, signatures = score_texts(HYPOTHESES, REFERENCES, tokenize)
    assert found["bleu"].value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize).score
    assert found["chrf"].value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert f"tok:{tokenize}|" in signatures["bleu"] and signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|")
    assert "nc:6|nw:0" in signatures["chrf"]


def test_intervals_are_about_those_of_sacrebleu():
    metric = sacrebleu.BLEU()
    theirs = metric.corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=1000)
    value, low, high = score_texts(HYPOTHESES, REFERENCES)[0]["bleu"]
    assert low < value < high and (high - low) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert score_texts(HYPOTHESES, REFERENCES, intervals=False)[0]["bleu"] == (value, None, None)
    assert score_texts(["", ""], ["a b", "c"])[0]["bleu"] == (0, 0, 0)


def test_japanese_needs_a_tokenizer_and_says_which(monkeypatch):
    assert 0 < score_texts(*JAPANESE, tokenize="char")[0]["bleu"].value < 100
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(UserError, match=r"ja-mecab needs packages .*\n.*pip install 'sacrebleu\[ja\]'"):
        score_texts(*JAPANESE, tokenize="ja-mecab")


def test_words():
    assert words_of("It's Größe_3.5, NAÏVE!") == ["it", "s", "größe", "3", "5", "naïve"]
    assert words_of("abc日本の2人 ok") == ["abc", "日", "本", "の", "2", "人", "ok"]


def test_rouge_by_hand():
    """`police killed the gunman`, of Lin 2004, 3.1."""
    reference, one, other = "police killed the gunman", "Police kill the gunman!", "the gunman kill police"
    found = rouge([one], [reference])
    assert [found[k].value for k in ("rouge1", "rouge2", "rougeL")] == [3 / 4, 1 / 3, 3 / 4]
    found = rouge([other], [reference])
    assert [found[k].value for k in ("rouge1", "rouge2", "rougeL")] == [3 / 4, 1 / 3, 2 / 4]
    many = rouge([one, "", "x x x", reference], [reference, "", "x", reference])
    assert many["rouge1"].value == pytest.approx((3 / 4 + 0 + 2 / 4 + 1) / 4)
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in many.values())


def test_longest_common_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(60):
        a, b = (rng.choices("abcd", k=rng.randint(0, 70)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert longest_common_subsequence(a, b) == longest_common_subsequence(b, a) == table[-1][-1]
