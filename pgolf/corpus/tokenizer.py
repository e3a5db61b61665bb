"""SentencePiece tokenizers with the challenge's options (spec: data 5)."""

import io
from collections.abc import Iterable, Iterator

from pgolf.core.errors import ConfigError, PgolfError

MAX_SENTENCE_BYTES = 4000
"""Training text is cut below SentencePiece's limit of 4,192 bytes, beyond which it drops a sentence silently."""


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
        self.failure: PgolfError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for sentence in sentences(self.texts):
                self.count += 1
                yield sentence
        except PgolfError as error:
            self.failure = error
            raise


def train_tokenizer(texts: Iterable[str], vocab_size: int, character_coverage: float) -> bytes:
    """A byte-fallback BPE model: pad 0, bos 1, eos 2, unk 3, no dummy prefix. ConfigError if the text is too small."""
    from sentencepiece import SentencePieceTrainer

    model, feed = io.BytesIO(), Feed(texts)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(feed),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        if feed.failure is not None:
            raise feed.failure from None
        if not feed.count:
            raise ConfigError("there is no text to train a tokenizer on", "tokenize", "check the sources") from None
        reason = str(error).strip().splitlines()[-1]
        fix = "raise it" if "ncrease" in reason else "lower it"
        what = f"SentencePiece cannot make {vocab_size} pieces of this text: {reason}"
        raise ConfigError(what, "tokenize.vocab_size", fix) from None
    return model.getvalue()
