"""Reads tokenizers from files: a tokenizer.json, a Hugging Face folder, a sentencepiece model.

A folder is read as transformers reads it: the class that it names decides the rules (`lmkit.text.tokenizer_classes`),
and settings in tokenizer_config.json are followed, or refused by name."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.base.errors import ModelError
from lmkit.base.gguf_file import is_gguf
from lmkit.text.gguf import tokenizer_of_gguf
from lmkit.text.marian import SOURCE, read_marian
from lmkit.text.sentencepiece import as_library, read_model, vocabulary_of
from lmkit.text.special import Special
from lmkit.text.tokenizer import ROLES, Tokenizer, add_ends, add_post_processor, read_object
from lmkit.text.tokenizer_classes import CLASSES, TokenizerClass, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

CONFIG = "tokenizer_config.json"
# The usual names of each role's token, for a tokenizer.json alone, which does not say; the first that exists is used.
USUAL_NAMES = {
    "bos": ("<s>", "<|bos|>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<|bos|>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
# Names of classes without rules of their own: the tokenizer.json, or the sentencepiece model, decides everything.
GENERAL = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer")
FROM_MODEL = ("AlbertTokenizer", "GemmaTokenizer", "LlamaTokenizer", "T5Tokenizer")  # read sentencepiece's own ids
SAME_RULES = {
    "ElectraTokenizer": "BertTokenizer", "DistilBertTokenizer": "BertTokenizer", "BartTokenizer": "RobertaTokenizer",
}  # fmt: skip
# The class of a folder that names none, by the model_type in its config.json, as in transformers 5.
CLASS_OF_MODEL = {
    model_type: name
    for name, model_types in {
        "AlbertTokenizer": "albert yoso",
        "BertTokenizer": "bert convbert distilbert electra ernie layoutlm megatron-bert nezha nomic_bert qdqbert realm "
        "retribert squeezebert visual_bert",
        "CamembertTokenizer": "camembert",
        "GPTNeoXTokenizer": "gpt_neox",
        "NllbTokenizer": "nllb",
        "PegasusTokenizer": "pegasus",
        "GPT2Tokenizer": "codegen dbrx gpt2 gpt_neo gptj jais2 opt phi starcoder2",
        "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma shieldgemma2 t5gemma",
        "MBartTokenizer": "mbart",
        "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
        "RobertaTokenizer": "bart data2vec-text ibert lilt longformer mega mra roberta roberta-prelayernorm",
        "T5Tokenizer": "mt5 switch_transformers t5",
        "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
    }.items()
    for model_type in model_types.split()
}
# Models whose tokenizer.json holds all rules, even if their folder names another class.
GENERAL_MODELS = {
    *("arctic", "bigbird_pegasus", "ernie4_5", "ernie4_5_moe", "flex_olmo", "glm", "glm4", "glm4_moe", "gpt_bigcode"),
    *("granite", "granitemoe", "granitemoehybrid", "internlm2", "internlm3", "jamba", "minicpm3", "minimax_m2"),
    *("ministral", "ministral3", "mistral", "mistral3", "mixtral", "modernbert", "modernbert-decoder", "nemotron"),
    *("nystromformer", "olmo2", "olmo3", "olmo_hybrid", "persimmon", "phi3", "phimoe", "smolvlm", "stablelm", "umt5"),
    "xlm-roberta-xl",
}
# Models for which that is so if their folder names no class. For other models it is not known here.
NO_CLASS = ("", "llama", "nanochat", "smollm3", "deepseek_v2", "deepseek_v3", "exaone4", "apertus", "lfm2", "hunyuan")


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Returns the tokenizer in a tokenizer.json, a Hugging Face folder (fast or slow), a sentencepiece .model, a GGUF
    file, a run or a token store.

    Raises ModelError where there is none, where it is damaged, and where lmkit cannot read it as its own tool does."""
    path = Path(os.path.expanduser(path)) if isinstance(path, str) else path  # only a typed path may have a ~
    if is_gguf(path):
        return tokenizer_of_gguf(path)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        raise ModelError(f"tokenizer {path}: no such file or folder")
    if marian := next((f for f in (path / "latest", path / "tokenizer", path) if (f / SOURCE).is_file()), None):
        return read_marian(marian, _settings(marian))
    for folder in (path / "latest", path / "tokenizer", path):  # a run, a token store, a Hugging Face folder
        names = ("tokenizer.json", "tokenizer.model", "spiece.model")
        files = [*(folder / name for name in names), *sorted(folder.glob("*.model"))]
        existing = next((f for f in files if f.is_file()), None)
        if existing:
            return _from_folder(folder, existing)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_folder(path, path / "vocab.json")
    if (path / "vocab.txt").is_file():
        return _from_folder(path, path / "vocab.txt")
    _class_of(path, {})  # if the class is not supported, that error helps more than the one below
    content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ModelError(
        f"{path} holds no tokenizer (it holds {content})\n"
        "  looked for: tokenizer.json or *.model (also in latest/ and tokenizer/), vocab.json and merges.txt, vocab.txt"
    )


