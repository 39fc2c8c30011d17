"""The data card: what went into a token store, and what was left out."""

from lmkit.base.units import show_bytes, show_count
from lmkit.data.tokens.store import SPLITS, TokenStore


def card_lines(store: TokenStore) -> list[str]:
    """For a terminal: a line a fact, then each kind of problem with its count and the first places."""
    m = store.manifest
    tokenizer, checks = m["tokenizer"], m["checks"]
    lines = [f"data card of token store {store.fingerprint[:12]}"]
    shards = [shard for split in SPLITS for shard in m["shards"][split]]
    total = {key: sum(s.get(key, 0) for s in shards) for key in ("tokens", "bytes", "unknown", "unspelt")}
    lines.append(f"  inputs      {len(m['inputs']):,} files, {show_bytes(sum(i['size'] for i in m['inputs']))}")
    for name in SPLITS:
        shards = m["shards"][name]
        documents, chars, size, tokens = (sum(s[k] for s in shards) for k in ("documents", "chars", "bytes", "tokens"))
        counted = f"{documents // 2:,} pairs" if store.pairs else f"{documents:,} documents"
        text = f"{counted} · {show_count(chars)} characters · {show_bytes(size)}"
        lines.append(f"  {name:<11} {f'{text} · {show_count(tokens)} tokens' if documents else 'none'}")
    lines.append(
        f"  tokenizer   {tokenizer['type']} · {tokenizer['vocab_size']:,} ids · {tokenizer['fingerprint'][:12]}"
    )
    lines.append(f"  fit         {total['bytes'] / max(total['tokens'], 1):.2f} bytes per token")
    if total["unknown"]:
        lines[-1] += f" · {total['unknown']:,} unknown tokens ({total['unknown'] / total['tokens']:.2%})"
    if total["unspelt"]:
        share = total["unspelt"] / total["bytes"]
        lines.append(
            f"  dropped     {show_bytes(total['unspelt'])} of text ({share:.2%}): the tokenizer has no token for it"
        )
    same = checks["checked"] - checks["differs"]
    lines.append(f"  round trip  {same:,} of {checks['checked']:,} sampled documents decode to the same text")
    for kind, count in m["problems"]["counts"].items():
        lines.append(f"  {count:,} {kind}")
        places = m["problems"]["examples"][kind]
        lines += [f"      {place}" for place in places]
        lines += ["      ..."] if count > len(places) else []
    if not m["problems"]["counts"] and not total["unspelt"]:
        lines.append("  nothing was left out")
    return lines
