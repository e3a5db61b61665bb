"""The complete configuration of a run: the recipe that ships, and the sections that only the workshop needs."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Documents to token shards."""

    vocab_size: int = 0
    """Size of a tokenizer to train; 0 takes model.vocab_size."""
    character_coverage: float = 0.999
    """Share of characters SentencePiece learns; the rest become bytes."""
    model_type: str = "bpe"
    """Kind of tokenizer to train: bpe or unigram."""
    reserved_symbols: str = ""
    """Pieces that a trained tokenizer keeps whole, separated by spaces."""
    tokenizer_docs: int = 5_000_000
    """Train the tokenizer on at most this many documents."""
    transform: str = "none"
    """Text transform before tokenization: none, or caseops_v1, the lossless case operators of PR #1729 and #1855."""
    split: str = "hash"
    """How validation documents are chosen: hash (a share, by document hash) or first (the first val_docs)."""
    val_share: float = 0.05
    """Share of documents that go to validation under split = hash."""
    val_docs: int = 50000
    """Number of validation documents under split = first."""
    document_separator: str = ""
    """Cut .txt files into documents at this text (\\n is understood); empty takes a file as one document."""
    text_field: str = "text"
    """Name of the text in JSON lines and parquet columns."""
    shard_tokens: int = 100_000_000
    """Token ids per shard."""
    workers: int = 0
    """Tokenizing processes; 0 takes all cores. The result does not depend on it."""

    def __post_init__(self) -> None:
        if self.transform != "none":
            from pgolf.corpus.transforms import get_transform

            get_transform(self.transform)
        if self.model_type not in ("bpe", "unigram"):
            raise ConfigError(f"{self.model_type!r} is neither bpe nor unigram", "model_type")
        if self.split not in ("hash", "first"):
            raise ConfigError(f"{self.split!r} is neither hash nor first", "split")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"val_share must lie between 0 and 1, not {self.val_share}", "val_share")
        if self.vocab_size > 65535:
            raise ConfigError(
                f"vocab_size {self.vocab_size:,} does not fit uint16 shards; 65,535 at most", "vocab_size"
            )
        for key in ("val_docs", "shard_tokens", "tokenizer_docs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1", key)
        if self.shard_tokens >= 2**31:
            raise ConfigError("a shard holds fewer than 2,147,483,648 ids", "shard_tokens")
        for key in ("workers", "vocab_size"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative", key)
        if not 0 < self.character_coverage <= 1:
            raise ConfigError("character_coverage must lie in (0, 1]", "character_coverage")


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """The submission folder."""

    cap_bytes: int = 16_000_000
    """Code plus artifacts may have at most this many bytes, decimal."""
    name: str = ""
    """Title of the submission; empty takes the preset's name."""
    author: str = ""
    """Display name of the author."""
    github_id: str = ""
    """Account that submits."""
    blurb: str = ""
    """One to three sentences about the submission."""
    track: str = "10min_16mb"
    """10min_16mb or non_record_16mb."""
    claim: str = "eval"
    """Which stage's score the submission claims and its script computes: eval or ttt."""
    against: str = ""
    """Published score that submission.json compares the claim with, by pull request or preset (`pgolf leaderboard`);
    empty takes the best merged one.
    """
    prove: bool = True
    """Run the script alone in an empty directory before anything is written, and compare its score with the claim."""
    prove_steps: int = 3
    """With `prove`, train so many steps of one row alone and with pgolf, and compare the artifacts; 0 trains none."""

    def __post_init__(self) -> None:
        if self.cap_bytes < 1:
            raise ConfigError(f"cap_bytes must be at least 1, not {self.cap_bytes}", "cap_bytes")
        if not 0 <= self.prove_steps <= 1000:
            raise ConfigError(f"prove_steps must lie between 0 and 1,000, not {self.prove_steps}", "prove_steps")
        if self.track not in ("10min_16mb", "non_record_16mb"):
            raise ConfigError(f"{self.track!r} is neither 10min_16mb nor non_record_16mb", "track")
        if self.claim not in ("eval", "ttt"):
            raise ConfigError(f"{self.claim!r} is neither eval nor ttt", "claim")
        for key in ("name", "author", "github_id", "blurb", "against"):
            if not getattr(self, key).isprintable():
                raise ConfigError(f"{key} has control characters", key)


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """What a record's weights took as coded, row scales included. It holds for the quantizer and codec of the preset
    that says so, and is forgotten as soon as another preset or --set changes one of these, or the model's width; 0 is
    not known, and predicted.
    """

    attn_bits: float = 0.0
    """Bits per weight of attention matrices."""
    mlp_bits: float = 0.0
    """Bits per weight of MLP matrices."""
    embed_bits: float = 0.0
    """Bits per weight of embedding tables."""
    head_bits: float = 0.0
    """Bits per weight of an output matrix of its own."""
    control_bits: float = 0.0
    """Bits per value of gains, scales and mixes."""
    code_bytes: int = 0
    """Bytes of the script."""

    def __post_init__(self) -> None:
        for key in self.__dataclass_fields__:
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative", key)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """Every section of a run, by the names the command line uses."""

    tokenize: TokenizeConfig = TokenizeConfig()
    """Documents to shards."""
    package: PackageConfig = PackageConfig()
    """The submission folder."""
    size: SizeConfig = SizeConfig()
    """Known sizes, for `pgolf size`."""

    @property
    def recipe(self) -> Recipe:
        """The part of the configuration that ships inside train_gpt.py."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})