def _from_file(path: Path) -> Tokenizer:
    """Returns the tokenizer in a file. A .model is read without its folder, a tokenizer.json with its folder."""
    if path.suffix != ".model":
        return _from_folder(path.parent, path)
    backend = as_library(_read(path), str(path))
    special = _special(backend, {}, USUAL_NAMES)
    add_post_processor(backend, special)
    return Tokenizer(backend, special)


def _from_folder(folder: Path, file: Path) -> Tokenizer:
    settings = _settings(folder)
    definition = _definition(file) if file.suffix == ".json" and file.name != "vocab.json" else {}
    name = _class_of(folder, definition)
    if not name and file.name.startswith("vocab."):
        name = "BertTokenizer" if file.name == "vocab.txt" else "GPT2Tokenizer"
    if not name and file.suffix == ".model" and any((folder / other).is_file() for other in (CONFIG, "config.json")):
        raise ModelError(
            f"{folder}: it names no tokenizer_class that says how {file.name} is read\n"
            f"  → name it in {CONFIG}, like LlamaTokenizer or T5Tokenizer; or name {file.name} itself, for the ids that"
            " sentencepiece gives"
        )
    rules = CLASSES.get(name)
    usual = {role: token for role, token in rules.roles.items() if f"{role}_token" not in settings} if rules else {}
    roles = usual | _named_roles(folder, settings)
    if rules:
        vocabulary = _vocabulary(file, definition, name, rules, settings)
        backend = _built(rules, vocabulary, roles, folder)
    else:
        backend = _backend(file) if definition else as_library(_read(file), str(file))
    _add_tokens(backend, folder, settings, definition if rules else {}, roles)
    special = _special(backend, roles, {} if rules else USUAL_NAMES)
    _mark_special(backend, settings, special)
    if rules and rules.frame:
        known = {role: token for role in ROLES if (token := getattr(special, role)) is not None}
        _check_roles(folder, name, rules, known)
        rules.frame(backend, vocabulary, known)
    elif definition:
        backend.post_processor = _backend(file).post_processor
    elif rules or "add_bos_token" in settings or "add_eos_token" in settings:
        bos, eos = (settings.get(f"add_{role}_token") for role in ("bos", "eos"))
        add_ends(backend, special.bos if bos else None, special.eos if eos else None)
    else:
        add_post_processor(backend, special)
    # The saved folder may have another config.json, or none, so the class must be named in its settings.
    own = {"tokenizer_class": name} | settings if rules else settings | {"tokenizer_class": GENERAL[0]}
    return Tokenizer(backend, special, own)


