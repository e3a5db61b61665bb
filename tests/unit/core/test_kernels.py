"""Fused kernels against eager float64, in Triton's interpreter and on a GPU; when they are refused; that they compile.

The interpreter must be asked for before Triton is imported, so these tests run in a process of their own: the first one
starts it. By hand: TRITON_INTERPRET=1 python -m pytest tests/unit/core/test_kernels.py
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreted import CPU, CUDA, INTERPRETED, can_interpret, not_interpreted, run_interpreted, somewhere
from torch import Tensor

from pgolf.catalog import CATALOG
from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.fused import FUSIBLE, NETWORKS, FusedGPT, choose_kernels
from pgolf.core.model.gpt import GPT
from pgolf.core.model.kernels import leaky_relu2_mlp, mlp_kernel, nll_kernels, register_kernels, softcapped_nll
from pgolf.core.model.parts.leaky_relu2 import LeakyRelu2
from pgolf.core.model.parts.low_rank_mlp import LowRankMlp
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.poly5_softcap import Poly5Softcap
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.sigmoid_softcap import SigmoidSoftcap
from pgolf.core.model.parts.swiglu import SwiGlu
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.ternary import Ternary
from pgolf.core.model.parts.z_loss import ZLoss
from pgolf.core.quant.calibration import collect_hessians
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loop import start_state

BF16 = torch.bfloat16
CAPS = [TanhSoftcap(cap=30.0), TanhSoftcap(cap=7.0), SigmoidSoftcap()]

# The interpreter's numpy speaks of exp(-z) overflowing, which ends in the right 0 or 1.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@can_interpret
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def eager_nll(cap: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss per row as the parts compute it without kernels."""
    return F.cross_entropy(
        cap.apply(logits).to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )


def nll_and_gradient(of: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Loss per row and the gradient of its weighted sum."""
    leaf = logits.detach().clone().requires_grad_()
    losses = of(leaf, targets)
    (losses * weights.to(losses.dtype)).sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == logits.dtype
    return losses.detach(), leaf.grad


def draw(rows: int, vocab: int, spread: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Raw logits, targets and weights of the rows' losses; the first rows have their targets at borders."""
    targets = torch.randint(0, vocab, (rows,))
    edges = torch.tensor([0, vocab - 1, *(at for at in (1023, 1024) if at < vocab)])[:rows]
    targets[: len(edges)] = edges
    logits = torch.randn(rows, vocab) * spread
    return logits.to(device), targets.to(device), torch.randn(rows).to(device)


@somewhere
@pytest.mark.parametrize("cap", CAPS, ids=str)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 2), (5, 61), (4, 1024), (6, 1025), (5, 8192), (2, 65536)])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_loss_is_that_of_float64(device: torch.device, cap: Any, rows: int, vocab: int, spread: float) -> None:
    register_kernels()
    logits, targets, weights = draw(rows, vocab, spread, device)
    found = nll_and_gradient(cap.fused_nll, logits, targets, weights)
    exact = nll_and_gradient(lambda z, y: eager_nll(cap, z, y), logits.double(), targets, weights)
    for mine, right, bound in zip(found, exact, (2e-5, 5e-6)):
        assert (mine - right).abs().max() < bound * max(1.0, float(weights.abs().max()))


@somewhere
@pytest.mark.parametrize("cap", CAPS, ids=str)
def test_bfloat16_logits_lose_only_the_gradients_rounding(device: torch.device, cap: Any) -> None:
    register_kernels()
    logits, targets, weights = draw(9, 1500, 20.0, device)
    logits = logits.bfloat16()
    losses, gradient = nll_and_gradient(cap.fused_nll, logits, targets, weights)
    right, slope = nll_and_gradient(lambda z, y: eager_nll(cap, z, y), logits.double(), targets, weights)
    assert losses.dtype == torch.float32 and (losses - right).abs().max() < 2e-5
    step = 128 if INTERPRETED else 256  # the interpreter cuts off where a GPU rounds
    assert ((gradient - slope).abs() <= slope.abs() / step + 1e-5).all()
    coarse, _ = nll_and_gradient(lambda z, y: eager_nll(cap, z, y), logits, targets, weights)
    assert (losses - right).abs().max() < (coarse - right).abs().max()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the row of NaN
