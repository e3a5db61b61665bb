"""SentencePiece tokenizers with the challenge's options (spec: data 5)."""

import io
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgolf.config.run import TokenizeConfig
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import check_regular, read_bytes
from pgolf.corpus.transforms import get_transform

MAX_SENTENCE_BYTES = 4000
"""Training text is cut below SentencePiece's limit of 4,192 bytes, beyond which it drops a sentence silently."""
MAX_IDS = 65_535
MAX_TOKENIZER = 64 << 20
TRIAL_SECONDS = 60
TRIAL = """
import sys
from sentencepiece import SentencePieceProcessor
tokenizer = SentencePieceProcessor(model_proto=sys.stdin.buffer.read())
ids = tokenizer.encode("The quick brown fox, 1+1=2; caf\\u00e9 \\u2603 \\U0001f600  a\\n\\nb " * 20)
tokenizer.decode(ids)
for index in range(tokenizer.vocab_size()):
    tokenizer.id_to_piece(index)
"""


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Stripped lines, NUL turned to space, long ones cut between words."""
    for text in texts:
        for line in text.replace("\0", " ").split("\n"):
            rest = line.strip()
            while len(rest.encode()) > MAX_SENTENCE_BYTES:
                head = rest.encode()[:MAX_SENTENCE_BYTES].decode(errors="ignore")
                cut = head.rfind(" ") if head.rfind(" ") > 0 else len(head)
                yield rest[:cut]
                rest = rest[cut:].strip()
            if rest:
                yield rest


class Feed:
    """Sentences for SentencePiece, which swallows what goes wrong in its input: this remembers it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.count = texts, 0
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for sentence in sentences(self.texts):
                self.count += 1
                yield sentence
        except GeneratorExit:
            raise
        except BaseException as error:  # a signal, too
            self.failure = error
            raise


def train_tokenizer(texts: Iterable[str], vocab_size: int, options: TokenizeConfig) -> bytes:
    """A model with byte fallback: pad 0, bos 1, eos 2, unk 3, then the operators of the text transform and the
    reserved symbols; no dummy prefix. ConfigError if the text is too small.
    """
    from sentencepiece import SentencePieceTrainer

    transform = get_transform(options.transform)
    model, feed = io.BytesIO(), Feed(transform.encode(text) for text in texts)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(feed),
            model_writer=model,
            model_type=options.model_type,
            vocab_size=vocab_size,
            character_coverage=options.character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            user_defined_symbols=[*transform.operators, *options.reserved_symbols.split()],
            minloglevel=2,
        )
    except RuntimeError as error:
        if feed.failure is not None:
            raise feed.failure from None
        if not feed.count:
            raise ConfigError("there is no text to train a tokenizer on", "tokenize", "check the sources") from None
        reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]
        fix = "raise it" if "ncrease" in reason else "lower it"
        what = f"SentencePiece cannot make {vocab_size} pieces of this text: {reason}"
        raise ConfigError(what, "tokenize.vocab_size", fix) from None
    return model.getvalue()


def read_tokenizer(path: Path) -> bytes:
    """A model file from elsewhere, tried out before it is trusted. InputError if it is not usable."""
    check_regular(path)
    content = read_bytes(path, MAX_TOKENIZER)
    if not content:
        raise InputError("the tokenizer file is empty", str(path), "give the .model file of the tokenizer")
    try_out(content, str(path))
    return content


def try_out(content: bytes, where: str) -> None:
    """Load a model file and encode with it in a process of its own, because a damaged one may take that process down.

    InputError if it does, or takes longer than a minute.
    """
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL], input=content, capture_output=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the tokenizer hangs for {TRIAL_SECONDS} s", where, "it is damaged; fetch it again") from None
    if trial.returncode:
        reason = f"ends the process with signal {-trial.returncode}" if trial.returncode < 0 else "cannot be loaded"
        raise InputError(
            f"not a usable SentencePiece model: it {reason}", where, "give the .model file of the tokenizer"
        )
