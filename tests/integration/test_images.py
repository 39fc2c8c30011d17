"""Images as tokens, by the real commands: tokenize, pretrain, finetune, predict, and drawing."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import DataError, UserError
from lmkit.commands.main import app
from lmkit.data.tokens.store import TokenStore
from lmkit.generation.sampling import SamplingConfig
from lmkit.images.palette import load_palette
from lmkit.objectives.build import build_objective
from lmkit.ops import drawing
from lmkit.recipe import defaults, recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import builtin_recipes
from lmkit.text.tokenizer_files import load_tokenizer

FAMILIES = {"gpt2": 20, "llama": 20, "bert": 19, "modernbert": 19}  # context: an image of 16 words, framed
SMALL = "hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64"


def command(*args: str | Path) -> str:
    got = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return got.stdout


def write_idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes())


def stripes(n: int, seed: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(n, size, size) uint8 of lines in three greys that stand (label 0) or lie (1), the first two dark and bright;
    (n,) uint8."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.uint8)
    greys = rng.choice(np.array([10, 120, 250], np.uint8), (n, size))
    greys[:, :2] = 10, 250
    lying = np.repeat(greys[:, :, None], size, axis=2)
    return np.where(labels[:, None, None] == 1, lying, lying.transpose(0, 2, 1)), labels


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Images, tokens for each family, and a run of three steps on them."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "data").mkdir()
    for name, n, seed in (("train", 300, 0), ("t10k", 40, 1)):
        images, labels = stripes(n, seed)
        write_idx(folder / f"data/{name}-images-idx3-ubyte", images)
        write_idx(folder / f"data/{name}-labels-idx1-ubyte", labels)
    write_idx(folder / "unlabelled-images-idx3-ubyte", stripes(40, 1)[0])
    for family, context in FAMILIES.items():
        (folder / f"{family}.yaml").write_text(
            f"model: {{family: {family}, {SMALL}, context: {context}}}\ndata: {{train: {family}}}\n"
            f"train: {{budget: 3 steps, batch: {16 * context}}}\nevaluate: {{sample: null}}\n"
        )
        command("tokenize", folder / "data", "--out", folder / family, "--family", family, "--validation", "20%",
                "--pixels", "size=8 patch=2 colours=16")  # fmt: skip
        command("pretrain", folder / f"{family}.yaml", "--out", folder / f"run-{family}")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_is_an_image_and_every_folder_holds_the_palette(work, family):
    store = TokenStore(work / family)
    split = store.split("train")
    assert split.num_documents + store.split("validation").num_documents == 300
    before, after = split.frame
    assert set(split.lengths.tolist()) == {16 + before + after}
    palette = load_palette(store.tokenizer_path)
    codes = palette.codes(list(stripes(300, 0)[0])).tolist()
    stored = {tuple(split.document(i).tolist()[before : before + 16]) for i in range(split.num_documents)}
    assert stored <= {tuple(row) for row in codes}  # ids are codes
    saved = (store.tokenizer_path / "palette.json").read_bytes()
    for folder in ("best", "latest"):
        assert (work / f"run-{family}" / folder / "palette.json").read_bytes() == saved
    assert not [path for path in work.iterdir() if ".images-" in path.name]  # the texts are gone


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_model_and_its_words(work, family):
    folder = work / f"run-{family}/best"
    ours = lmkit.load(folder)
    assert ours.tokenizer is not None
    cls = transformers.AutoModelForCausalLM if ours.config.causal else transformers.AutoModelForMaskedLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    palette = load_palette(folder)
    text = palette.texts(list(stripes(1, 3)[0]))[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.tokenizer.encode(text) == palette.read(text)
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        theirs = cls.from_pretrained(folder).eval()(torch.tensor([ids])).logits
    torch.testing.assert_close(ours.logits([ids]), theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "modernbert"])
def test_a_pretrained_model_learns_to_classify_them(work, family, tmp_path):
    command("finetune", "--task", "classify", "--model", work / f"run-{family}", "--data", work / "data",
            "--out", tmp_path / "run", "train.budget=60 steps", "train.batch=32 rows", "optimizer.lr=0.005",
            "task.baseline=false")  # fmt: skip
    scores = json.loads((tmp_path / "run/scores.json").read_text())["scores"]
    assert scores["accuracy"]["value"] == 1.0
    command("predict", tmp_path / "run", "--data", work / "unlabelled-images-idx3-ubyte", "--out", tmp_path / "said")
    said = [json.loads(line)["label"] for line in (tmp_path / "said").read_text().splitlines()]
    assert said == [str(label) for label in stripes(40, 1)[1]]
    report = json.loads(command("eval", tmp_path / "run", "--data", work / "data/t10k-images-idx3-ubyte", "--json"))
    assert next(iter(report["models"].values()))["accuracy"]["value"] == 1.0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("keep", "kept"), [("50%", 8), ("0%", 0), ("0.9", 14)])
def test_drawing(work, family, keep, kept, tmp_path):
    out = tmp_path / "drawn.png"
    args = ("draw", work / f"run-{family}", "--images", work / "data", "-n", "3", "--keep", keep, "--out", out,
            "-t", "1", "--json")  # fmt: skip
    rows = [json.loads(line) for line in command(*args).splitlines()]
    palette = load_palette(work / f"run-{family}/best")
    assert len(rows) == 3 and all(len(row["drawn"]) == drawing.DRAWN for row in rows)
    images = stripes(300, 0)[0]
    for row in rows:
        place = int(row["place"].rpartition(":")[2]) - 1
        assert row["words"] == palette.texts([images[place]])[0] and row["kept"] == kept
        for text in row["drawn"]:  # nothing but words of the palette, and as many as an image has
            assert len(palette.read(text)) == len(text.split()) == 16
            assert text.split()[:kept] == row["words"].split()[:kept]
    times, columns = drawing.SIDE // 8, 2 + drawing.DRAWN
    picture = np.asarray(Image.open(out))
    wide = 8 * times + drawing.GAP
    assert picture.shape == (3 * wide - drawing.GAP, columns * wide - drawing.GAP)
    cells = [[picture[r * wide :, c * wide :][: 8 * times, : 8 * times][::times, ::times] for c in range(columns)]
             for r in range(3)]  # fmt: skip
    for row, (original, part, *drawn) in zip(rows, cells, strict=True):
        np.testing.assert_array_equal(original, palette.image(palette.read(row["words"])))
        np.testing.assert_array_equal(part, palette.beginning(palette.read(row["words"])[:kept]))
        for text, image in zip(row["drawn"], drawn, strict=True):
            np.testing.assert_array_equal(image, palette.image(palette.read(text)))
    assert [json.loads(line) for line in command(*args).splitlines()] == rows  # the same seed, the same picture


def test_drawing_the_likeliest_once_and_in_text_mode(work, tmp_path):
    out = tmp_path / "one.png"
    said = command("generate", work / "run-gpt2", "--images", work / "data", "-n", "2", "-t", "0", "--out", out)
    assert said.strip() == str(out)
    assert Image.open(out).size[0] == 3 * (drawing.SIDE + drawing.GAP) - drawing.GAP


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_control_tokens_are_never_drawn_however_likely_they_are(work, temperature):
    loaded, palette = lmkit.load(work / "run-gpt2"), load_palette(work / "run-gpt2/best")
    words = [loaded.tokenizer.token_id(word) for word in palette.words]
    likely = torch.full((loaded.config.vocab_size,), 100.0)
    likely[words] = 0
    loaded.model.head.register_forward_hook(lambda module, read, logits: logits + likely)
    assert not set(loaded.logits([[0, 1]]).argmax(-1).flatten().tolist()) & set(words)
    drawn = drawing.continuations(loaded, palette, [[1, 2], [3, 4]], SamplingConfig(temperature=temperature))
    assert [[codes[:2] for codes in images] for images in drawn] == [
        [beginning] * (drawing.DRAWN if temperature else 1) for beginning in ([1, 2], [3, 4])
    ]
    assert all(len(codes) == palette.length for images in drawn for codes in images)


def test_what_cannot_be_drawn_is_said(work, monkeypatch, tmp_path):
    images = ("--images", str(work / "data"))
    for args, told in (
        ((work / "run-bert", *images), "needs a causal model"),
        ((work / "run-gpt2", *images, "--keep", "100%"), "nothing to draw"),
    ):
        with pytest.raises(UserError, match=told):
            command("draw", *args)
    with pytest.raises(UserError, match="nothing to draw"):  # as it was called before
        command("generate", work / "run-gpt2", f"--images={work / 'data'}", "--keep=100%")
    with pytest.raises(Exception, match="No such option: --max-tokens"):
        command("draw", work / "run-gpt2", *images, "--max-tokens", "3")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"pip install 'lmkit\[images\]'") as e:
        command("generate", work / "run-gpt2", *images)
    assert "\n" not in str(e.value)


def test_tokenize_is_deterministic_and_takes_files_for_validation(work, tmp_path):
    data, held = work / "data", work / "data/t10k-images-idx3-ubyte"
    args = ("--family", "gpt2", "--validation", held, "--pixels", "size=4,colours=9")
    for name in ("one", "two"):
        command("tokenize", data, "--out", tmp_path / name, *args)
    one, two = (TokenStore(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert [one.split(s).num_documents for s in ("train", "validation")] == [300, 40]
    command("tokenize", data, "--out", tmp_path / "one", *args)
    # brighter images: the words may be the same, what they look like is not
    (tmp_path / "bright").mkdir()
    write_idx(tmp_path / "bright/train-images-idx3-ubyte", stripes(300, 0)[0] + 5)
    before = (tmp_path / "one/tokenizer/palette.json").read_bytes()
    command("tokenize", tmp_path / "bright", "--out", tmp_path / "one", *args)
    assert (tmp_path / "one/tokenizer/palette.json").read_bytes() != before


def test_mistakes_in_pixels_and_images_are_said(work, tmp_path):
    out = ("--out", tmp_path / "tokens")
    for args, told in (
        ((work / "data", "--pixels", "colors=9"), "did you mean `colours`"),
        ((work / "data", "--pixels", "size"), "not key=value"),
        ((work / "data", "--pixels", "size=large"), "size"),
        ((work / "data", "--pixels", "", "--separator", "x"), "--separator"),
        ((work / "gpt2.yaml", "--pixels", ""), "gpt2.yaml"),
    ):
        with pytest.raises(UserError, match=told):
            command("tokenize", *args, *out)
    write_idx(tmp_path / "small-images-idx3-ubyte", stripes(9, 0, size=6)[0])
    both = (work / "unlabelled-images-idx3-ubyte", tmp_path / "small-images-idx3-ubyte")
    with pytest.raises(DataError, match="different shapes"):
        command("tokenize", *both, "--pixels", "", *out)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_recipes_of_fine_tuning_fit_their_images(name):
    recipe = recipe_file.load_recipe(FinetuneRecipe, builtin_recipes("finetune")[name], (), expand_finetuning)
    side = {"mnist": 28, "cifar10": 32}[name]
    assert not isinstance(recipe.model, str) and recipe.task.name == "classify"
    assert (side // recipe.data.pixels.patch) ** 2 + 2 <= recipe.model.context


@pytest.mark.parametrize(("name", "family"), [("mnist-causal", "gpt2"), ("mnist-masked", "modernbert")])
def test_the_recipes_of_pretraining_have_one_image_a_row(name, family, tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", stripes(60, 0, size=28)[0])
    command("tokenize", tmp_path, "--out", tmp_path / "tokens", "--family", family, "--pixels", "size=14 colours=16",
            "--validation", "10%")  # fmt: skip
    store = TokenStore(tmp_path / "tokens")
    changes = (f"data.train={tmp_path / 'tokens'}",)
    recipe = recipe_file.load_recipe(Recipe, builtin_recipes("pretrain")[name], changes, defaults.expand_pretraining)
    rows = build_objective(recipe, store, load_tokenizer(store.tokenizer_path)).rows
    held = [rows[i] for i in range(len(rows))]
    assert sorted(row["documents"] for row in held) == [[i] for i in range(store.split("train").num_documents)]
    assert len({int(row["tokens"][0]) for row in held}) == 1  # BOS or [CLS]: a place in a row is a place in an image
