"""Model folders from anywhere: what is damaged, hostile or another model's is refused with exit code 4, and no file of
a folder is ever run: the marker that a payload would make is never there."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.text import sandbox
from lmkit.text.chat import ChatTemplate, find_template
from lmkit.text.tokenizer_files import load_tokenizer
from tests.generation.folders import encoder_folder, llama_folder, seq2seq_folder

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama_folder(folder)
    return folder


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


class Payload:
    """What a pickle can do to those who open it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# ---------------------------------------------------------------- pickles


def pickled(path: Path, content: object, form: str) -> None:
    if form == "plain":
        path.write_bytes(pickle.dumps(content))
    elif form == "torch":
        torch.save(content, path)
    elif form == "old torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:  # the archive of torch with other data, and a member that climbs out
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content))
            archive.writestr("../../MARK/x", "out")


@pytest.mark.parametrize("form", ["plain", "torch", "old torch", "archive"])
def test_a_pickle_with_code_is_refused_and_not_run(form, folder, tmp_path, lmkit_):
    marker = tmp_path / "MARK"
    (folder / WEIGHTS).unlink()
    pickled(folder / "pytorch_model.bin", {"model.embed_tokens.weight": Payload(marker)}, form)
    shown = lmkit_("generate", folder, "a")
    assert shown.code == 4 and "pickled weights can run code" in shown.err and "--allow-pickle" in shown.err
    shown = lmkit_("generate", folder, "a", "--allow-pickle")
    assert shown.code == 4 and "pytorch_model.bin: refused" in shown.err
    assert not marker.exists()


def test_a_pickle_of_weights_alone_is_read_where_it_is_allowed(folder, lmkit_):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert lmkit_("generate", folder, "a").code == 4
    assert lmkit_("generate", folder, "a", "--allow-pickle", "--max-tokens", "2").code == 0
    torch.save(tensors | {"epoch": 3}, folder / "pytorch_model.bin")
    shown = lmkit_("generate", folder, "a", "--allow-pickle")
    assert shown.code == 4 and "'epoch' is no tensor" in shown.err


def test_a_pickle_of_another_name_is_never_opened(folder, tmp_path, lmkit_):
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        ".metadata",
        "adapter_model.bin",
    ):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "MARK")))
    for name in ("modeling_llama.py", "tokenization_llama.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')")
    auto = {"AutoModelForCausalLM": "modeling_llama.Model", "AutoTokenizer": "tokenization_llama.T"}
    change(folder / "config.json", auto_map=auto, trust_remote_code=True)
    change(folder / "tokenizer_config.json", auto_map=auto)
    shown = lmkit_("generate", folder, "a", "--max-tokens", "2")
    assert shown.code == 0 and "own code (auto_map) is not run" in shown.err
    assert not (tmp_path / "MARK").exists()


# ---------------------------------------------------------------- safetensors


