"""Records of rows that were scored, one dict a row, as `tasks.evaluate.row_records` makes them and runs keep them:
place, gold, prediction, loss (None in tasks without one), score in [0, 1], row. No torch here."""

from collections.abc import Sequence
from typing import Any


def worst_rows(records: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Returns the records with the largest loss, or of tasks without losses those that are least right."""
    badness = lambda record: -(record.get("score") or 0) if record.get("loss") is None else record["loss"]
    return sorted(records, key=badness, reverse=True)[:most]


def main_prediction(record: dict[str, Any]) -> Any:
    """Returns what is predicted first: a label, tags, an answer or a text; "" where the record has no prediction."""
    prediction = record.get("prediction")
    values = prediction.items() if isinstance(prediction, dict) else ()
    return next((value for key, value in values if key != "id"), "")
