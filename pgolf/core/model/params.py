"""Parameters as data: what a model consists of, known without torch.

`param_specs` in `config.py` lists every parameter of a configuration once, in canonical order. Size prediction,
initialisation, optimizer groups, quantization roles, artifact manifests and imports all read that list.
"""

from dataclasses import dataclass, replace
from math import prod

EMBED, ATTN, MLP, HEAD, CONTROL = "embed", "attn", "mlp", "head", "control"
"""Roles, which decide how a tensor is quantized. CONTROL tensors are kept as floats."""

MATRIX, TOKEN, SCALAR = "matrix", "token", "scalar"
"""Optimizer groups beside HEAD: Muon steps MATRIX, Adam the others."""


@dataclass(frozen=True)
class ParamSpec:
    """One parameter. `init` is (rule, number): fill x, rows (first row x, rest 0), normal std, linear
    (uniform within ±x / sqrt(columns)), orthogonal gain x, overtone std (normal, the k-th singular value then set to
    the first one's k^-1/2), split (first row x, second 1 - x), eye."""

    name: str
    shape: tuple[int, ...]
    init: tuple[str, float]
    group: str
    role: str

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def under(self, prefix: str) -> "ParamSpec":
        """The same parameter with `prefix.` before its name."""
        return replace(self, name=f"{prefix}.{self.name}")

    def drawn(self, rule: str, large: int) -> "ParamSpec":
        """The same parameter, if it is a linear map drawn by `rule`; orthogonal ones have at least `large` rows and
        columns, normal ones a standard deviation of 0.02.
        """
        if rule == "normal" and self.init[0] == "linear":
            return replace(self, init=("normal", 0.02))
        if rule == "orthogonal" and self.init[0] == "linear" and min(self.shape) >= large:
            return replace(self, init=("orthogonal", 1.0))
        return self


def matrix(name: str, rows: int, cols: int, role: str, init: tuple[str, float] = ("linear", 1.0)) -> ParamSpec:
    """A weight of a linear map, (rows out, cols in), stepped by Muon."""
    return ParamSpec(f"{name}.weight", (rows, cols), init, MATRIX, role)


def control(name: str, shape: tuple[int, ...], value: float) -> ParamSpec:
    """A small float tensor (gain, scale, mix) filled with `value`, stepped by Adam, kept in float32."""
    return ParamSpec(name, shape, ("fill", value), SCALAR, CONTROL)
