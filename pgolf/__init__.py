"""pgolf: a toolchain for parameter golf. The version is the only thing defined here, so importing it is free."""

__version__ = "0.1.0"