@somewhere
@pytest.mark.parametrize("cap", CAPS, ids=str)
def test_extreme_logits(device: torch.device, cap: Any) -> None:
    register_kernels()
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [torch.inf, -torch.inf, 0.0]])
    targets = torch.tensor([1, 0, 2, 0])
    found = nll_and_gradient(cap.fused_nll, logits.to(device), targets.to(device), torch.ones(4).to(device))
    exact = nll_and_gradient(lambda z, y: eager_nll(cap, z, y), logits.double(), targets, torch.ones(4))
    for mine, right in zip(found, exact):
        assert (mine.cpu() - right).abs().max() < 1e-5
    assert cap.fused_nll(torch.full((1, 3), torch.nan, device=device), targets[:1].to(device)).isnan().all()


@somewhere
def test_rows_that_do_not_lie_one_after_another(device: torch.device) -> None:
    register_kernels()
    logits, targets, _ = draw(6, 40, 5.0, device)
    spaced = logits.repeat_interleave(2, 1)[:, ::2]
    assert not spaced.is_contiguous()
    mean = softcapped_nll(spaced, targets, 60.0, 0.0, 15.0).mean()
    assert torch.equal(mean, softcapped_nll(logits, targets, 60.0, 0.0, 15.0).mean())
    assert softcapped_nll(logits[:0], targets[:0], 60.0, 0.0, 15.0).shape == (0,)


def mlp_and_gradients(of: Any, given: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input and both matrices."""
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in given)
    out = of(*leaves)
    return out.detach(), *torch.autograd.grad((out * weights.to(out.dtype)).sum(), leaves)


def eager_mlp(slope: float) -> Any:
    """The MLP as the part computes it without kernels."""
    activation = LeakyRelu2(slope=slope).activation
    return lambda x, w, proj: activation(x @ w.T) @ proj.T


@somewhere
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("tokens", "dim", "hidden"), [(1, 16, 32), (7, 24, 50), (128, 64, 128), (130, 72, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mlp_is_that_of_float64(
    device: torch.device, slope: float, tokens: int, dim: int, hidden: int, dtype: torch.dtype
) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's product takes the bits of bfloat16 for integers")
    register_kernels()
    shapes = (tokens, dim), (hidden, dim), (dim, hidden)
    given = tuple((torch.randn(shape) / shape[1] ** 0.5).to(device, dtype) for shape in shapes)
    weights = torch.randn(tokens, dim).to(device, dtype)
    found = mlp_and_gradients(lambda *t: leaky_relu2_mlp(*t, slope), given, weights)
    exact = mlp_and_gradients(eager_mlp(slope), tuple(tensor.double() for tensor in given), weights)
    for mine, right in zip(found, exact):
        assert mine.dtype == dtype
        assert (mine - right).norm() <= {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[
            dtype
        ] * right.norm()


@somewhere
def test_gradients_cannot_be_taken_twice(device: torch.device) -> None:
    register_kernels()
    logits, targets, _ = draw(3, 20, 5.0, device)
    logits.requires_grad_()
    x, w = torch.randn(4, 16, device=device, requires_grad=True), torch.randn(32, 16, device=device)
    for loss, leaf in (
        (softcapped_nll(logits, targets, 60.0, 0.0, 15.0).sum(), logits),
        (leaky_relu2_mlp(x, w, w.T, 0.5).sum(), x),
    ):
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            torch.autograd.grad(slope.square().sum(), leaf)


@somewhere
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch 2.15
def test_the_operators_are_what_torch_expects(device: torch.device) -> None:
    register_kernels()
    logits, targets, _ = draw(5, 70, 5.0, device)
    given = [(torch.randn(shape) / 4).to(device).requires_grad_() for shape in ((6, 16), (40, 16), (16, 40))]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.pgolf.softcapped_nll, (logits.requires_grad_(), targets, 60.0, 0.0, 15.0), test_utils=checks
    )
    torch.library.opcheck(torch.ops.pgolf.leaky_relu2_mlp, (*given, 0.5), test_utils=checks)


def small(**parts: Any) -> ModelConfig:
    """Two layers that take kernels unless a part prevents it."""
    return ModelConfig(
        **{"vocab_size": 60, "num_layers": 2, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1} | parts
    )


def pair(config: ModelConfig, device: torch.device) -> tuple[GPT, FusedGPT]:
    """The same weights, nothing zero, computed eagerly and by kernels."""
    eager, fused = GPT(config).settle(device, "float32"), FusedGPT(config).settle(device, "float32")
    with torch.no_grad():
        for weight in eager.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    fused.load_state_dict(eager.state_dict())
    return eager, fused


def batch(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and targets."""
    drawn = torch.randint(0, config.vocab_size, (2, 3, 17)).to(device)
    return drawn[0], drawn[1]


@somewhere
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "parts", [{}, {"mlp": LeakyRelu2(slope=0.3), "logit_softcap": SigmoidSoftcap()}], ids=["baseline", "leaky"]
)
def test_a_model_trains_the_same_and_compiles_to_one_graph(
    device: torch.device, compiled: bool, parts: dict[str, Any]
) -> None:
    eager, fused = pair(small(**parts), device)
    given = batch(eager.config, device)
    torch.compiler.reset()
    forward = torch.compile(fused, dynamic=False, fullgraph=True, backend="aot_eager") if compiled else fused
    loss, right = forward(*given), eager(*given)
    assert (loss - right).abs() < 2e-6
    loss.backward()
    right.backward()
    for (name, mine), theirs in zip(fused.named_parameters(), eager.parameters()):
        assert mine.grad is not None and theirs.grad is not None, name
        assert (mine.grad - theirs.grad).norm() <= 2e-5 * theirs.grad.norm() + 1e-9, name