def _class_of(folder: Path, definition: Mapping[str, Any]) -> str:
    """Returns the name in CLASSES whose rules a folder follows; "" where its files hold all rules themselves.

    Raises ModelError for a class whose rules lmkit does not have."""
    config = read_object(folder / "config.json")
    model_type = config.get("model_type")
    named = read_object(folder / CONFIG).get("tokenizer_class") or config.get("tokenizer_class")
    name = str(named or CLASS_OF_MODEL.get(str(model_type), ""))
    if not name and str(model_type or "") not in (*NO_CLASS, *GENERAL_MODELS):
        raise ModelError(
            f"{folder}: it names no tokenizer_class, and lmkit does not know that of its model_type `{model_type}`\n"
            f"  → name it in {CONFIG}; PreTrainedTokenizerFast where a tokenizer.json holds all rules"
        )
    name = name if name in GENERAL else name.removesuffix("Fast")
    if not name or name in GENERAL or model_type in GENERAL_MODELS:
        return ""
    if name == "LlamaTokenizer" and "ByteLevel" in json.dumps([definition.get("pre_tokenizer")]):
        return ""  # files of Llama 3 name this class, but are of another kind
    name = SAME_RULES.get(name, name)
    if name not in CLASSES:
        raise ModelError(
            f"{folder}: its tokenizer_class is {named}, whose rules lmkit does not have\n"
            f"  allowed: {', '.join([*CLASSES, *SAME_RULES])}, PreTrainedTokenizerFast\n"
            "  → in Python, transformers.AutoTokenizer.from_pretrained(FOLDER).backend_tokenizer.save('tokenizer.json')"
            " writes all its rules down,\n"
            f"    if it has a backend; put that file into {folder} and name PreTrainedTokenizerFast in {CONFIG}"
        )
    return name


# ---------------------------------------------------------------- what the files hold


