"""(k) Whether documents depend on each other: a label, no fault."""

import numpy as np

from pgolf.audit.bench import Bench
from pgolf.audit.verdict import HOLDS, Finding

DOCUMENTS = 5
"""Documents that are replaced, one at a time."""


def check_independence(bench: Bench) -> Finding:
    """Replace a document by another of the same length: do scores of others move?"""
    rng, stream = bench.rng(11), bench.stream
    vocabulary, owner = bench.subject.vocabulary, stream.document_of(np.arange(stream.targets))
    choice, moved = np.flatnonzero(~vocabulary.boundary), 0
    numbers = rng.permutation(len(stream.begins))[:DOCUMENTS]
    for number in numbers.tolist():
        tokens = stream.tokens.copy()
        inner = np.flatnonzero(owner == number) + 1
        inner = inner[tokens[inner] != vocabulary.bos_id]
        tokens[inner] = rng.choice(choice, len(inner))
        # The BOS that ends a document is a target of it, but stands at the head of the next.
        others = np.flatnonzero((owner != number) & (stream.tokens[1:] != vocabulary.bos_id))
        moved += bool(len(bench.moved(bench.subject.run(tokens), others)))
    independent = not moved
    what = f"document-independent: {'yes' if independent else 'no'} ({moved} of {len(numbers)} moved scores of others)"
    return Finding(check="k", verdict=HOLDS, what=what, n=len(numbers), figures={"independent": independent})
