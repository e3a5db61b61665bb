"""The kernel's search along a trellis against torch's, in Triton's interpreter and on a GPU; when it is refused.

The interpreter must be asked for before Triton is imported, so these tests run in a process of their own: the first one
starts it. By hand: TRITON_INTERPRET=1 python -m pytest tests/unit/core/test_trellis_kernel.py
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from interpreted import CPU, CUDA, can_interpret, first_two, not_interpreted, run_interpreted, somewhere

from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.model.params import ATTN, ParamSpec
from pgolf.core.quant.gptq import Gptq, check_search
from pgolf.core.quant.roles import ByRole
from pgolf.core.quant.steps import Planned
from pgolf.core.quant.trellis import PARITY_CHECKS, SEGMENT, viterbi, walk
from pgolf.core.quant.trellis_codes import trellis_codes
from pgolf.core.quant.trellis_kernel import kernel_device, kernel_viterbi, segment_search

STATES = sorted(PARITY_CHECKS)


@can_interpret
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """A seeded normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@somewhere
@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize(("rows", "limit"), [(1, 127), (5, 1), (5, 127), (SEGMENT, 2), (300, 127), (600, 31)])
def test_the_kernel_finds_what_torch_finds(device: torch.device, states: int, rows: int, limit: int) -> None:
    target, half = 9 * normal(rows, seed=rows), 0.05 + normal(rows, seed=1).abs()
    given = [part.to(device) for part in (target, half, normal(rows, seed=2).square())]
    right = viterbi(*given, states, limit)
    for mine, theirs in zip(kernel_viterbi(*given, states, limit), right):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)
    assert float(right[0].abs().max()) <= limit
    codes = right[0].to(torch.int8).cpu()
    assert torch.equal(walk(codes[:, None], states)[:, 0].float(), right[1].cpu())


@somewhere
@pytest.mark.parametrize("states", [4, 64])
@pytest.mark.parametrize("zero", [slice(None), slice(0, None, 2), slice(200, None)])
def test_of_equal_paths_the_same_is_taken(device: torch.device, states: int, zero: slice) -> None:
    """Rows that count nothing make paths alike; so does the end of a segment that is not full."""
    target, half, metric = normal(SEGMENT + 20, seed=3), torch.full((SEGMENT + 20,), 0.5), torch.ones(SEGMENT + 20)
    metric[zero] = 0
    given = [part.to(device) for part in (target.round(), half, metric)]
    for mine, theirs in zip(kernel_viterbi(*given, states, 127), viterbi(*given, states, 127)):
        assert torch.equal(mine, theirs)


@somewhere
def test_weights_and_steps_far_from_one(device: torch.device) -> None:
    """What is beyond every limit, and what is on the border between two codes."""
    scale = 2.0 ** torch.arange(-40, 40)
    target = torch.cat((scale, -scale, torch.arange(-40, 40) / 2, torch.zeros(40)))
    half, metric = torch.cat((torch.full((200,), 0.5), torch.full((80,), 2.0**-20))), torch.ones(280)
    given = [part.to(device) for part in (target, half, metric)]
    for mine, theirs in zip(kernel_viterbi(*given, 8, 127), viterbi(*given, 8, 127)):
        assert torch.equal(mine, theirs)


def plan_of(rows: int, columns: int, compensated: bool) -> Planned:
    """A random plan."""
    factor = None
    if compensated:
        upper = (normal(columns, columns, seed=5) / 4).triu(1) + torch.eye(columns)
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(6))
        factor = upper, order, torch.arange(columns) == 1
    sizes, least = 0.3 + normal(rows, seed=7).abs().double(), 0.5 * normal(rows, seed=10).abs()
    return Planned(factor, sizes, 1 + normal(columns, seed=8).abs(), normal(rows, seed=9).square(), least)