@somewhere
def test_scores_and_calibration_are_eager(device: torch.device) -> None:
    eager, fused = pair(small(), device)
    ids, targets = batch(eager.config, device)
    with torch.no_grad():
        assert torch.equal(fused.nll(ids, targets), eager.nll(ids, targets))
    mine, right = (collect_hessians(model, [(0, ids)], lambda done: None) for model in (fused, eager))
    assert mine.keys() == right.keys() and all(torch.equal(mine[name], right[name]) for name in right)
    heard = []
    fused.layers[0][0].mlp.proj.tap = lambda x, y: heard.append(x)
    assert torch.allclose(fused(ids, targets), eager(ids, targets), atol=2e-6)
    assert [units.shape for units in heard] == [(3, 17, 64)]


@somewhere
def test_every_fusible_part_is_what_it_is_without_kernels(device: torch.device) -> None:
    fusible = {kind.__name__ for kind in FUSIBLE}
    known = {where.partition(":")[2] for slot in ("Mlp", "Softcap") for where in CATALOG[slot].values()}
    assert fusible <= known
    for kind in FUSIBLE:
        slot = "mlp" if issubclass(kind, Relu2) else "logit_softcap"
        eager, fused = pair(small(**{slot: kind()}), device)
        given = batch(eager.config, device)
        assert (fused(*given) - eager(*given)).abs() < 2e-6


@somewhere
def test_the_loop_trains_with_kernels(device: torch.device) -> None:
    config = resolve("tiny", ["train.kernels=triton", "train.precision=float32"]).config
    state = start_state(config.model, config.train, config.optim, [], 0, World(device=device))
    assert type(state.model) is FusedGPT
    ids, targets = batch(config.model, device)
    before = state.model(ids, targets).detach()
    for step in range(3):
        state.model(ids, targets).backward()
        state.optimizers.step(step, 1.0)
    assert state.model(ids, targets) < before


