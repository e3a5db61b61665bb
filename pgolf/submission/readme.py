"""README.md of a submission folder: what a reviewer looks for, from submission.json and the runs' records."""

from typing import Any

from pgolf.accounting import Size
from pgolf.audit.report import line_of, spoken
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.stages.manifest import notes_of
from pgolf.submission.document import used_techniques
from pgolf.submission.entries import Entry
from pgolf.submission.proof import command


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def figure(value: float | None, form: str) -> str:
    """A number, or a dash where it is not known."""
    return "-" if value is None else format(value, form)


def results(document: dict[str, Any]) -> str:
    """The table of seeds, their mean and spread."""
    rows: list[tuple[Any, ...]] = [
        (
            seed,
            f"{row['val_bpb']:.8f}",
            f"{row['val_loss']:.8f}",
            figure(row["pre_quant_val_bpb"], ".4f"),
            figure(row["post_quant_val_bpb"], ".4f"),
            f"{row['artifact_bytes']:,}",
            row["steps"] or "-",
            figure(row["train_time_s"], ".1f"),
            figure(row["eval_time_s"], ".1f"),
        )
        for seed, row in document["seed_results"].items()
    ]
    spread = "" if document["val_bpb_std"] is None else f" ± {document['val_bpb_std']:.5f}"
    mean = (f"mean{spread}", f"{document['val_bpb']:.8f}", f"{document['val_loss']:.8f}")
    before = figure(document["pre_quant_val_bpb"], ".4f"), figure(document["post_quant_val_bpb"], ".4f")
    rows.append((*mean, *before, f"{document['artifact_bytes_max']:,} at most", "", "", ""))
    columns = ("seed", "val_bpb", "val_loss (nats per token)", "BPB before", "after quantization")
    return table((*columns, "bytes (code + model)", "steps", "training s", "evaluation s"), rows)


def against(document: dict[str, Any]) -> str:
    """The comparison in a sentence."""
    found = document["comparison"]
    if found is None:
        return "Not compared with published scores: this is not the challenge's validation text."
    first = f"{found['delta_bpb']:+.5f} BPB, {found['delta_nats']:+.5f} nats per token, against {found['pr']}"
    verdicts = [
        f"{name}: {'beaten' if found[f'beats_{key}'] else 'not beaten'} (p = {figure(found[f'p_{key}'], '.3g')})"
        for name, key in (("written rule (0.005 nats, p < 0.01)", "strict"), ("practised (p < 0.25)", "progression"))
    ]
    return f"{first} ({found['val_bpb']:.5f}). {'; '.join(verdicts)}."


def audit_lines(audit: Any) -> str:
    """The audit's verdicts, one property a line."""
    if not isinstance(audit, dict):
        return f"Legality audit: {spoken(audit)}.\n"
    rows = [(name, line_of(found)) for name, found in audit["findings"].items()]
    return f"Legality audit: {spoken(audit)}.\n\n{table(('property', 'verdict'), rows)}"


def proof_lines(document: dict[str, Any]) -> str:
    """What was proved of the script, a line each."""
    proofs, lines = dict(document["proof"]), []
    training = proofs.pop("training", None)
    if proofs:
        equal = "equal bit for bit" if all(p["identical"] for p in proofs.values()) else "equal within 1e-5 nats"
        lines.append(f"- Script alone in an empty directory under `python -I`: score {equal}.")
    else:
        lines.append("- Script alone in an empty directory under `python -I`: score not proved in this folder.")
    if isinstance(training, dict) and "steps" in training:
        same = "the same artifact bit for bit" if training["identical"] else "the same losses"
        lines.append(f"- {training['steps']} steps of one row with the script alone and with pgolf: {same}.")
    else:
        lines.append(f"- Training with the script alone was not compared: {training or 'switched off'}.")
    if (proofs or training) and not any(isinstance(p, dict) and p.get("network") for p in [*proofs.values(), training]):
        lines.append("- There was no network while it ran.")
    return "\n".join(lines)


def readme(document: dict[str, Any], entries: list[Entry], config: RunConfig, name: str, requirements: str) -> str:
    """The page; `name` is the artifact whose scoring is shown."""
    size = Size(document["artifact_bytes"], document["code_bytes"], document["cap_bytes"])
    settings = [(f"`{key}`", f"`{value}`") for key, value in sorted(flatten(to_values(config.recipe)).items())]
    remarks = "".join(f"\nSeed {entry.seed}: {note}.\n" for entry in entries for note in notes_of(entry.train))
    commands = "".join(f"    {line}\n" for entry in entries for line in entry.commands) or "    (not on record)\n"
    credit = [
        (f"{row['key']} {row['name']}", row["summary"], row["source"] or "-", row["baseline"])
        for row in used_techniques(config)
    ]
    conditions = [(f"`{key}`", "yes" if value else "no") for key, value in document["compliance"].items()]
    return f"""# {document["name"]}: {document["val_bpb"]:.4f} BPB

{document["blurb"]}

Author: {document["author"] or "-"}{f" (@{document['github_id']})" if document["github_id"] else ""}. \
Track: {document["track"]}. Hardware: {document["hardware"]}. What is not the naive baseline: \
{document["technique_summary"]}.

## Results

{results(document)}{remarks}
{against(document)}

Size: {size.line()}.

## Run it

Train, quantize, compress and score, with the challenge's data in `./data`:

    torchrun --standalone --nproc_per_node=8 train_gpt.py

Score the artifact of this folder; `DATA` is a directory with the validation shards:

    python -I {" ".join(command("train_gpt.py", name, "DATA"))}

`train_gpt.py` is packed; `train_gpt_readable.py` is the same program to read, and is not counted. It needs:

{"".join(f"    {line}" + chr(10) for line in requirements.splitlines())}
The results were made by:

{commands}
## Checks

{proof_lines(document)}
- Every target was scored exactly once; the validation split gives {document["bytes_per_token"]:.6f} bytes per token.

{audit_lines(document["audit"])}
{table(("condition", "holds"), conditions)}
## Techniques and credits

{table(("technique", "what it does", "source", "in the baseline"), credit)}
## Configuration

{table(("key", "value"), settings)}"""