@somewhere
@pytest.mark.parametrize("compensated", [True, False])
def test_a_whole_tensor_is_as_torch_rounds_it(device: torch.device, compensated: bool) -> None:
    """Through the quantizer. On a GPU sums over columns may be another last bit, and few codes with them."""
    spec = ParamSpec("blocks.0.attn.proj.weight", (300, 5), ("normal", 1.0), "matrix", ATTN)
    weight, plan = normal(*spec.shape), plan_of(*spec.shape, compensated)
    quantizer = Gptq(rounding="trellis", states=8, block=3, search="triton")
    assert quantizer.search == "triton" and plan.search is None
    mine, theirs = quantizer.quantize(spec, weight, plan), trellis_codes(weight, plan, 3, 8)
    assert type(mine) is type(theirs) and mine.warning == theirs.warning
    for one, other in zip(mine.parts(), theirs.parts()):
        assert one.dtype == other.dtype and one.device == other.device
        assert torch.equal(one, other) if device == CPU else float((one != other).float().mean()) < 0.02


def test_a_search_by_torch_asks_nothing_of_the_machine() -> None:
    for quantizer in (Gptq(rounding="trellis"), ByRole(), ByRole(attn=Gptq(rounding="trellis"))):
        check_search(quantizer, CPU)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that Triton is there, interpreted or not, and a GPU."""

    def pretend(triton: bool, gpu: bool, interpret: bool = False) -> None:
        package = ModuleType("triton")
        package.knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=interpret))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton", package if triton else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    return pretend


@pytest.mark.parametrize("quantizer", [Gptq, lambda **keys: ByRole(mlp=Gptq(**keys))])
@pytest.mark.parametrize(
    ("triton", "gpu", "device", "reason"),
    [
        (False, True, CUDA, "triton is missing"),
        (True, False, CUDA, "triton needs a CUDA device"),
        (True, True, CPU, "triton needs a CUDA device"),
    ],
)
def test_where_it_cannot_run_it_is_refused(
    machine: Any, quantizer: Any, triton: bool, gpu: bool, device: torch.device, reason: str
) -> None:
    machine(triton, gpu)
    with pytest.raises(SetupError, match=reason) as raised:
        check_search(quantizer(rounding="trellis", search="triton"), device)
    assert "quant.search" in str(raised.value) and raised.value.fix == "set quant.search=torch"
    assert raised.value.exit_code == 5


def test_nothing_falls_back_to_torch(machine: Any) -> None:
    machine(True, False)
    spec = ParamSpec("blocks.0.attn.proj.weight", (4, 2), ("normal", 1.0), "matrix", ATTN)
    with pytest.raises(SetupError, match="CUDA"):
        Gptq(rounding="trellis", search="triton").quantize(spec, normal(4, 2), plan_of(4, 2, True))


def test_where_it_runs(machine: Any) -> None:
    machine(True, True)
    assert kernel_device() == torch.device("cuda", 1) and kernel_device(torch.device("cuda:0")).index == 0
    machine(True, True, interpret=True)
    assert kernel_device() == kernel_device(CUDA) == CPU


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"search": "triton"}, "the kernel searches a trellis"),
        ({"search": "triton", "rounding": "trellis", "couple": "rows"}, "no coupled rows"),
        ({"search": "numba", "rounding": "trellis"}, "must be one of torch, triton"),
    ],
)
def test_what_it_does_not_go_with_is_refused(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Gptq(**settings)  # type: ignore[arg-type]


@not_interpreted
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("states", STATES)
def test_the_kernel_compiles_for_gpus_that_are_not_here(capability: int, states: int) -> None:
    """With every product rounded before it is added, and divisions to the last bit (Triton 3.5: if normal)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = segment_search()
    even, odd = (check >> 1 for check in PARITY_CHECKS[states])
    constants = {"EVEN": even, "ODD": odd, "STATES": states}
    kinds = dict.fromkeys(("target", "half", "metric", "codes", "values"), "*fp32") | {"best": "*i8"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    options = {"num_warps": 1, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"] and "fma." not in made.asm["ptx"]
    assert ("div.rn.ftz.f32" if first_two(triton.__version__) < (3, 6) else "div.rn.f32") in made.asm["ptx"]
