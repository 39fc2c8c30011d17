"""Pages of the site that are made of the code: every command with its options, every key of a recipe, the notebook.

A hook of MkDocs (`hooks` in mkdocs.yml)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.main import get_command

from lmkit.commands.main import app
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import keys

FRONT = "---\nsearch:\n  boost: 2\n---\n"


def on_files(files: Files, config: Any) -> Files:
    pages = {"commands.md": commands_page(), "keys.md": keys_page(), "python.md": notebook_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands_page() -> str:
    parts = [FRONT + "# Commands\n\n`lmkit COMMAND --help` says the same."]
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        each = {f"{name} {sub}": one for sub, one in inner.items()} if inner else {name: command}
        parts += ["\n".join(_command(full, one)) for full, one in each.items()]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-") and p.name != "help"]
    yield f"## lmkit {name}\n\n{command.help or ''}\n"
    usage = " ".join(p.metavar or (p.name.upper() if p.required else f"[{p.name.upper()}]") for p in arguments)
    yield f"    lmkit {name} {usage} {'[OPTIONS]' if options else ''}".rstrip()
    yield f"    {command.epilog.removeprefix('Example: ')}\n" if command.epilog else ""
    described = [p for p in (*arguments, *options) if getattr(p, "help", None)]
    if described:
        yield "| | |\n|---|---|"
    for p in described:
        shown = ", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts)) if p in options else f"`{p.name.upper()}`"
        yield f"| {shown} | {_cell(p.help)} |"


def keys_page() -> str:
    parts = [
        FRONT + "# Keys of recipes\n\n`lmkit recipes keys` lists them; `KEY=VALUE` on the command line changes any."
    ]
    for title, schema in (("Pretraining", Recipe), ("Fine-tuning", FinetuneRecipe)):
        rows = [
            f"| `{name}` | {_default(field)} | {_cell(field.description)} |" for name, field in keys(schema).items()
        ]
        parts.append(f"## {title}\n\n| key | default | |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "a section" if isinstance(value, BaseModel) else f"`{_cell(repr(value))}`"


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def notebook_page() -> str:
    """Returns docs/python.ipynb as Markdown."""
    cells = json.loads((Path(__file__).parent / "python.ipynb").read_text(encoding="utf-8"))["cells"]
    source = lambda cell: "".join(cell["source"]).strip()
    return (
        "\n\n".join(source(c) if c["cell_type"] == "markdown" else f"```python\n{source(c)}\n```" for c in cells) + "\n"
    )
