"""Opening a dataset without stopping at the first fault: whatever is wrong becomes a finding, the rest stays usable."""

import re
from pathlib import Path

import numpy as np

from pgolf.core.bpb import is_transformed, load_tokenizer
from pgolf.core.errors import ConfigError, InputError, PgolfError
from pgolf.core.files import read_json, sha256_file
from pgolf.core.shards import SHARD_NAME, SIDECAR_NAME, open_shard
from pgolf.corpus.sources import SUFFIXES
from pgolf.corpus.tokenizer import read_tokenizer
from pgolf.corpus.transforms import PUBLISHED_NAMES, get_transform
from pgolf.dataset import DATASET_SCHEMA, DOCUMENTS_NAME, PARTIAL, find_tokenizer, open_documents
from pgolf.report.console import Console
from pgolf.report.data_opened import SPLITS, Findings, Opened, Row, counted

FETCHED, FETCHED_SCHEMA = "fetched.json", "pgolf.fetched/1"
"""What `pgolf data get` leaves beside its shards: their hashes, among other things."""
KNOWN_FILES = ("manifest.json", "published_manifest.json", FETCHED, *(DOCUMENTS_NAME.format(split=s) for s in SPLITS))
HARMLESS = (*SUFFIXES, ".model", ".vocab", ".md")
VOCABULARY_IN_NAME = re.compile(r"_sp(\d{3,5})(_|$)")


