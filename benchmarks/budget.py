"""The budget solver on a preset's full shapes: bytes left over, compressions, time, memory, and what bytes are worth.

Weights are normal with rows of different sizes, inputs correlated, and matrices differ in how much the loss feels their
outputs. In the place of a model's KL stands the loss by curvature, half of tr(B E A E^T) summed over all matrices. What
bytes of each role are worth is measured anew at the solution. One thread.
"""

import resource
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import parser, show
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.qtensor import QuantizedModel
from pgolf.report.console import Console
from pgolf.report.quantized import felt
from pgolf.stages.budget import Fitter
from pgolf.stages.model_files import artifact_info
from pgolf.stages.packing import encoded, script_bytes


def made_up(config: RunConfig) -> tuple[dict[str, Tensor], Calibration]:
    """Weights, and a calibration of them; matrices with as many columns share their inputs."""
    generator, found = torch.Generator().manual_seed(0), Calibration(tokens=1)
    weights, moments = dict[str, Tensor](), dict[int, Tensor]()
    for spec in param_specs(config.model):
        if spec.role == CONTROL:
            weights[spec.name] = torch.ones(spec.shape)
            continue
        rows, columns = spec.shape
        if columns not in moments:
            inputs = torch.randn(2 * columns, columns, generator=generator)
            inputs += torch.randn(len(inputs), 1, generator=generator)
            moments[columns] = inputs.T @ inputs / len(inputs)
        size, feeling = torch.randn(rows, 1, generator=generator), torch.randn(1 + rows, generator=generator)
        weights[spec.name] = 0.05 * (0.1 * size).exp() * torch.randn(rows, columns, generator=generator)
        found.inputs[spec.name] = moments[columns]
        found.outputs[spec.name] = (feeling[0] + 0.3 * feeling[1:]).exp() / columns
    return weights, found


def main() -> None:
    """Measure and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="leader")
    arguments.add_argument("--method", default="gptq", help="sdclip or gptq")
    arguments.add_argument("--codec", default="rans", help="what artifacts are compressed with")
    arguments.add_argument("--bytes", type=int, default=0, help="budget; 0 takes the cap")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    config = resolve(options.preset, [f"quant.method={options.method}", f"compress.method={options.codec}"]).config
    weights, found = made_up(config)
    info, budget = artifact_info(config, ""), options.bytes or config.package.cap_bytes

    def total(quantizer: Any, model: QuantizedModel) -> int:
        return len(encoded(model, config.compress, info)[0]) + script_bytes(config, info)

    def cost(model: QuantizedModel) -> Tensor:
        dequantized = model.weights()
        losses = [felt(weights[name] - dequantized[name], a) @ found.outputs[name] for name, a in found.inputs.items()]
        return torch.stack(losses).sum(0, keepdim=True).double() / 2

    fitter = Fitter(config, weights, lambda quantizer: found.inputs, cost, total, Console(options.as_json))
    start = time.perf_counter()
    fit = fitter.solve(budget)
    seconds = time.perf_counter() - start
    thetas = {role: fit.quantizer.own(role).theta for role in fitter.roles}
    worths = fitter.worths(fit.quantizer.theta, thetas)
    middle = sorted(one.gain for one in worths.values())[len(worths) // 2]
    rows = [
        {"role": role, "theta": thetas[role], "code_bytes": round(one.bytes), "worth": round(one.gain / middle, 3)}
        for role, one in worths.items()
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    left = f"{fit.total_bytes:,} of {budget:,} bytes, {budget - fit.total_bytes:,} left"
    spent = f"{fit.compressions} compressions, {seconds:.0f} s, {peak:,.0f} MiB at peak"
    show(
        "budget", options, rows, [f"{left}; {spent}; worth: loss for a byte less, over that of the role in the middle"]
    )


if __name__ == "__main__":
    main()
