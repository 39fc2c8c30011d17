"""Every token is scored once, whatever the lengths, and little is padding."""

import numpy as np
import pytest

from lmkit.data.tokens.packing import PackedRows


class Documents:
    """Stands in for a Split: token t of document d is 1000 * d + t, so that a row tells where it came from."""

    def __init__(self, lengths: np.ndarray, bos: int | None, eos: int | None):
        self.lengths, self.bos_id, self.eos_id = lengths.astype(np.int64), bos, eos

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        return 1000 * document + np.arange(start, min(stop, self.lengths[document]))


@pytest.mark.parametrize(("bos", "eos"), [(7, 7), (7, None), (7, 8), (None, 8)])
def test_every_token_but_the_first_is_scored_exactly_once(bos: int | None, eos: int | None) -> None:
    closed_by_bos = bos is not None and eos in (None, bos)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, rng.integers(2, 200), rng.integers(1, 60))
        length = int(rng.integers(1, 50))
        rows = PackedRows(Documents(lengths, bos, eos), length, pad_id=5)  # type: ignore[arg-type]
        scored = []
        for i in range(len(rows)):
            row = rows[i]
            padding = row["segments"] < 0
            assert (row["tokens"][padding] == 5).all() and (row["labels"][padding] == -100).all()
            assert (np.diff(row["segments"][~padding]) >= 0).all() and not padding[: (~padding).sum()].any()
            assert row["segments"].max() == len(row["documents"]) - 1
            for token, label, segment in zip(row["tokens"], row["labels"], row["segments"], strict=True):
                if segment >= 0:
                    document, at = divmod(int(token), 1000)
                    assert document == row["documents"][segment]
                    last = closed_by_bos and at == lengths[document] - 1
                    assert label == (bos if last else token + 1)
                    scored.append((document, at + 1))
        expected = {(d, t) for d, n in enumerate(lengths) for t in range(1, n + closed_by_bos)}
        assert len(scored) == len(set(scored)) == rows.num_scored and set(scored) == expected
        assert rows.waste <= 0.05 or len(rows) == -(-len(scored) // length)  # the fewest rows there can be


def test_documents_that_fit_are_not_cut_when_packing_is_tight() -> None:
    rng = np.random.default_rng(0)
    rows = PackedRows(Documents(rng.integers(2, 500, 5000), 1, 1), 2048, 0)  # type: ignore[arg-type]
    assert rows.num_cut == 0 and rows.waste < 0.01


def test_documents_just_over_half_a_row_are_cut_only_as_far_as_the_waste_demands() -> None:
    rows = PackedRows(Documents(np.full(2000, 600), 1, 1), 1000, 0)  # type: ignore[arg-type]
    assert 0.04 < rows.waste <= 0.05 and 0 < rows.num_cut < 1000


def test_packing_is_the_same_every_time_and_quick_for_many_documents() -> None:
    lengths = np.random.default_rng(1).lognormal(5, 1.2, 200_000).astype(int) + 2
    first, second = (PackedRows(Documents(lengths, 1, 1), 512, 0) for _ in range(2))  # type: ignore[arg-type]
    assert len(first) == len(second)
    for i in range(0, len(first), len(first) // 50):
        assert all(np.array_equal(first[i][k], second[i][k]) for k in ("tokens", "labels", "segments", "documents"))


def test_no_documents_make_no_rows() -> None:
    assert len(PackedRows(Documents(np.empty(0), 1, 1), 8, 0)) == 0  # type: ignore[arg-type]