def crafted(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FILES = {
    "empty": b"",
    "of three bytes": b"\0\0\0",
    "text": b"not at all",
    "header beyond the file": crafted({"a": TENSOR}, b"1234", length=10_000),
    "absurd header": crafted({"a": TENSOR}, b"1234", length=2**63),
    "header that is no JSON": crafted(b"{{{{"),
    "header that is a list": crafted([1]),
    "nested header": crafted(b'{"a":' * 50_000),
    "overlapping": crafted({"a": TENSOR, "b": TENSOR | {"data_offsets": [2, 6]}}, b"123456"),
    "hole": crafted({"a": TENSOR | {"data_offsets": [4, 8]}}, b"12345678"),
    "backwards": crafted({"a": TENSOR | {"data_offsets": [4, 0]}}, b"1234"),
    "beyond the data": crafted({"a": TENSOR | {"data_offsets": [0, 4000], "shape": [1000]}}, b"1234"),
    "absurd shape": crafted({"a": TENSOR | {"shape": [2**40, 2**40]}}, b"1234"),
    "negative shape": crafted({"a": TENSOR | {"shape": [-1]}}, b"1234"),
    "unknown dtype": crafted({"a": TENSOR | {"dtype": "P64"}}, b"1234"),
    "cut": crafted({"a": TENSOR}, b"12"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_safetensors_are_refused(name, folder, lmkit_):
    (folder / WEIGHTS).write_bytes(FILES[name])
    shown = lmkit_("generate", folder, "a")
    assert shown.code == 4 and f"{WEIGHTS}: damaged or not safetensors" in shown.err, shown


def test_other_numbers_and_other_tensors_are_named(folder):
    tensors, name = load_file(folder / WEIGHTS), "model.layers.0.mlp.up_proj.weight"
    spoilt = tensors[name].clone()
    spoilt[3, 3] = float("nan")
    cases = {
        "not finite": {name: spoilt},
        "int8": {name: tensors[name].to(torch.int8)},
        "shape": {name: tensors[name][:-1].contiguous()},
        "left over weird.weight": {"weird.weight": torch.zeros(2)},
    }
    for says, wrong in cases.items():
        save_file(tensors | wrong, folder / WEIGHTS)
        with pytest.raises(ModelError, match=says):
            lmkit.load(folder)
    save_file({k: v for k, v in tensors.items() if k != name}, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"missing layers\.0\.mlp\.up_proj\.weight"):
        lmkit.load(folder)
    encoder_folder(folder / "bert", "bert")
    shutil.copy(folder / "bert" / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"(?s)missing .*left over .*"):
        lmkit.load(folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "points outside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "points outside its folder"),
        ({"weight_map": {"a": 5}}, "points outside its folder"),
        ({"weight_map": {"a": ".."}}, "damaged"),
        ({"weight_map": {"a": [1]}}, "damaged"),
        ({"weight_map": [1]}, "damaged"),
        ({}, "damaged"),
        ([], "damaged"),
        ({"weight_map": {"a": "shard-2.safetensors"}}, "shard shard-2.safetensors is missing"),
        ({"weight_map": {"a": WEIGHTS, "b": "again.safetensors"}}, "in another shard too"),
    ],
)
def test_an_index_reaches_only_whole_shards_of_its_folder(index, says, folder):
    shutil.copy(folder / WEIGHTS, folder.parent / "secret.safetensors")
    shutil.copy(folder / WEIGHTS, folder / "again.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=says):
        lmkit.load(folder)


def test_weights_behind_links_are_read_as_the_hubs_cache_keeps_them(folder):
    (folder / WEIGHTS).rename(folder.parent / "blob")
    (folder / WEIGHTS).symlink_to("../blob")
    lmkit.load(folder)
    (folder.parent / "blob").unlink()
    with pytest.raises(ModelError, match=f"no {WEIGHTS}"):
        lmkit.load(folder)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model_type": "gpt_neo"}, "model_type `gpt_neo` is not supported"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["LlamaForNothing"]}, "did you mean `LlamaFor"),
        ({"architectures": 5}, "architectures: 5"),
        ({"architectures": [{"a": 1}]}, "architectures"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"hidden_size": "32"}, "hidden_size: '32' is no size"),
        ({"hidden_size": 10**30}, "is no size"),
        ({"hidden_size": 2**30}, "parameters, the weights are"),
        ({"vocab_size": 2**26}, "parameters, the weights are"),
        ({"num_hidden_layers": 2**13}, "8,192 layers"),
        ({"num_hidden_layers": 2**30}, "num_layers: Input should be less than or equal to 10000"),
        ({"max_position_embeddings": 2**30}, "a context of 1,073,741,824"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 is no size"),
        ({"num_attention_heads": 3}, "num_heads 3"),
        ({"hidden_act": ["silu"]}, "activation"),
        ({"hidden_act": "sillu"}, "did you mean `silu`"),
        ({"rope_parameters": 7}, "wrong kind"),
        ({"rope_parameters": {"rope_type": "ntk_by_parts", "factor": 2.0}}, "`ntk_by_parts` is not supported"),
        ({"rms_norm_eps": "small"}, "norm_eps"),
        ({"rms_norm_eps": -1}, "norm_eps"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
    ],
)
def test_settings_that_make_no_model_are_named_and_allocate_nothing(keys, says, folder, lmkit_):
    change(folder / "config.json", **keys)
    shown = lmkit_("generate", folder, "a")
    assert shown.code == 4 and says in shown.err and len(shown.err) < 2000, shown


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content, folder, lmkit_):
    (folder / "config.json").write_bytes(content)
    shown = lmkit_("generate", folder, "a")
    assert shown.code == 4 and "config.json" in shown.err


def test_a_decoder_that_starts_from_no_token_is_refused(tmp_path):
    seq2seq_folder(tmp_path, "bart")
    for keys in ({"decoder_start_token_id": 320}, {"forced_bos_token_id": -1}, {"bad_words_ids": [5]}):
        (tmp_path / "generation_config.json").write_text(json.dumps(keys))
        with pytest.raises(ModelError, match=next(iter(keys))):
            lmkit.load(tmp_path)


# ---------------------------------------------------------------- tokenizers and chat templates


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("tokenizer.json", b"\x80\x04]", "not a tokenizer.json"),
        ("tokenizer.json", b"[" * 100_000, "not a tokenizer.json"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b'{"bos_token": 5}', "bos_token is 5"),
        ("tokenizer_config.json", b'{"bos_token": {"a": 1}}', "bos_token is"),
        ("generation_config.json", b"[[]]", "not a JSON object"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_refused(file, content, says, folder, lmkit_):
    (folder / file).write_bytes(content)
    shown = lmkit_("generate", folder, "a")
    assert shown.code == 4 and says in shown.err, shown


@pytest.mark.parametrize("added", [[1], {"a": {}}, {"5": "x"}, {"5": {"content": "new", "special": True}}])
def test_added_tokens_without_their_ids_are_refused(added, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "unk_token": "[UNK]"}))
    if added == {"5": {"content": "new", "special": True}}:
        assert load_tokenizer(tmp_path).vocab["new"] == 5
    else:
        with pytest.raises(ModelError, match="added tokens"):
            load_tokenizer(tmp_path)


TEMPLATES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ strftime_now.__globals__['os'].mkdir('MARK') }}",
    "raise": "{{ raise_exception.__globals__.__builtins__.open('MARK', 'w') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "import": "{% import 'os' as os %}{{ os.mkdir('MARK') }}",
    "include": "{% include '/etc/passwd' %}",
    "change": "{% set _ = messages.clear() %}",
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "silent loop": "{% for i in range(99999) %}{% for j in messages %}{% for k in range(999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "recursive loop": "{% for i in range(99) recursive %}{{ loop(range(99)) }}{% endfor %}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "range": "{{ range(10 ** 9)|list }}",
    "times": "{{ 'a' * 10 ** 12 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "doubled": "{% set x = 'a' %}" + "{% set x = x ~ x %}" * 60,
    "doubled list": "{% set x = [1] %}" + "{% set x = x + x %}" * 60,
    "wide": "{{ 'a'.ljust(10 ** 12) }}",
    "words": "{{ lipsum(n=10 ** 9) }}",
    "syntax": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_chat_templates_end_and_reach_nothing(name, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "MOST_STEPS", 200_000)
    template = ChatTemplate(TEMPLATES[name])
    with pytest.raises(UserError, match="chat template"):
        template.render([{"role": "user", "content": "Hi"}])
    assert not list(tmp_path.iterdir())


def test_loops_of_honest_templates_are_as_in_jinja():
    source = (
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.previtem.role if loop.previtem is defined }}{{ m.role ~ ':' ~ m.content ~ none }}"
        "{% else %}-{% endfor %}"
        "{% for a, b in {'x': 1}.items() %}{{ a ~ b }}{% endfor %}{% for q in missing %}{{ q }}{% endfor %}"
        "{{ [1] + [2] }}{{ 2 ** 3 }}{{ '-' * 3 }}"
    )
    import jinja2

    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert ChatTemplate(source).render(said) == jinja2.Template(source).render(messages=said)
    assert ChatTemplate(source).render([]) == jinja2.Template(source).render(messages=[])
    long = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert len(long.render(said * 5000)) == 20_000


def test_a_template_of_a_model_is_told_by_its_folder(folder):
    for said in (5, ["x"], [{"name": "default"}]):
        change(folder / "tokenizer_config.json", chat_template=said)
        assert find_template([folder], "auto", load_tokenizer(folder)).name == "chatml"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: cannot be read"):
        find_template([folder], "auto", load_tokenizer(folder))
