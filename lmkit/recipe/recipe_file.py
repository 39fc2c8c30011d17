"""YAML recipe and `key=value` overrides -> a checked, frozen object. Every mistake is reported at once, with its line.

Precedence, lowest first: schema defaults, the recipe's `base:` file, the recipe, overrides.
Paths (`PATH_KEYS`) are relative to the file they stand in, or to the working directory where they name something there
and nothing beside the file; on the command line always to the working directory.
"""

import glob
import math
import os
import re
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lmkit.base.errors import UserError, did_you_mean
from lmkit.recipe.aliases import key_for

T = TypeVar("T", bound=BaseModel)
MAX_BYTES = 1_000_000
MAX_DEPTH = 50
SIGN = re.compile(r""":\s+[^\w\s"'\[{~./$]""")  # begins a value, and means something in YAML
PATH_KEYS = {("data", "train"), ("data", "validation"), ("tokenizer", "path"), ("task", "kb"), ("task", "template")}
NAMED = ("task", "tracker")  # sections that a recipe may write as a name alone
BEFORE = {"tokenizer": {"split": "two_digits"}}  # what runs of versions without these keys did
TASK_BEFORE = {"classify": {"scale_targets": False}}  # the same of the section of one task
WRONG_TYPE = re.compile(r"(string|list|tuple|dict|model|model_attributes|int|float|bool)_type")  # as pydantic says it
BY_NAME = ("auto", "chatml")  # chat templates that are no files


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number; yes, no, on, off, 012 and 1:30 are what they look like (YAML 1.2 core).

    Duplicate keys, tags and aliases are errors: the first hides a mistake, the others have no use in a recipe."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's way to drop the YAML 1.1 rules

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        wrong = "nested too deeply" if self.depth == MAX_DEPTH else ""
        if isinstance(event, yaml.AliasEvent):
            wrong = "aliases (*name) are not allowed in a recipe"
        elif getattr(event, "tag", None):
            wrong = f"tags ({event.tag}) are not allowed in a recipe"
        if wrong:
            raise yaml.MarkedYAMLError(problem=wrong, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                shown = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise yaml.MarkedYAMLError(problem=f"a key is a name, not {shown}", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key `{key.value}` stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_INT, _FLOAT = (
    r"[-+]?[0-9][0-9_]*",
    r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+\.|[-+]?\.inf|\.nan",
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^(?:{_INT})$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT})$"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(node.value))


def _float(text: str) -> float:
    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML. Raises UserError with the line of the mistake."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it builds plain values only
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        tab = "\n  → indent with spaces: YAML does not allow tabs" if "\\t" in str(e.problem) else ""
        lines = text.splitlines()
        written = lines[mark.line] if mark and mark.line < len(lines) else ""
        quotes = "\n  → put quotes around text that begins with a sign, like ','" if SIGN.search(written) else ""
        raise UserError(f"{where}{line}: not a valid recipe: {e.problem or e.context}{tab}{quotes}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{where}: not a valid recipe: {e}") from None


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str]]:
    """Returns the recipe as nested dicts with `base:` merged in, and where each dotted key was written
    (`file:line`)."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: `base:` goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UserError(f"{path}: above {MAX_BYTES:,} bytes, which is too large for a recipe")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe\n  → `lmkit recipes` lists the built-in ones") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None
    tree = parse_yaml(text, _shown(path))
    if not isinstance(tree, dict):
        kind = "empty" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{_shown(path)}: a recipe is a mapping of sections, this is {kind}")
    lines = {key: f"{_shown(path)}:{line}" for key, line in _key_lines(text).items()}
    base = tree.pop("base", None)
    if base is None:
        return _absolute_paths(tree, path.parent), lines
    if not isinstance(base, str):
        raise UserError(f"{lines['base']}: `base` is the name of one recipe file (got {base!r})")
    low, low_lines = read_tree(path.parent / base, (*seen, path))
    return _merge(low, _absolute_paths(tree, path.parent)), low_lines | lines


def load_recipe(
    schema: type[T], path: Path | None, overrides: tuple[str, ...] = (), expand: Any = None, low: dict | None = None
) -> T:
    """Reads a recipe, applies the overrides, expands it (presets fill what it leaves open: dict -> dict) and checks it.

    path: None where the overrides are all there is. low: values that hold where neither says anything else.

    Raises UserError listing every problem with file, line, key, value, what is allowed and the nearest right name."""
    tree, lines = read_changed(path, overrides)
    return build_recipe(schema, _merge(low or {}, tree), lines, expand, where_of(path))


def read_changed(path: Path | None, overrides: Sequence[str] = ()) -> tuple[dict, dict[str, str]]:
    """Returns what `read_tree` does, with the overrides in it. path: None where they are all there is."""
    tree, lines = ({}, {}) if path is None else read_tree(path)
    for item in overrides:
        key = override(tree, item)
        lines[key] = f"command line: {item}"
    return tree, lines


def where_of(path: Path | None) -> str:
    """Returns how messages call a recipe."""
    return "command line" if path is None else _shown(path)


def build_recipe(schema: type[T], tree: dict, lines: dict[str, str], expand: Any = None, where: str = "recipe") -> T:
    problems = [*_unknown_keys(schema, tree, lines, keys(schema)), *_not_finite(tree, lines, where)]
    complete, failed = True, None
    # `task: masked_lm` says it all.
    tree = {key: {"name": value} if key in NAMED and isinstance(value, str) else value for key, value in tree.items()}
    try:
        tree = expand(tree) if expand is not None else tree
    except ValueError as e:
        key = str(e).partition(" ")[0].strip("`:")
        problems.append(f"{_line(key, lines, where)}\n  {e}")
        complete = False  # what stayed open is no mistake of its own
    except (ArithmeticError, TypeError) as e:  # it counts with values that the schema has not seen yet
        complete, failed = False, e
    try:
        built = schema.model_validate(tree)
        if failed and not problems:
            raise failed
        if not problems:
            return built
    except ValidationError as e:
        told = {"extra_forbidden"} if complete else {"extra_forbidden", "missing"}
        errors = [error for error in _meant(schema, e.errors()) if error["type"] not in told]
        wrong = [_explain(schema, error, lines, where) for error in errors]
        problems = [p for p in problems if not any(other.endswith(p.partition("\n  ")[2]) for other in wrong)] + wrong
    if not problems:
        problems = [f"{where}: the sizes of `model` do not go together ({failed})\n  → name num_heads and head_dim too"]
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise UserError(f"{where}: {count}; nothing was started.\n\n" + "\n\n".join(problems))


def read_run(file: Path) -> tuple[dict, dict[str, str]]:
    """Does what `read_tree` does for the recipe of a run. Keys that its version did not have stand for what it did."""
    tree, lines = read_tree(file)
    task = tree.get("task")
    of_task = TASK_BEFORE.get(task["name"], {}) if isinstance(task, dict) and "name" in task else {}
    return _merge(BEFORE | ({"task": of_task} if of_task else {}), tree), lines


def dump(config: BaseModel, without: Collection[str] = ()) -> str:
    """Returns the resolved recipe as YAML, which a run stores and which reads back to an equal object; `without` some
    of its keys."""
    tree = {key: value for key, value in as_tree(config).items() if key not in without}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def as_tree(config: BaseModel) -> dict[str, Any]:
    """Returns plain values under the names of a recipe."""
    return config.model_dump(mode="json", by_alias=True)


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Returns `key: old -> new` for every leaf that differs between two trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in {**old, **new} for d in differences(old.get(k), new.get(k), f"{at}.{k}" if at else k)]
    return [] if old == new else [f"{at}: {old} -> {new}"]


def keys(schema: type[BaseModel], at: str = "") -> dict[str, Any]:
    """Returns the pydantic field of every dotted key that a recipe may hold."""
    fields_by_key: dict[str, Any] = {}
    for name, field in fields(schema).items():
        fields_by_key[f"{at}{name}"] = field
        for inner in sections_of(field.annotation):
            fields_by_key |= keys(inner, f"{at}{name}.")
    return fields_by_key


def fields(schema: type[BaseModel]) -> dict[str, Any]:
    """Returns the fields by the names of a recipe; one of these, `async`, is a word that Python keeps for itself."""
    return {field.alias or name: field for name, field in schema.model_fields.items()}


def sections_of(hint: Any) -> list[type[BaseModel]]:
    """Returns the schemas inside `Section`, `Section | None`, or a choice of several by their `name`; none for plain
    values."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]


