"""Time to quantize a calibrated model of a preset's shapes: steps by curvature and trellises beside plain GPTQ.

One matrix of every shape is quantized, with normal weights and correlated inputs, on one thread; rounds alternate
between the ways, and least times are added up over all matrices of the model. All of them factorise the Hessian.
"""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import parser, seconds_of, show
from pgolf.config.load import resolve
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import Gptq
from pgolf.fast_trellis import fast_viterbi

WAYS: dict[str, dict[str, Any]] = {
    "gptq": {},
    "curvature": {"steps": "curvature"},
    "8 states": {"steps": "curvature", "rounding": "trellis", "states": 8},
    "64 states": {"steps": "curvature", "rounding": "trellis", "states": 64},
    "256 states": {"steps": "curvature", "rounding": "trellis", "states": 256},
}


def quantized(spec: ParamSpec, weight: Tensor, found: Calibration, settings: dict[str, Any]) -> None:
    """Plan and quantize one matrix."""
    quantizer = Gptq(**settings)
    known: Any = found.inputs[spec.name]
    if quantizer.planned:
        known = quantizer.plan([spec], {spec.name: weight}, found)[spec.name]
        known.search = fast_viterbi
    quantizer.quantize(spec, weight, known)


def main() -> None:
    """Measure and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="leader")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    specs = [spec for spec in param_specs(resolve(options.preset).config.model) if spec.role != CONTROL]
    counts = Counter(spec.shape for spec in specs)
    totals = dict.fromkeys(WAYS, 0.0)
    for shape, count in counts.items():
        spec = next(spec for spec in specs if spec.shape == shape)
        generator = torch.Generator().manual_seed(0)
        weight, inputs = (torch.randn(rows, shape[1], generator=generator) for rows in (shape[0], 4 * shape[1]))
        inputs += torch.randn(len(inputs), 1, generator=generator)
        found = Calibration({spec.name: inputs.T @ inputs}, {spec.name: torch.ones(shape[0])}, tokens=len(inputs))
        for settings in WAYS.values():
            small = ParamSpec(spec.name, (2, shape[1]), spec.init, spec.group, spec.role)
            few = Calibration(found.inputs, {spec.name: torch.ones(2)}, tokens=found.tokens)
            quantized(small, weight[:2], few, settings)
        least = dict.fromkeys(WAYS, float("inf"))
        for _ in range(options.rounds):
            for way, settings in WAYS.items():
                taken = seconds_of(partial(quantized, spec, weight, found, settings))
                least[way] = min(least[way], taken)
        for way, taken in least.items():
            totals[way] += count * taken
    rows = [{"way": way, "s": round(s, 2), "over_gptq": round(s / totals["gptq"], 2)} for way, s in totals.items()]
    weights = sum(spec.numel for spec in specs)
    show("quantizer_speed", options, rows, [f"{weights:,} weights in {len(specs)} matrices of {len(counts)} shapes"])


if __name__ == "__main__":
    main()