def read_manifest(opened: Opened, findings: Findings) -> None:
    """The manifest, if it is one; else a finding, and the shards are taken as if they had none."""
    path = opened.folder / "manifest.json"
    if not path.is_file():
        return
    try:
        manifest = read_json(path)
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if schema != DATASET_SCHEMA:
            what, fix = f"schema {schema!r}, expected {DATASET_SCHEMA!r}", "this is no manifest, or of a newer pgolf"
            raise InputError(what, str(path), fix)
        entries = [entry for split in SPLITS for entry in manifest["splits"][split]["shards"]]
        entries += manifest["splits"]["val"].get("sidecars", [])
        counts = {str(entry["file"]): int(entry["tokens"]) for entry in entries}
        entries += [part["document_list"] for part in manifest["splits"].values() if "document_list" in part]
        hashes = {str(entry["file"]): str(entry["sha256"]) for entry in entries}
        str(manifest["tokenizer"]["sha256"]), int(manifest["vocab_size"])
        if not all(isinstance(manifest["splits"][split], dict) for split in SPLITS):
            raise TypeError("splits")
    except PgolfError as error:
        findings.error("manifest", error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        findings.add("corrupt", "manifest", f"the manifest lacks or garbles {error}", path, "make the dataset anew")
    else:
        opened.manifest, opened.hashes, opened.counts = manifest, hashes, counts


def read_record(opened: Opened, findings: Findings) -> None:
    """Hashes from the record of `pgolf data get`."""
    path = opened.folder / FETCHED
    if opened.manifest or not path.is_file():
        return
    try:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("schema") != FETCHED_SCHEMA:
            raise InputError("not the record of a download", str(path), "run pgolf data get again")
        opened.hashes = {str(name): str(entry["sha256"]) for name, entry in record["files"].items()}
    except PgolfError as error:
        findings.error("record", error)
    except (KeyError, TypeError, AttributeError) as error:
        findings.add("corrupt", "record", f"the record lacks or garbles {error}", path, "run pgolf data get again")


def shard_names(opened: Opened, findings: Findings) -> dict[str, list[str]]:
    """File names of train, val and sidecars in stream order: those of the manifest, or else all that look like them."""
    present = sorted(path.name for path in opened.source.iterdir()) if opened.source.is_dir() else []
    if not opened.manifest:
        expected = sorted({*present, *(name for name in opened.hashes if name.endswith(".bin"))})
        found = [match for match in map(SHARD_NAME.match, expected) if match]
        names = {split: [match[0] for match in found if match[1] == split] for split in SPLITS}
        return names | {"sidecars": [name for name in expected if SIDECAR_NAME.match(name)]}
    names = {split: [str(entry["file"]) for entry in opened.recorded(split)["shards"]] for split in SPLITS}
    names["sidecars"] = [str(entry["file"]) for entry in opened.recorded("val").get("sidecars", [])]
    for kind, files in names.items():
        for name in list(files):
            match = SIDECAR_NAME.match(name) if kind == "sidecars" else SHARD_NAME.match(name)
            if not match or (kind != "sidecars" and match[1] != kind):
                is_sidecar = kind != "sidecars" and SIDECAR_NAME.match(name)
                fix = "byte sidecars are no tokens" if is_sidecar else "make the dataset anew"
                what = f"the manifest lists {name!r} for {kind}, a name that no such file may have"
                findings.add("corrupt", "sidecar-as-tokens" if is_sidecar else "file-name", what, opened.folder, fix)
                files.remove(name)
    return names


def check_strangers(opened: Opened, names: dict[str, list[str]], findings: Findings) -> None:
    """Files that belong to nothing here; a glob like fineweb_val_*.bin might take one of them for tokens."""
    wanted = {*KNOWN_FILES, "tokenizer.model", *(name for files in names.values() for name in files)}
    paths = (
        [path for path in sorted(opened.source.iterdir()) if path.name not in wanted] if opened.source.is_dir() else []
    )
    files = [path.name for path in paths if path.is_file() and not path.name.startswith(".")]
    strange = [name for name in files if not name.endswith(HARMLESS)]
    harmless = [name for name in files if name.endswith(HARMLESS)]
    if strange:
        what = f"{counted(len(strange), 'file')} of no stream: {shown_names(strange)}"
        findings.add("warning", "unknown-files", what, opened.source, "take them out: a glob may read them as tokens")
    if harmless:
        findings.add("note", "other-files", f"also in the folder: {shown_names(harmless)}", opened.source)
    if (opened.folder / PARTIAL).is_dir():
        level = "warning" if opened.manifest else "corrupt"
        fix = "run the same pgolf tokenize again; it goes on where it was"
        findings.add(level, "unfinished", "a tokenization here was not finished", opened.folder / PARTIAL, fix)


def shown_names(names: list[str], limit: int = 10) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def open_row(opened: Opened, names: list[str], findings: Findings, console: Console, label: str) -> Row:
    """Every file of a stream checked by itself; all that is wrong with any of them is found."""
    row = Row()
    with console.progress() as line:
        for done, name in enumerate(names):
            line.count(f"audit: {label} shards", done, len(names))
            path = opened.source / name
            if not path.is_file():
                fix = "fetch it again, or make the dataset anew"
                findings.add("corrupt", "shard-missing", "a file of the dataset is missing", path, fix)
                row.whole = False
                continue
            try:
                shard = open_shard(path)
                wrong = opened.hashes.get(name) not in (None, sha256_file(path))
            except PgolfError as error:
                findings.error("shard-format", error)
                row.whole = False
                continue
            if wrong:
                fix = "it is damaged or was replaced: fetch it again, or make the dataset anew"
                findings.add("corrupt", "shard-hash", "the SHA-256 is not the recorded one", path, fix)
            if len(shard) != opened.counts.get(name, len(shard)):
                what = f"the file has {len(shard):,} entries, the manifest says {opened.counts[name]:,}"
                findings.add("corrupt", "shard-length", what, path, "fetch it again, or make the dataset anew")
            row.paths.append(path)
            row.shards.append(np.asarray(shard))
    check_numbers(names, opened.source, findings)
    check_lengths(row, findings)
    return row


def check_numbers(names: list[str], folder: Path, findings: Findings) -> None:
    """Shards are numbered 0, 1, 2 and so on, under one name."""
    stems = sorted({name[:-11] for name in names})
    if len(stems) > 1:
        what = f"one stream, several names: {', '.join(stems)}"
        findings.add("warning", "shard-names", what, folder, "keep one dataset per folder")
    for stem in stems:
        numbers = [int(name[-10:-4]) for name in names if name[:-11] == stem]
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        if missing:
            gaps = shown_names([f"{stem}_{number:06d}.bin" for number in missing])
            fix = "fetch them, or make the dataset anew"
            findings.add("corrupt", "shard-gap", f"{len(missing)} missing in the numbering: {gaps}", folder, fix)


def check_lengths(row: Row, findings: Findings) -> None:
    """Only the last shard of a stream may be shorter than the others, and none longer."""
    if not row.whole or len(row.shards) < 2:
        return
    full = max(len(shard) for shard in row.shards[:-1])
    for path, shard in zip(row.paths, row.shards):
        if len(shard) > full or (len(shard) < full and path != row.paths[-1]):
            what = f"{len(shard):,} entries among shards of {full:,}; only the last one may be shorter"
            findings.add("corrupt", "shard-size", what, path, "fetch it again; join exports with pgolf data merge")


def open_lists(opened: Opened, findings: Findings) -> None:
    """The document lists, those that are there and well-formed."""
    for split in SPLITS:
        path = opened.folder / DOCUMENTS_NAME.format(split=split)
        listed = opened.recorded(split).get("document_list") if opened.manifest else None
        if not path.is_file():
            if listed:
                findings.add("corrupt", "document-list", "the document list is missing", path, "make the dataset anew")
            continue
        try:
            opened.lists[split] = open_documents(path)
        except InputError as error:
            findings.add("corrupt", "document-list", error.what, path, error.fix)
            continue
        if opened.hashes.get(path.name) not in (None, sha256_file(path)):
            what, fix = "the document list's SHA-256 is not the manifest's", "make the dataset anew"
            findings.add("corrupt", "document-list", what, path, fix)


def tokenizer_path(opened: Opened, given: Path | None) -> Path:
    """Where the tokenizer is. InputError if it cannot be found."""
    if given is not None:
        return given
    if opened.manifest or (opened.folder / "tokenizer.model").is_file():
        return opened.folder / "tokenizer.model"
    fetched = [name for name in opened.hashes if name.endswith(".model")]
    if fetched:
        return opened.folder.parent.parent / "tokenizers" / Path(fetched[0]).name
    name = opened.folder.absolute().name
    suffix = name.partition("_sp")[2]
    if "caseops" in suffix:
        vocabulary, _, rest = suffix.partition("_")
        return opened.folder.absolute().parent.parent / "tokenizers" / f"fineweb_{vocabulary}_bpe_{rest}.model"
    match = VOCABULARY_IN_NAME.search(name)
    return find_tokenizer(opened.folder.absolute(), int(match[1]) if match else 1024)


def open_tokenizer(opened: Opened, given: Path | None, findings: Findings) -> None:
    """The tokenizer, and with it the transform that the text went through."""
    try:
        path = tokenizer_path(opened, given)
        opened.tokenizer_path, opened.model = path, read_tokenizer(path)
        opened.tokenizer = load_tokenizer(opened.model, str(path))
    except PgolfError as error:
        findings.error("tokenizer", error)
    recorded = opened.hashes.get(opened.tokenizer_path.name)
    if opened.manifest:
        recorded = opened.manifest["tokenizer"]["sha256"]
    if opened.tokenizer is not None and recorded not in (None, opened.tokenizer_sha256):
        what = "the tokenizer is not the one that made the shards: its SHA-256 differs from the recorded one"
        findings.add("corrupt", "tokenizer-hash", what, opened.tokenizer_path, "restore it, or tokenize anew")
    transformed = opened.tokenizer is not None and is_transformed(opened.tokenizer)
    name = str(opened.manifest.get("transform", "caseops_v1" if transformed else "none"))
    try:
        opened.transform = get_transform(PUBLISHED_NAMES.get(name, name))
    except ConfigError as error:
        findings.error("transform", error)
    if transformed and not opened.transformed:
        opened.transform = get_transform("caseops_v1")
        what = "the tokenizer reserves case operators, but the manifest names no transform"
        findings.add("violation", "transform", what, opened.folder, "bytes must come from sidecars: tokenize anew")


def open_all(folder: Path, tokenizer: Path | None, findings: Findings, console: Console) -> Opened:
    """Everything that can be opened. InputError if the folder is none, or there is no shard in it."""
    if not folder.is_dir():
        raise InputError("no such directory", str(folder), "give a dataset directory")
    opened = Opened(folder)
    read_manifest(opened, findings)
    read_record(opened, findings)
    names = shard_names(opened, findings)
    if not opened.manifest and not any(names.values()) and not (folder / "manifest.json").is_file():
        fix = "make one with pgolf tokenize, or get one with pgolf data get"
        raise InputError("no dataset: neither manifest.json nor token shards", str(folder), fix)
    check_strangers(opened, names, findings)
    for split in SPLITS:
        opened.rows[split] = open_row(opened, names[split], findings, console, split)
    opened.sidecars = open_row(opened, names["sidecars"], findings, console, "sidecar")
    open_lists(opened, findings)
    open_tokenizer(opened, tokenizer, findings)
    check_sidecars(opened, names, findings)
    if not opened.hashes:
        what = "there is no manifest: nothing tells whether these are the shards that were made"
        findings.add("note", "no-manifest", what, folder)
    return opened


def check_sidecars(opened: Opened, names: dict[str, list[str]], findings: Findings) -> None:
    """Transformed text has a sidecar as long as the shard for every validation shard, and other text has none."""
    if not opened.transformed:
        if names["sidecars"]:
            what = f"{counted(len(names['sidecars']), 'byte sidecar')}, but the tokenizer is not for transformed text"
            findings.add("warning", "sidecar-unused", what, opened.folder, "is this the right tokenizer?")
        return
    opened.sidecars.whole &= opened.rows["val"].whole
    lengths = {path.name[-10:]: len(shard) for path, shard in zip(opened.sidecars.paths, opened.sidecars.shards)}
    for path, shard in zip(opened.rows["val"].paths, opened.rows["val"].shards):
        number = path.name[-10:]
        name = f"{path.name[:-11]}_bytes_{number}"
        if number not in lengths:
            opened.sidecars.whole = False
            if name not in names["sidecars"]:
                what = "the text was transformed, so this shard needs a byte sidecar; a table would count some 9 % more"
                findings.add("corrupt", "sidecar-missing", what, path.with_name(name), "fetch or make it (PR #2071)")
        elif lengths[number] != len(shard):
            opened.sidecars.whole = False
            what = f"the sidecar has {lengths[number]:,} entries, its shard {len(shard):,} ids"
            findings.add("corrupt", "sidecar-length", what, path.with_name(name), "fetch or make both again")
    extra = sorted({name[-10:] for name in names["sidecars"]} - {name[-10:] for name in names["val"]})
    if extra:
        opened.sidecars.whole = False
        what = f"byte sidecars without a shard: {shown_names([number[:6] for number in extra])}"
        findings.add("corrupt", "sidecar-extra", what, opened.folder, "fetch or make both again")
