"""python -m pgolf, which is also how torchrun starts it."""

from pgolf.cli.main import entry

if __name__ == "__main__":  # worker processes import this module too
    entry()
