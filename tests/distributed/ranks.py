"""One of several real processes that train together: does every job of a list, in order, as `lmkit` would.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=... python -m tests.distributed.ranks jobs.json
"""

import json
import os
import sys
from pathlib import Path

from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.finetuning import expand_finetuning as expand_finetuning
from lmkit.training import finetuning_run, pretraining_run


def do(out: str, recipe: str, changes: list[str], verb: str) -> int:
    if verb == "resume":
        return pretraining_run.resume(Path(out))
    if verb == "finetune":
        loaded = recipe_file.load_recipe(FinetuneRecipe, Path(recipe), tuple(changes), expand_finetuning)
        return finetuning_run.start(loaded, "toy", Path(out))
    return pretraining_run.start(Path(recipe), tuple(changes), Path(out))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        code = do(**job)
        if os.environ["RANK"] == "0":
            Path(job["out"] + ".ended").write_text(str(code))


if __name__ == "__main__":
    main()
