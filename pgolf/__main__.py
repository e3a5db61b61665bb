"""python -m pgolf, which is also how torchrun starts it."""

from pgolf.cli.main import entry

entry()
