"""A tiny corpus and recipe, and runs of them inside this process."""

from pathlib import Path

import pytest

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "fly", "over", "an", "old", "hill"]
RECIPE = """
model: {family: gpt2, hidden_size: 16, num_layers: 2, num_heads: 2, context: 16, dropout: 0.1, attention_dropout: 0.1}
tokenizer: {type: bytes}
data: {train: corpus.txt, validation: 20%, separator: "\\n"}
optimizer: {name: muon, embedding_lr: 0.03}
train: {budget: 12 steps, batch: 128, micro_batch: 48, ema: 0.9}
schedule: {warmup: 2}
evaluate: {every: 4, sample_tokens: 4}
checkpoint: {every: 3, keep: 3}
"""


def write_tiny(folder: Path) -> Path:
    """A recipe on 120 short documents."""
    lines = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i % 9)) for i in range(120)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml"


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """That recipe, with the token cache inside the test's folder."""
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_tiny(tmp_path)
