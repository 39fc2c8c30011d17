"""BLEU and chrF are sacrebleu's to the last digit; ROUGE is rouge_score's."""

import random

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from lmkit.base.errors import UserError
from lmkit.evaluation.writing import longest_common_subsequence, rouge, score_texts, tokenizer_for, words_of

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


def test_several_references_and_ter_are_those_of_sacrebleu():
    others = [f"he rides {r.split()[-3]} number {i}" if i % 3 else None for i, r in enumerate(REFERENCES)]
    both = [[a] if b is None else [a, b] for a, b in zip(REFERENCES, others, strict=True)]
    found, signatures = score_texts(HYPOTHESES, both)
    for name, judge in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF()), ("ter", sacrebleu.TER())):
        assert found[name].value == pytest.approx(judge.corpus_score(HYPOTHESES, [REFERENCES, others]).score)
    assert found["bleu"].value > score_texts(HYPOTHESES, REFERENCES)[0]["bleu"].value
    assert all(signature.startswith("nrefs:var|") for signature in signatures.values())
    asian = sacrebleu.TER(normalized=True, asian_support=True)
    assert (
        score_texts(*JAPANESE, tokenize="char")[0]["ter"].value == asian.corpus_score(JAPANESE[0], [JAPANESE[1]]).score
    )


def test_the_tokeniser_goes_by_the_script(monkeypatch):
    assert tokenizer_for(["a horse in 東京", "und noch ein Satz"]) == "13a" == tokenizer_for(["", "1 2 ."])
    assert tokenizer_for(["我喜欢 GPU 和猫。"]) == "zh"
    monkeypatch.setattr("lmkit.evaluation.writing.find_spec", lambda name: None)
    assert tokenizer_for(JAPANESE[0]) == tokenizer_for(["나는 고양이를 좋아한다"]) == "char"
    monkeypatch.setattr("lmkit.evaluation.writing.find_spec", lambda name: name)
    assert tokenizer_for(JAPANESE[0]) == "ja-mecab" and tokenizer_for(["나는 고양이를 좋아한다"]) == "ko-mecab"


def test_rouge_is_that_of_rouge_score_also_of_several_references():
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    judge, rng = rouge_scorer.RougeScorer(names), random.Random(0)
    texts = lambda n: [
        "".join(
            w + rng.choice("  \n") for w in rng.choices(["a", "man", "rides", "the", "horse"], k=rng.randint(1, 19))
        )
        for _ in range(n)
    ]
    hypotheses, several = texts(30), [texts(rng.randint(1, 3)) for _ in range(30)]
    wanted = [judge.score_multi(references, text) for references, text in zip(several, hypotheses, strict=True)]
    found = rouge(hypotheses, several)
    for name in names:
        assert found[name].value == pytest.approx(sum(w[name].fmeasure for w in wanted) / 30)
    assert found["rougeLsum"].value > found["rougeL"].value
    lines = rouge(
        [text.replace("\n", " ") for text in hypotheses], [[r.replace("\n", " ") for r in s] for s in several]
    )
    assert lines["rougeLsum"] == lines["rougeL"]
    assert rouge(["\n"], ["\n\n"])["rougeLsum"].value == 0
