"""(g) The artifact fits: code and model, in decimal bytes."""

from pathlib import Path

from pgolf.accounting import Size, size_on_disk
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, case_of
from pgolf.core.errors import InputError
from pgolf.stages.model_files import ModelFile, artifact_info
from pgolf.stages.package import artifact_config
from pgolf.stages.packing import script_bytes


def check_artifact_size(path: Path, model: ModelFile) -> Finding:
    """An artifact with its script, which the manifest beside it tells; without one the artifact alone."""
    replay = f"pgolf audit artifact {path}"
    try:
        config = artifact_config(path, "", []).config
    except InputError:
        remark = " (without its script, which no manifest beside it tells)"
        return check_size(size_on_disk([path], 0), remark, replay)
    code = script_bytes(config, artifact_info(config, model.tokenizer_sha256))
    return check_size(size_on_disk([path], code, config.package.cap_bytes), replay=replay)


def check_size(size: Size, remark: str = "", replay: str = "") -> Finding:
    """Whether both together fit. What would fit only if a megabyte were 2^20 bytes is told so. `replay` is the command
    that shows it again.
    """
    what, binary = size.line() + remark, size.cap_bytes // 10**6 << 20
    if size.headroom_bytes >= 0:
        return Finding(check="g", verdict=HOLDS, what=what, n=1, figures=size.document())
    if size.total_bytes <= binary:
        what += f"; it would fit {binary:,}, but megabytes are decimal"
    case = case_of("g", {"kind": "size"}, replay, figures=size.document())
    return Finding(check="g", verdict=VIOLATED, what=what, n=1, figures=size.document(), counterexample=case)
