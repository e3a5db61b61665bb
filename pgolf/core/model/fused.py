"""The model as computed by fused kernels, and whether it can be."""

from typing import Any

import torch
from torch import Tensor

from pgolf.core.dist import activation_dtype
from pgolf.core.errors import SetupError
from pgolf.core.model.config import ModelConfig, model_parts, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.kernels import register_kernels
from pgolf.core.model.parts.leaky_relu2 import LeakyRelu2
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.sigmoid_softcap import SigmoidSoftcap
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.slots import Part

FUSIBLE = (Relu2, LeakyRelu2, TanhSoftcap, SigmoidSoftcap)
"""Parts with a kernel. What inherits from one of them computes something else and is none."""


def kernels_obstacle(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the kernels from computing this model there, or nothing."""
    for slot, part in model_parts(config).items():
        if slot in ("mlp", "logit_softcap") and type(part) not in FUSIBLE:
            return f"has no kernel for model.{slot}={type(part).__name__}"
        if type(part).extra_loss is not Part.extra_loss:
            return f"keeps no logits, which model.{slot} may want"
        if type(part).weights is not Part.weights or type(part).inputs is not Part.inputs:
            return f"does not ask model.{slot} what weights are made of"
    if any(".mlp." in spec.name and ".lora_a" in spec.name for spec in param_specs(config)):
        return "knows whole matrices only, and model.loop.lora_rank adds to those of an MLP"
    try:
        import triton
    except ImportError as error:
        return f"is missing: {error}"
    if device.type != "cuda":
        if not triton.knobs.runtime.interpret:
            return "needs a CUDA device"
        return "" if dtype == torch.float32 else "cannot multiply bfloat16 in its interpreter"
    major = torch.cuda.get_device_capability(device)[0]
    return f"cannot run on compute capability {major}" if major < 8 else ""


def refuse_kernels(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """SetupError when the kernels cannot compute this model there."""
    if obstacle := kernels_obstacle(config, device, dtype):
        raise SetupError(f"triton {obstacle}", "train.kernels", "set train.kernels=auto")


def choose_kernels(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, wanted: str = "auto"
) -> tuple[str, str]:
    """What computes the training step, and why. SetupError when what is wanted cannot."""
    if wanted == "auto":
        return "eager", "auto: the fused kernels are unproven until measured on a GPU"
    if wanted == "triton":
        refuse_kernels(config, device, dtype)
    return wanted, f"{wanted}: as configured"


class FusedGPT(GPT):
    """The same model, whose MLPs and loss are computed by kernels where gradients are wanted: scores and calibration
    are eager. The loss keeps no logits in float32, so what parts add to it is not there.
    """

    def settle(self, device: torch.device, precision: str = "auto", attention: str = "auto") -> GPT:
        """SetupError when the kernels cannot compute this model there."""
        refuse_kernels(self.config, device, activation_dtype(precision, device))
        register_kernels()
        return super().settle(device, precision, attention)

    def mlp(self, mlp: Any, n_BTC: Tensor) -> Tensor:
        """The feed-forward half of a block."""
        if not torch.is_grad_enabled():
            return super().mlp(mlp, n_BTC)
        return self.config.mlp.fused_apply(mlp, n_BTC)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, starts: list[Any] | None = None) -> Tensor:
        """Training loss, float32 scalar: mean nats per token over all positions."""
        logits = self.raw(self.hidden(ids_BT, starts))
        return self.config.logit_softcap.fused_nll(logits.flatten(0, 1), targets_BT.flatten()).mean()


NETWORKS: dict[str, type[GPT]] = {"auto": GPT, "eager": GPT, "triton": FusedGPT}
"""What trains under each value of `train.kernels`."""
