"""The exception tree and its exit codes.

PgolfError          1  a bug in pgolf (never raised on purpose)
├─ ConfigError      2  a wrong option, key or value
├─ InputError       3  a file that is unreadable, corrupt or does not fit the others
├─ RuleError        4  a limit or a rule is violated: bytes, seconds, legality, quality
├─ SetupError       5  the machine lacks something: a GPU, a compiler, a package
├─ StorageError     6  disk, permission, network
└─ LockedError      7  another process is at work on the same output
"""


class PgolfError(Exception):
    """What went wrong, where, and how to mend it; `str()` is the one line a user reads."""

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{what} ({where})" if where else what
        super().__init__(f"{line}. {fix}" if fix else line)


class ConfigError(PgolfError):
    """A usage or configuration error."""

    exit_code = 2


class InputError(PgolfError):
    """An input that cannot be read, is corrupt, or belongs to something else."""

    exit_code = 3


class RuleError(PgolfError):
    """A limit of the challenge, a legality rule or a quality bound is violated."""

    exit_code = 4


class SetupError(PgolfError):
    """The environment lacks something the command needs."""

    exit_code = 5


class StorageError(PgolfError):
    """Reading or writing failed for a reason outside the file's content."""

    exit_code = 6


class LockedError(PgolfError):
    """Another process holds the output."""

    exit_code = 7


def assure(good: bool, what: str, where: str, fix: str = "") -> None:
    """InputError unless `good`. The lone script leaves out statements that call this, or methods named assure_...: they
    tell apart what its coarser checks refuse as well, or protect from files that it has not written itself.
    """
    if not good:
        raise InputError(what, where, fix)