def _chosen(sections: list[type[BaseModel]], value: dict) -> type[BaseModel] | None:
    """Returns the section that `value` fills in; None where its `name` chooses none of several, which the schema
    reports."""
    if len(sections) == 1:
        return sections[0]
    return next((s for s in sections if s.model_fields["name"].default == value.get("name")), None)


def _unknown_keys(
    schema: type[BaseModel], tree: Any, lines: dict[str, str], all_keys: typing.Collection[str], at: str = ""
) -> typing.Iterator[str]:
    known = {f"{at}{name}": field for name, field in fields(schema).items()}
    everywhere = keys(schema, at)
    for name, value in tree.items():
        key = f"{at}{name}"
        if key not in known:
            ours = key_for(key, value, all_keys)
            hint = did_you_mean(key, everywhere) if ours is None else f"\n  → here it is {ours}"
            yield f"{_line(key, lines, 'recipe')}\n  unknown key `{key}`{hint}"
        elif isinstance(value, dict) and (sections := sections_of(known[key].annotation)):
            inner = _chosen(sections, value)
            if inner:
                yield from _unknown_keys(inner, value, lines, all_keys, f"{key}.")


def _not_finite(tree: Any, lines: dict[str, str], where: str, at: str = "") -> typing.Iterator[str]:
    """Finds infinity and NaN, numbers that no setting means."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _not_finite(value, lines, where, f"{at}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{_line(f'{at}{name}', lines, where)}\n  `{at}{name}` = {value} is no finite number"


def _meant(schema: type[BaseModel], errors: Sequence[Any]) -> list[Any]:
    """Returns the errors without those of the members of a union that a value was not meant for: it is meant for those
    whose type it has. Where it has the type of none, the first error names all that are allowed."""
    known, ranks = keys(schema), dict[str, int]()

    def members(error: Any) -> typing.Iterator[tuple[str, int]]:
        """Yields the key of each union on the way to the error, and how far the value is from that member."""
        key, parts = "", error["loc"]
        for number, part in enumerate(parts, 1):
            if (inner := f"{key}.{part}".lstrip(".")) in known:
                key = inner
            elif isinstance(part, str):
                yield key, 0 if number < len(parts) else 1 + bool(WRONG_TYPE.fullmatch(error["type"]))

    for error in errors:
        for key, rank in members(error):
            ranks[key] = min(rank, ranks.get(key, rank))
    meant, alike = list[Any](), dict[str, Any]()
    for error in errors:
        at = list(members(error))
        if any(rank > ranks[key] for key, rank in at):
            continue
        if at and at[-1][1] == 2:
            key = at[-1][0]
            if key in alike:
                alike[key]["msg"] += f" or {error['msg'].removeprefix('Input should be ')}"
                continue
            error = alike[key] = dict(error)
        meant.append(error)
    return meant


def _explain(schema: type[BaseModel], error: Any, lines: dict[str, str], where: str) -> str:
    """Says one pydantic error as a person would."""
    key = ".".join(
        str(p) for p in error["loc"] if isinstance(p, str) and not p.startswith(("function-", "list[", "constrained-"))
    )
    section, _, rest = key.partition(".")
    if f"{section}.name" in keys(schema) and key not in keys(schema):  # the name that chose among sections
        key = f"{section}.{rest.partition('.')[2]}".rstrip(".")
    while key and key not in keys(schema) and "." in key:  # union branches add their type names to the location
        key = key.rpartition(".")[0]
    line = _line(key, lines, where)
    name = f"`{key}`" if key else "recipe"
    value, kind = error.get("input"), error["type"]
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(
        r"valid dictionary or (instance of \w+|object to extract fields from)", "section with keys", message
    )
    if kind == "missing":
        return f"{line}\n  missing key {name}: {keys(schema)[key].description}"
    if kind == "union_tag_invalid":
        choices = [c.strip("' ") for c in error["ctx"]["expected_tags"].split(",")]
        return f"{line}\n  `{key}` = {error['ctx']['tag']!r} is not one of the allowed values" + did_you_mean(
            error["ctx"]["tag"], choices
        )
    if kind == "literal_error":
        choices = [c.strip("'") for c in re.split(r", | or ", error["ctx"]["expected"]) if c != "''"]
        return f"{line}\n  {name} = {value!r} is not one of the allowed values{did_you_mean(str(value), choices)}"
    if kind == "value_error":
        return f"{line}\n  {name}: {message}"
    if kind == "tuple_type" and not isinstance(value, dict):
        return f"{line}\n  {name}: it is a list, and {value!r} stands alone\n  → [{value}]"
    return f"{line}\n  {name}: {message[0].lower() + message[1:]} (got {value!r})"


def _line(key: str, lines: dict[str, str], default: str) -> str:
    """Returns where `key` was written, else a key inside it, else the section that holds it."""
    inside = [k for k in lines if k.startswith(f"{key}.")]
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((lines[k] for k in [above[0], *inside, *above[1:]] if k in lines), default)


def override(tree: dict, item: str) -> str:
    """Sets one `key.path=value`; the value is YAML, so lists and mappings work too. Returns the dotted key."""
    key, eq, text = item.partition("=")
    key = key.strip().lstrip("-")
    if not eq or not key:
        raise UserError(f"command line: `{item}` is not key=value\n  → for example train.lr=3e-4")
    value = text if _is_literal(text) else parse_yaml(text, f"command line: {item}")
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        value = text  # words with a colon in them
    *parents, leaf = key.split(".")
    node = tree
    for p in parents:
        if not isinstance(node.get(p), dict):
            node[p] = {} if node.get(p) is None else _as_section(p, node[p])
        node = node[p]
    alone = {parents[-1]: {leaf: value}} if parents else {leaf: value}
    absolute = _absolute_paths(alone, Path.cwd())
    node[leaf] = absolute[parents[-1]][leaf] if parents else absolute[leaf]
    return key


def _is_literal(text: str) -> bool:
    """Returns whether a value is made of signs and blanks alone, or has control characters. Such separators YAML would
    take for signs of its own, or lose."""
    if text in ("", "~") or text.lstrip(" ")[:1] in tuple("'\"[{"):
        return False
    return not any(c.isalnum() for c in text) or any(c < " " for c in text)


def _as_section(name: str, value: Any) -> dict:
    """Returns a section for a value that stands in its place: a name, where one may be written alone."""
    if name in NAMED and isinstance(value, str):
        return {"name": value}
    raise UserError(f"`{name}` is {value!r}, not a section: it has no keys to override")


def _merge(low: dict, high: dict) -> dict:
    out = dict(low)
    for k, v in high.items():
        out[k] = _merge(out[k], v) if isinstance(v, dict) and isinstance(out.get(k), dict) else v
    return out


def _key_lines(text: str) -> dict[str, int]:
    """Returns the line, from 1, of each dotted key."""
    lines: dict[str, int] = {}

    def walk(node: Any, at: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            lines[f"{at}{key.value}"] = key.start_mark.line + 1
            walk(value, f"{at}{key.value}.")

    walk(yaml.compose(text, Loader=_Loader), "")
    return lines


def _absolute_paths(tree: dict, folder: Path) -> dict:
    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(v) for v in value]
        is_share = isinstance(value, str) and re.fullmatch(r"[0-9.]+ ?%", value)
        if not isinstance(value, str) or value.startswith("hub:") or is_share:
            return value
        beside, here = (os.path.normpath(place / os.path.expanduser(value)) for place in (folder, Path.cwd()))
        return here if not glob.glob(beside) and glob.glob(here) else beside

    out = dict(tree)
    if isinstance(out.get("model"), str):  # of a fine-tuning recipe: where to start from
        out["model"] = absolute(out["model"])
    for section, key in PATH_KEYS:
        if isinstance(out.get(section), dict) and out[section].get(key) not in (None, *BY_NAME):
            out[section] = {**out[section], key: absolute(out[section][key])}
    return out


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def recipes_folder() -> Path:
    """Returns the folder of recipes: inside an installed package, else beside it in a checkout."""
    here = Path(__file__).parents[1]  # lmkit/
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def builtin_recipes(stage: str = "*") -> dict[str, Path]:
    """Returns the built-in recipes by name. stage: of `pretrain` or `finetune` alone."""
    return {p.stem: p for p in sorted(recipes_folder().glob(f"{stage}/*.yaml"))}


def find_recipe(name: str, stage: str = "*") -> Path:
    """Returns the path of a recipe: a file, or a built-in recipe by its name. Raises UserError."""
    known = builtin_recipes(stage)
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    if (path / "recipe.yaml").is_file():  # a run directory: its resolved recipe, to run again
        return path / "recipe.yaml"
    raise UserError(f"no recipe `{name}`: neither a file nor a built-in name{did_you_mean(name, known)}")
