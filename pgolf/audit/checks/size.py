"""(g) The artifact fits: code and model, in decimal bytes."""

from pgolf.accounting import Size
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding


def check_size(size: Size) -> Finding:
    """Whether both together fit. What would fit only if a megabyte were 2^20 bytes is told so."""
    what, binary = size.line(), size.cap_bytes // 10**6 << 20
    if size.headroom_bytes >= 0:
        return Finding(check="g", verdict=HOLDS, what=what, n=1, figures=size.document())
    if size.total_bytes <= binary:
        what += f"; it would fit {binary:,}, but megabytes are decimal"
    case = {
        "schema": "pgolf.counterexample/1",
        "property": "g",
        "subject": {"kind": "size"},
        "figures": size.document(),
    }
    return Finding(check="g", verdict=VIOLATED, what=what, n=1, figures=size.document(), counterexample=case)
