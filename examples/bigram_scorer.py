"""A scorer that knows nothing of pgolf: adaptive counts of pairs, for `pgolf audit external`.

    pgolf audit external --data DATA -- python examples/bigram_scorer.py {tokens} {scores} VOCAB_SIZE
    pgolf audit external --data DATA -- python examples/bigram_scorer.py {tokens} {scores} VOCAB_SIZE --leaky

{tokens} is a shard: 1,024 bytes of header, then uint16. {scores} gets a loss in nats per line for every token but the
first. With --leaky it counts the whole stream before it scores any of it, and is convicted.
"""

import math
import sys
from array import array
from collections import Counter
from pathlib import Path


def main() -> None:
    """Score one file."""
    source, target, size, *flags = sys.argv[1:]
    tokens = array("H", Path(source).read_bytes()[1024:])
    if sys.byteorder == "big":
        tokens.byteswap()
    moves, leaky = list(zip(tokens, tokens[1:])), "--leaky" in flags
    pairs, before, singles = Counter[tuple[int, int]](), Counter[int](), Counter[int]()

    def count(pair: tuple[int, int]) -> None:
        pairs[pair] += 1
        before[pair[0]] += 1
        singles[pair[1]] += 1

    def loss(pair: tuple[int, int]) -> float:
        """Every pair counts one more than was seen, every token besides with the weight of 4 in all."""
        first, second = pair
        share = (1 + singles[second]) / (int(size) + singles.total())
        return -math.log((1 + pairs[pair] + 4 * share) / (int(size) + before[first] + 4))

    if leaky:
        for pair in moves:
            count(pair)
    with open(target, "w") as out:
        for pair in moves:
            out.write(f"{loss(pair):.17g}\n")
            if not leaky:
                count(pair)


if __name__ == "__main__":
    main()
