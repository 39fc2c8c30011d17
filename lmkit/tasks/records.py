"""What a fine-tuned model says of records that lie in memory."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmkit.base.errors import DataError, UserError
from lmkit.data.tables.table import read_table
from lmkit.pretrained import Pretrained
from lmkit.recipe.tasks import TaskConfig
from lmkit.tasks.evaluate import table_config
from lmkit.tasks.task import Task


def answers(
    loaded: Pretrained, section: TaskConfig, task: Task, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns what the task says of each record; `error` for one that cannot be read.

    They are read as `lmkit predict` reads them from a file. section: of the task in its recipe. Raises UserError where
    none can be read."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        read_as = table_config([str(path)], section, {}, False, loaded.folder)
        try:
            table = read_table([str(path)], section.name, read_as, False, *task.read_as())
        except DataError as e:
            raise UserError(str(e).replace(str(path), "rows")) from None
        outputs = task.outputs(loaded.model, table, task.examples(table), quick=True)
    predictions = [task.say_of(row, output) for row, output in zip(table.rows, outputs, strict=True)]
    for lost in reversed(table.lost):
        predictions.insert(lost.before, {"error": lost.reason})
    return predictions
