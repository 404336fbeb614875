"""Prepares the data of an experiment: python -m bidi.prepare --gin_file=... [--gin.NAME=value ...].

Again with the same input it does nothing; stopped half-way it starts over.
"""

from typing import Any

from bidi import verb
from bidi.data.prepare import prepare


def main(bindings: list[str]) -> None:
    """Loads the experiment, prepares its data and prints the counts."""
    loaded = verb.load(verb.gin_files(), bindings)
    manifest = prepare(loaded.data)
    print(f"{loaded.data.directory} is ready")
    print(summary(manifest))


def summary(manifest: dict[str, Any]) -> str:
    """A manifest as a table of counts and lengths."""
    sizes = (f"{entry['size']} {side}" for side, entry in manifest["vocabularies"].items())
    lines = [
        f"vocabularies: {', '.join(sizes)}",
        f"{'split':<12}{'examples':>10}{'pairs':>10}  tokens: mean, 99 %, longest",
    ]
    for split, entry in manifest["splits"].items():
        tokens = ", ".join(
            f"{side} {entry[side]['mean']:.1f} {entry[side]['p99']} {entry[side]['longest']}"
            for side in ("source", "target")
        )
        lines.append(f"{split:<12}{entry['examples']:>10,}{entry['pairs']:>10,}  {tokens}")
        dropped = {reason: count for reason, count in entry["dropped"].items() if count}
        if dropped:
            lines.append(f"{'':<12}dropped: {dropped}")
        if entry.get("truncated"):
            lines.append(f"{'':<12}truncated sources: {entry['truncated']:,}")
    return "\n".join(lines)


if __name__ == "__main__":
    verb.run("bidi.prepare", main)
