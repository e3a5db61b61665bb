"""(f) Bytes are those of the text: what a document's tokens are charged is the UTF-8 length of its text."""

import numpy as np

from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, case_of

LISTED = 10


def check_charges(charged_D: np.ndarray, bytes_D: np.ndarray) -> Finding:
    """Charges and bytes of documents, (D,) each."""
    wrong = np.flatnonzero(charged_D != bytes_D)
    charged, true = int(charged_D.sum()), int(bytes_D.sum())
    ratio = charged / true if true else float("nan")
    figures = {"documents": len(charged_D), "charged": charged, "bytes": true, "ratio": ratio}
    if not len(wrong):
        what = f"{len(charged_D):,} documents are charged their {true:,} bytes"
        return Finding(check="f", verdict=HOLDS, what=what, n=len(charged_D), figures=figures)
    what = f"{len(wrong):,} of {len(charged_D):,} documents are charged other than their bytes, {ratio:.4f} of all"
    documents = [
        {"document": int(index), "charged_bytes": int(charged_D[index]), "decoded_bytes": int(bytes_D[index])}
        for index in wrong[:LISTED]
    ]
    case = case_of("f", {"kind": "charges"}, documents=documents)
    return Finding(check="f", verdict=VIOLATED, what=what, n=len(charged_D), figures=figures, counterexample=case)