@not_interpreted
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_kernels_compile_for_gpus_that_are_not_here(capability: int, dtype: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = dict.fromkeys(("z", "z_grads", "a", "b", "u", "products", "hidden"), f"*{dtype}")
    kinds |= dict.fromkeys(("losses", "sums", "grads"), "*fp32") | {"targets": "*i64"}
    kinds |= dict.fromkeys(("scale", "shift", "width", "slope"), "fp32")
    tiles = {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64 if dtype == "bf16" else 32}
    runs = [(kernel, {"BLOCK": 1024}, 4) for kernel in nll_kernels()]
    runs += [(mlp_kernel(), {"BACKWARD": backward} | tiles, 8) for backward in (False, True)]
    for kernel, constants, warps in runs:
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert made.asm["cubin"] and made.metadata.shared <= 65536


@not_interpreted
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_product_as_it_is_launched_takes_no_more_shared_memory_than_it_says(
    capability: int, dtype: str, backward: bool
) -> None:
    """Of aligned tensors, sizes that are multiples of 16 and a matrix without gaps: then copies run ahead of products,
    which takes shared memory. Backward B is as it lies, forward transposed.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = mlp_kernel()
    names, one = kernel.arg_names, "b_right" if backward else "b_down"
    tensors = dict.fromkeys(("a", "b", "u", "products", "hidden"), f"*{dtype}")
    constants = {"BACKWARD": backward, "ROWS": 128, "COLUMNS": 128, "DEPTH": 64 if dtype == "bf16" else 32, one: 1}
    kinds = tensors | dict.fromkeys(constants, "constexpr") | {"slope": "fp32"}
    signature = {name: kinds.get(name, "i32") for name in names}
    even = [names.index(name) for name, kind in signature.items() if kind == "i32" or name in tensors]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(place,): [["tt.divisibility", 16]] for place in even},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert made.asm["cubin"] and "cp.async" in made.asm["ptx"]
    most = 98304 if (capability, dtype) == (90, "bf16") else 65536
    assert most / 2 < made.metadata.shared <= most


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a GPU of this capability is there, and Triton or not."""

    def pretend(major: int, triton: bool) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        package = ModuleType("triton")
        package.knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=False))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton", package if triton else None)

    return pretend


@pytest.mark.parametrize(
    ("parts", "device", "major", "triton", "reason"),
    [
        ({}, CUDA, 9, False, "is missing"),
        ({}, CPU, 9, True, "needs a CUDA device"),
        ({}, CUDA, 7, True, "compute capability 7"),
        ({"mlp": SwiGlu()}, CUDA, 9, True, "model.mlp=SwiGlu"),
        ({"mlp": LowRankMlp(rank=4)}, CUDA, 9, True, "model.mlp=LowRankMlp"),
        ({"logit_softcap": Poly5Softcap()}, CUDA, 9, True, "model.logit_softcap=Poly5Softcap"),
        ({"aux_loss": ZLoss()}, CUDA, 9, True, "model.aux_loss"),
        ({"multi_token": TokenHeads()}, CUDA, 9, True, "model.multi_token"),
        ({"precision": Ternary(group=32)}, CUDA, 9, True, "model.precision"),
    ],
)
def test_what_is_not_possible_is_refused(
    machine: Any, parts: dict[str, Any], device: torch.device, major: int, triton: bool, reason: str
) -> None:
    machine(major, triton)
    with pytest.raises(SetupError, match=reason) as raised:
        choose_kernels(small(**parts), device, BF16, "triton")
    assert "train.kernels" in str(raised.value) and raised.value.fix == "set train.kernels=auto"
    with pytest.raises(SetupError, match=reason):
        FusedGPT(small(**parts)).settle(device)


def test_the_interpreter_is_not_given_what_it_cannot_do(machine: Any) -> None:
    machine(9, True)
    sys.modules["triton"].knobs.runtime.interpret = True
    assert choose_kernels(small(), CPU, torch.float32, "triton")[0] == "triton"
    with pytest.raises(SetupError, match="bfloat16"):
        choose_kernels(small(), CPU, BF16, "triton")


def test_what_is_chosen_and_why(machine: Any) -> None:
    machine(9, True)
    assert choose_kernels(small(), CUDA, BF16, "triton") == ("triton", "triton: as configured")
    assert choose_kernels(small(), CUDA, BF16, "eager") == ("eager", "eager: as configured")
    for device in (CPU, CUDA):
        name, why = choose_kernels(small(), device, BF16)
        assert name == "eager" and "unproven until measured" in why
    for name in NETWORKS:
        assert TrainConfig(kernels=name).kernels == name
    with pytest.raises(ConfigError, match="liger"):
        TrainConfig(kernels="liger")
