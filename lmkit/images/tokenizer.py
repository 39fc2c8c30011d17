"""A tokenizer whose words are the patches of images (`lmkit.images.palette`)."""

from dataclasses import replace

from lmkit.architecture.families import FAMILIES
from lmkit.text.special import SPECIAL, cuts_inside
from lmkit.text.tokenizer import Tokenizer, add_post_processor


def palette_tokenizer(words: list[str], family: str) -> Tokenizer:
    """`words` get the first ids, the control tokens of `family` the next; all else is unknown. The same arguments give
    the same tokenizer.json."""
    from tokenizers import AddedToken, Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    special = SPECIAL[FAMILIES[family].tokens]
    special = special if special.unk else replace(special, unk="<unk>")
    # RoBERTa's positions count from the id of its padding, and its table holds a row for every id below
    first = special.tokens if FAMILIES[family].tokens == "roberta" else []
    entries = dict.fromkeys([*first, *words, str(special.unk)])
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token=special.unk))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first:  # the model then knows them by name: text that spells one must not become it
        cut = pre_tokenizers.Split(Regex(cuts_inside(first)), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special.tokens])
    add_post_processor(backend, special)
    return Tokenizer(backend, special)
