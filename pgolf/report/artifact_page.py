"""What `pgolf report` shows of an artifact: where its bytes are."""

from pgolf.core.artifact import CODES, FLOAT16, FLOAT32
from pgolf.core.model.config import param_specs
from pgolf.core.quant.qtensor import QTensor
from pgolf.report.inspection import SECTION_NAMES, section_table
from pgolf.report.page import Section, html_table
from pgolf.report.quantized import code_entropy
from pgolf.report.treemap import Group, Leaf, treemap
from pgolf.stages.model_files import ModelFile


def weights_of_tensors(model: ModelFile) -> dict[int, dict[str, float]]:
    """Section -> parameter -> what it is expected to have of the section's bytes: its entropy, or its size."""
    assert model.quantized is not None
    found: dict[int, dict[str, float]] = {}
    for spec in param_specs(model.quantized.config):
        tensor = model.quantized.tensors[spec.name]
        if isinstance(tensor, QTensor):
            entropy = code_entropy(tensor.codes) * spec.numel
            found.setdefault(CODES[spec.role], {})[spec.name] = entropy + 1.0
            stored = getattr(tensor, "base", tensor).parts()
            sides = sum(part.numel() * part.element_size() for part in stored[1:])
            found.setdefault(tensor.section, {})[spec.name] = float(sides)
        else:
            section = FLOAT16 if tensor.element_size() == 2 else FLOAT32
            found.setdefault(section, {})[spec.name] = float(spec.numel)
    return found


def short(name: str) -> str:
    """A parameter's name as a label."""
    return name.removeprefix("blocks.").removesuffix(".weight")


def bytes_section(model: ModelFile, blob: bytes) -> Section:
    """A treemap of sections and their tensors, and the table of sections."""
    shares, groups = weights_of_tensors(model), []
    rows = section_table(blob)
    for tone, row in enumerate(sorted(rows, key=lambda row: -row["stored_bytes"])):
        name, stored = SECTION_NAMES.get(row["id"], str(row["id"])), row["stored_bytes"]
        parts = shares.get(row["id"], {name: 1.0})
        whole = sum(parts.values())
        leaves = [
            Leaf(short(part), stored * share / whole, f"{part}: {stored * share / whole:,.0f} bytes")
            for part, share in parts.items()
        ]
        groups.append(Group(name, min(tone, 5), leaves))
    table = html_table(
        ["section", "coded by", "bytes", "bits per value", "% of the artifact"],
        [
            [row["section"], row["method"], row["stored_bytes"], row["bits_per_value"], row["share_percent"]]
            for row in rows
        ],
    )
    remark = (
        "Areas are bytes. A section is coded as one; among its tensors its bytes are divided by the entropy of their "
        "codes, or by their size."
    )
    return Section(
        f"The artifact's {len(blob):,} bytes",
        f'{treemap(groups, "Bytes of the artifact")}<p class="note">{remark}</p>{table}',
    )
