"""How transformers names the tensors of a model: from the table of families, for any sizes and any head."""

from lmkit.architecture.model_config import ModelConfig


def tensor_names(c: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns the names of tensors in transformers by our own, in full, as the class of `c.head` saves them."""
    family, spec = c.table, c.spec
    rows = dict(family.names)
    heads = [("head", family.heads["lm"]), ("pairs", spec)] if c.head == "pairs" else [("head", spec)]
    for ours, head in heads:
        rows |= {f"{ours}.{module}".rstrip("."): theirs for module, theirs in head.modules.items()}
    out = {}
    for ours, theirs in rows.items():
        stack = c.decoder if ours.startswith("decoder") else c
        blocks = stack.layer_groups * stack.group_layers or stack.num_layers
        for i in range(blocks if "{i}" in ours else 1):
            name = theirs.format(i=i, g=i // c.group_layers, j=i % c.group_layers)
            parts = name.split(" ") if name else [""]
            if parts[0].endswith("wi_0") and not c.gated:  # T5 v1.0 has one matrix where v1.1 has two
                parts = [parts[0].removesuffix("_0")]
            out[ours.replace("{i}", str(i))] = tuple(_prefixed(c, ours, part) for part in parts)
    return out


def _prefixed(c: ModelConfig, ours: str, theirs: str) -> str:
    """The body's tensors stand under another name in some classes, and under none when the body was saved alone."""
    prefix = "" if c.head == "none" else c.spec.prefix
    family = c.table
    body = theirs.startswith(family.prefix) if family.prefix else not ours.startswith(("head", "pairs"))
    return prefix + theirs.removeprefix(family.prefix) if prefix is not None and body else theirs
