"""Bytes that each codec adds to a packed script: all of it, since a script also trains, and the decoder alone.

The script without a codec is the one that stores its artifact. The decoder's share is that script with the codec's
class, its encode left out, and all that this reaches, packed by LZMA as all scripts are here. Brotli's script packs
itself by brotli, which is counted in the column packed, and is why it is smaller than the one that stores.
"""

import ast
from dataclasses import replace

from benchmarks.report import parser, show
from pgolf.bundle.graph import Core, Definition, copied, parse_core, reach
from pgolf.bundle.script import build_script, emit, minify, pack
from pgolf.catalog import load
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.codecs.store import Store

DECODER_LIMIT = 3000
"""Bytes that pgolf's own decoder may add."""


def without_encode(definition: Definition, codec: str) -> Definition:
    """A codec's class without its encoder; any other definition as it is."""
    node = definition.node
    if not isinstance(node, ast.ClassDef) or node.name != codec:
        return definition
    node = copied(node)
    node.body = [item for item in node.body if not (isinstance(item, ast.FunctionDef) and item.name == "encode")]
    return replace(definition, node=node)


def decoder_source(whole: RunConfig, bare: RunConfig, codec: str) -> str:
    """The bare script with a codec's decoder behind it."""
    order = tuple(without_encode(definition, codec) for definition in emit(whole, "")[1])
    names = {name: definition for definition in order for name in definition.names}
    source, held = emit(bare, "")
    known = {name for definition in held for name in definition.names}
    found = [d for d in reach(Core(names, order, parse_core().externals), [codec]) if not known & set(d.names)]
    added = ast.Module([copied(definition.node) for definition in found], [])
    return source + ast.unparse(ast.fix_missing_locations(added)) + "\n"


def main() -> None:
    """Bundle, take away, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="leader")
    arguments.add_argument("--codecs", nargs="+", default=["zlib", "lzma", "brotli", "zstd", "rans"])
    arguments.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    options = arguments.parse_args()
    plain = resolve(options.preset, [*options.sets, "compress.method=store"]).config
    bare = build_script(plain)
    rows = []
    for name in options.codecs:
        config = resolve(options.preset, [*options.sets, f"compress.method={name}"]).config
        whole = build_script(config)
        decoder = pack(minify(decoder_source(config, plain, load("Codec", name).__name__)), Store())
        rows.append(
            {
                "codec": name,
                "packed": len(whole.packed),
                "over_store": len(pack(whole.minified, Store())) - len(bare.packed),
                "decoder": len(decoder) - len(bare.packed),
            }
        )
    most = max(row["decoder"] for row in rows)
    remarks = [f"without a codec: {len(bare.packed):,} bytes; the largest decoder: {most:,}, at most {DECODER_LIMIT:,}"]
    show("decoder_bytes", options, rows, remarks)


if __name__ == "__main__":
    main()
