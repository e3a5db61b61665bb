"""A scorer that knows nothing of pgolf: adaptive counts of pairs, for `pgolf audit external`.

    pgolf audit external --data DATA -- python examples/bigram_scorer.py {tokens} {scores} VOCAB_SIZE
    pgolf audit external --data DATA -- python examples/bigram_scorer.py {tokens} {scores} VOCAB_SIZE --leaky

{tokens} is a shard: 1,024 bytes of header, then uint16. {scores} gets a loss in nats per line for every token but the
first. With --leaky it counts the whole stream before it scores any of it, and is convicted.
"""

import sys

import numpy as np


def main() -> None:
    """Score one file."""
    source, target, size, *flags = sys.argv[1:]
    tokens = np.fromfile(source, "<u2", offset=1024).astype(int)
    pairs, singles = np.ones((int(size), int(size))), np.ones(int(size))
    leaky = "--leaky" in flags
    if leaky:
        np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
        np.add.at(singles, tokens[1:], 1)
    with open(target, "w") as out:
        for before, token in zip(tokens, tokens[1:]):
            row = pairs[before] + 4 * singles / singles.sum()
            out.write(f"{-np.log(row[token] / row.sum()):.17g}\n")
            if not leaky:
                pairs[before, token] += 1
                singles[token] += 1


if __name__ == "__main__":
    main()
