"""Which rows of a table are learnt from: without those that repeat an earlier one, or that held-out rows give away."""

from lmkit.data.quality.decontamination import ngrams, strings
from lmkit.data.quality.deduplication import Keys, key_of, near_keys
from lmkit.data.tables.splitting import same_input, taken
from lmkit.data.tables.table import Table, row_bytes
from lmkit.recipe.sources import RowQualityConfig


def judged(train: Table, held_out: Table, task: str, config: RowQualityConfig) -> tuple[Table, list[str]]:
    """Returns the rows to learn from, and a line for each rule that left out some. Rules see what a model reads of a
    row, and not what it learns to answer. Raises UserError where a library is missing."""
    text_of = lambda row: "\n".join(strings(same_input(row, task)))
    known = {gram for row in held_out.rows for gram in ngrams(text_of(row))} if config.decontaminate else set()
    seen, stay = Keys(), list[int]()
    out: dict[str, list[str]] = {"share 13 words in a row with held-out rows": [], "repeat an earlier one": []}
    shared, repeating = out.values()
    for number, (row, place) in enumerate(zip(train.rows, train.places, strict=True)):
        text = text_of(row)
        keys = list[int]()
        if config.deduplicate == "near" and text:
            keys = near_keys(text)
        elif config.deduplicate != "none":  # of images, too, which have no text
            keys = [key_of(row_bytes(same_input(row, task)))]
        if not known.isdisjoint(ngrams(text)):
            shared.append(place)
        elif any(key in seen for key in keys):
            repeating.append(place)
        else:
            stay.append(number)
            for key in keys:
                seen.add(key)
    lines = [
        f"data.quality: {len(places):,} of {len(train.rows):,} training rows {what} and are left out, like {places[0]}"
        for what, places in out.items()
        if places
    ]
    return taken(train, stay, train.problems) if lines else train, lines
