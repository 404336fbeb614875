"""Whether an exported model writes what bidi writes: python verify.py WORKDIR RUN SENTENCES.

RUN holds huggingface/, ctranslate2/ and test.json; the table goes to stdout. For each length
penalty and each way to stop: how many of the outputs are bidi's, token for token, and of the others
whose has the better score by bidi's own model. And the greatest difference between the
log-probabilities that the systems give to bidi's outputs.
"""

import contextlib
import json
import pathlib
import sys

import numpy as np
from serving import Served

BEAM, BATCH = 4, 32
# A hundred thousandth: below it two hypotheses' scores are one, in float32 and in other orders.
TIE = 1e-5


def main(workdir: str, run: str, sentences: int) -> None:
    """Searches and scores with all systems, and prints."""
    test = str(pathlib.Path(run) / "test.json")
    exported, converted = f"{run}/huggingface", f"{run}/ctranslate2"
    with contextlib.ExitStack() as stack:
        bidi = stack.enter_context(Served("bidi", 1, workdir, test))
        peers = {
            "transformers": Served("transformers", 1, exported, test),
            "ctranslate2": Served("ctranslate2", 1, converted, exported, test, "float32"),
        }
        for peer in peers.values():
            stack.enter_context(peer)
        _tokenisation(peers["transformers"], test)
        print("| system | stops | alpha | equal | bidi's is better | the other is | ties |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for alpha in (0.0, 0.6):
            asked = {"first": sentences, "beam": BEAM, "alpha": alpha}
            ours = bidi.ask("search", **asked, batch=1024)
            for name, peer in peers.items():
                for exact in (True, False):
                    theirs = peer.ask("search", **asked, batch=BATCH, exact=exact)
                    _compare(bidi, ours, theirs, f"{name} | {_stops(name, exact)}", alpha)
        _log_probs(bidi, ours, peers)


def _stops(name: str, exact: bool) -> str:
    return {
        ("transformers", True): 'early_stopping="never"',
        ("transformers", False): "early_stopping=False",
        ("ctranslate2", True): "patience=8",
        ("ctranslate2", False): "patience=1",
    }[name, exact]


def _tokenisation(transformers: Served, test: str) -> None:
    ours = [sentence["source"] for sentence in json.loads(pathlib.Path(test).read_text())]
    theirs = transformers.ask("tokenise")["ids"]
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"Token ids of the exported tokenizer: {equal} of {len(ours)} sentences equal\n")


def _compare(bidi: Served, ours: dict, theirs: dict, row: str, alpha: float) -> None:
    scores = {
        whose: np.array(bidi.ask("score", tokens=found["tokens"]))
        / [(len(tokens) + 1) ** alpha for tokens in found["tokens"]]
        for whose, found in (("ours", ours), ("theirs", theirs))
    }
    equal = [a == b for a, b in zip(ours["tokens"], theirs["tokens"], strict=True)]
    better = scores["ours"] - scores["theirs"]
    differ = ~np.array(equal)
    counts = [better[differ] > TIE, better[differ] < -TIE, abs(better[differ]) <= TIE]
    counted = " | ".join(str(int(count.sum())) for count in counts)
    print(f"| {row} | {alpha:g} | {sum(equal)} of {len(equal)} | {counted} |", flush=True)


def _log_probs(bidi: Served, ours: dict, peers: dict[str, Served]) -> None:
    expected = np.array(bidi.ask("score", tokens=ours["tokens"]))
    found = np.array(ours["log_probs"])
    print(
        f"\nGreatest difference of log-probabilities of the same {len(found)} outputs from bidi's:"
    )
    print(f"bidi's own search {abs(found - expected).max():.1e}", end="")
    for name, peer in peers.items():
        scores = np.array(peer.ask("score", tokens=ours["tokens"]))
        print(f", {name} {abs(scores - expected).max():.1e}", end="")
    print(f" (log-probabilities from {expected.min():.1f} to {expected.max():.1f})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