def _settings(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json with the older special_tokens_map.json, merged as in transformers."""
    settings = read_object(folder / CONFIG)
    if "added_tokens_decoder" not in settings:
        settings |= read_object(folder / "special_tokens_map.json")
    return settings


def _definition(file: Path) -> dict[str, Any]:
    _backend(file)  # raises ModelError for a damaged one
    definition = json.loads(file.read_bytes())
    if dropout := definition["model"].get("dropout"):
        raise ModelError(
            f"{file}: its model has dropout={dropout}, so a text has other ids each time\n  → set it to null"
        )
    return definition


def _backend(file: Path) -> "Backend":
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for any damage
        raise ModelError(f"{file} is not a tokenizer.json that tokenizers can read: {error}") from error


def _read(file: Path) -> bytes:
    if file.name == "sentencepiece.bpe.model":  # in XLM-R and mBART, ids are those of the model plus an offset
        raise ModelError(f"{file}: fairseq models shift the ids\n  → save its tokenizer.json with transformers first")
    return file.read_bytes()


def _vocabulary(
    file: Path, definition: Mapping[str, Any], name: str, rules: TokenizerClass, settings: Mapping[str, Any]
) -> Vocabulary:
    """Returns what a class reads from the files. Raises ModelError for a kind of model that the class does not read."""
    from tokenizers import models

    try:
        needed = {"vocab.json": "BPE", "vocab.txt": "WordPiece"}.get(file.name, rules.model)
        if needed != rules.model:
            raise ModelError(f"{file}: is of a {needed} model, and its tokenizer_class {name} reads {rules.model}")
        if file.name == "vocab.json":
            ids, pairs = models.BPE.read_file(str(file), str(file.with_name("merges.txt")))
            return Vocabulary(ids, merges=pairs, settings=settings)
        if file.name == "vocab.txt":
            return Vocabulary(models.WordPiece.read_file(str(file)), settings=settings)
        if file.suffix == ".model":
            if name not in FROM_MODEL:
                raise ModelError(f"{file}: {name} shifts its ids\n  → save its tokenizer.json with transformers first")
            sentinels = int(settings.get("extra_ids", 100)) if name == "T5Tokenizer" else 0
            return vocabulary_of(read_model(_read(file), str(file)), rules.model, settings, sentinels)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for any damage
        raise ModelError(f"{file.parent}: its vocabulary files cannot be read: {error}") from error
    model = definition["model"]
    kind = model.get("type") or ("WordPiece" if "max_input_chars_per_word" in model else "BPE")
    if kind != rules.model:
        raise ModelError(f"{file}: holds a {kind} model, and its tokenizer_class {name} reads {rules.model}")
    scored = [(str(p), float(s)) for p, s in model["vocab"]] if kind == "Unigram" else []
    merges: Any = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges", [])]
    steps = definition["normalizer"] or {}
    tables = (step.get("precompiled_charsmap") for step in steps.get("normalizers", [steps]))
    charsmap = base64.b64decode(next(filter(None, tables), ""))
    return Vocabulary({} if scored else model["vocab"], scored, merges, charsmap=charsmap, settings=settings)


def _built(rules: TokenizerClass, vocabulary: Vocabulary, roles: Mapping[str, str], folder: Path) -> "Backend":
    try:
        return rules.build(vocabulary, roles)
    except Exception as error:  # tokenizers raises bare Exception for settings of the wrong type
        raise ModelError(f"{folder}: its tokenizer cannot be built: {error}") from error


def _named_roles(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the token of each role that the files name."""
    values = {role: settings[key] for role in ROLES if settings.get(key := f"{role}_token") is not None}
    tokens = {role: value.get("content") if isinstance(value, dict) else value for role, value in values.items()}
    if not_texts := [role for role, token in tokens.items() if not isinstance(token, str)]:
        raise ModelError(f"{folder}: its {not_texts[0]}_token is {values[not_texts[0]]!r}, which is no text")
    return {role: str(token) for role, token in tokens.items()}


# ---------------------------------------------------------------- tokens behind the vocabulary


def _add_tokens(
    backend: "Backend", folder: Path, settings: Mapping[str, Any], definition: Mapping[str, Any],
    roles: Mapping[str, str],
) -> None:  # fmt: skip
    """Adds the tokens that a folder lists besides its vocabulary, like T5's sentinels, with their flags and ids.

    Raises ModelError where the list is damaged, or a token would get another id."""
    from tokenizers import AddedToken

    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added: dict[str, tuple[int, AddedToken]] = {}
    try:
        listed = settings.get("added_tokens_decoder")
        if listed is None:
            control = {*roles.values(), *_extra_tokens(settings)}
            for token, i in read_object(folder / "added_tokens.json").items():
                special = token in control
                added[token] = int(i), AddedToken(str(token), normalized=not special, special=special, **flags)
            listed = {token["id"]: token for token in definition.get("added_tokens", [])}
        for i, token in listed.items():
            named = {k: v for k, v in token.items() if k in (*flags, "normalized", "special")}
            named["special"] = named.get("special", False) or token["content"] in roles.values()
            added[token["content"]] = int(i), AddedToken(token["content"], **named)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: its list of added tokens cannot be read: {error!r}") from error
    for token, (token_id, entry) in sorted(added.items(), key=lambda item: item[1][0]):
        (backend.add_special_tokens if entry.special else backend.add_tokens)([entry])
        if backend.token_to_id(token) != token_id:
            raise ModelError(f"{folder}: {token!r} should have id {token_id}, but gets {backend.token_to_id(token)}")


def _extra_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Returns control tokens without a role: those in a list, and those with a key of their own like `image_token`."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    own = [v for k, v in settings.items() if k.endswith("_token") and k.removesuffix("_token") not in ROLES]
    tokens = [*(extra.values() if isinstance(extra, dict) else extra), *own]
    texts = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    return [text for text in texts if isinstance(text, str)]


def _mark_special(backend: "Backend", settings: Mapping[str, Any], special: Special) -> None:
    """Makes tokens of a role, and tokens that are listed as control tokens, control tokens of the backend."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    new = [token for token in dict.fromkeys([*special.tokens, *_extra_tokens(settings)]) if token not in known]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in new])


def _special(backend: "Backend", roles: Mapping[str, str], usual_names: Mapping[str, tuple[str, ...]]) -> Special:
    """Returns the token of each role: as the files name it, or by the usual names if they name none.

    A role whose token does not exist is None."""
    known = set(backend.get_vocab(with_added_tokens=True))
    usual = {role: next((n for n in names if n in known), None) for role, names in usual_names.items()}
    tokens: dict[str, Any] = {role: token for role, token in (dict(roles) or usual).items() if token in known}
    return Special(**tokens)


# ---------------------------------------------------------------- frames


def _check_roles(folder: Path, name: str, rules: TokenizerClass, known: Mapping[str, str]) -> None:
    """Raises ModelError where a token that the class puts around texts does not exist."""
    needed = [role for role in rules.framed if role not in known]
    if needed:
        token = rules.roles[needed[0]]
        raise ModelError(
            f"{folder}: {name} puts its {needed[0]} token around texts, and the vocabulary has no {token!r}\n"
            f"  → name the token in {CONFIG}: {needed[0]}_token"
        )
