"""Attention by every backend against the reference, what is asked of the flash-attention packages, and the choice."""

import shutil
import sys
import warnings
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as flex_module

from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.evals.compiled import TorchCompile
from pgolf.core.evals.plain import PlainEval
from pgolf.core.model import attend as attend_module
from pgolf.core.model.attend import BACKENDS, attend, choose_attention, cu_seqlens, seen, seen_blocks
from pgolf.core.model.config import ModelConfig, attention_names
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.value_residual import ValueMix
from pgolf.core.model.parts.window import SlidingWindow
from pgolf.core.train.config import TrainConfig
from pgolf.stages.model_files import ready

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLASH = {"fa2": "flash_attn.flash_attn_interface", "fa3": "flash_attn_interface"}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def fake_flash(name: str, calls: list[Call]) -> ModuleType:
    """A package with the two functions of flash-attention, computed by the reference; version 3 once returned pairs."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool, window_size: tuple[int, int]) -> Any:
        calls.append(("flash_attn_func", (q, k, v), {"causal": causal, "window_size": window_size}))
        y = attend(q, k, v, max(window_size[0], 0), None, "reference")
        return (y, None) if name == FLASH["fa3"] else y

    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, causal: bool, window_size: tuple[int, int]
    ) -> Any:
        options = {"causal": causal, "window_size": window_size, "cu": (cu_q, cu_k), "max": (max_q, max_k)}
        calls.append(("flash_attn_varlen_func", (q, k, v), options))
        segments = torch.searchsorted(cu_q, torch.arange(len(q)), right=True)[None]
        return attend(q[None], k[None], v[None], max(window_size[0], 0), segments, "reference")[0]

    package = ModuleType(name)
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func  # type: ignore[attr-defined]
    return package


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Both packages are stood in for; the list grows by what they are asked."""
    made: list[Call] = []
    for name in FLASH.values():
        monkeypatch.setitem(sys.modules, name, fake_flash(name, made))
    whole = ModuleType("flash_attn")
    whole.flash_attn_interface = sys.modules[FLASH["fa2"]]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", whole)
    return made


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex without the compiler: slow, and the same result."""

    def plain(*given: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return flex_module.flex_attention(*given, **options)

    monkeypatch.setattr(attend_module, "compiled_flex", lambda: plain)


def heads(
    length: int, groups: int = 2, rows: int = 2, width: int = 16, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Queries, keys, values that are scaled as QK-norm leaves them."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(rows, length, 2 * groups, width), (rows, length, 2, width), (rows, length, 2, width)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def bounds(segments: torch.Tensor | None) -> dict[str, Any]:
    """The memory of a forward pass, with what flash-attention must know of segments."""
    return {} if segments is None else {"starts": [cu_seqlens(segments)] * 2 + [segments.size(1)] * 2}


def stretches(length: int, rows: int = 2) -> torch.Tensor:
    """Segments, not the same in every row; the second row's first has the number of the first row's last."""
    begins = torch.rand(rows, length, generator=torch.Generator().manual_seed(5)) < 0.15
    begins[:, 0] = torch.arange(rows) == 0
    begins[:, 3:4] = True
    return (begins.flatten().cumsum(0)).view(rows, length)


CASES = [
    pytest.param(length, window, cut, groups, id=f"T{length}-w{window}-{'segments' if cut else 'rows'}-g{groups}")
    for length in (1, 2, 37, 150)
    for window, cut, groups in ((0, False, 1), (0, False, 2), (5, False, 2), (0, True, 2), (5, True, 2), (1, True, 1))
]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize(("length", "window", "cut", "groups"), CASES)
def test_backends_agree_with_the_reference(calls, eager_flex, backend, dtype, length, window, cut, groups):
    given = heads(length, groups, dtype=dtype)
    segments = stretches(length) if cut else None
    expected = attend(*given, window, segments, "reference")
    found = attend(*given, window, segments, backend, bounds(segments))
    assert found.shape == given[0].shape and found.dtype == dtype
    assert (found.float() - expected.float()).abs().max() <= TOLERANCE[dtype]
    assert (len(calls) == 1) == (backend in FLASH)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize(("window", "cut"), [(0, False), (140, False), (0, True), (140, True)])
def test_compiled_flex_agrees_with_the_reference(window, cut):
    given = heads(400)
    segments = torch.stack((torch.arange(400) // 130, torch.arange(400) // 390)) if cut else None
    found = attend(*given, window, segments, "flex")
    assert (found - attend(*given, window, segments, "reference")).abs().max() <= 2e-6


@pytest.mark.parametrize("cut", [False, True], ids=["rows", "segments"])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("backend", ["sdpa", "fa2", "fa3"])
def test_gradients_agree_with_the_reference(calls, backend, window, cut):
    given = [x.requires_grad_() for x in heads(23)]
    segments, weight = stretches(23) if cut else None, torch.randn(2, 23, 4, 16)
    wanted, found = (
        torch.autograd.grad((attend(*given, window, segments, name, bounds(segments)) * weight).sum(), given)
        for name in ("reference", backend)
    )
    for one, other in zip(wanted, found, strict=True):
        assert (one - other).abs().max() <= 1e-5


def test_the_reference_is_the_formula(rng):
    q, k, v = (torch.from_numpy(rng.normal(size=(1, 9, count, 4))).float() for count in (4, 2, 2))
    segments, window = torch.tensor([[7, 7, 7, 1, 1, 1, 1, 1, 2]]), 3
    found = attend(q, k, v, window, segments, "reference")
    for i in range(9):
        seen = [j for j in range(i + 1) if i - j <= window and segments[0, i] == segments[0, j]]
        for h in range(4):
            scores = np.array([float(q[0, i, h] @ k[0, j, h // 2]) / 2 for j in seen])
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = sum(w * v[0, j, h // 2].numpy() for w, j in zip(weights, seen))
            np.testing.assert_allclose(found[0, i, h], expected, atol=1e-6)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_golden_attention(oracle, calls, eager_flex, backend):
    data = {name: torch.from_numpy(value) for name, value in oracle("unit_xsa_attention.npz").items() if name != "meta"}
    q, k, v = data["q"], data["k"], data["v"]
    assert (attend(q, k, v, 0, None, backend) - data["attn_out"]).abs().max() <= 2e-6
    segments = torch.searchsorted(data["cu_seqlens"], torch.arange(16), right=True)[None]
    found = attend(q[:1], k[:1], v[:1], 0, segments, backend, bounds(segments))[0]
    assert (found - data["attn_varlen_out"]).abs().max() <= 2e-6


@pytest.mark.parametrize("case", range(5))
def test_golden_cu_seqlens(oracle, case):
    data = oracle("unit_cu_seqlens.npz")
    total, longest, bucket = map(int, data[f"args_{case}"])
    ids = torch.full((1, total), 7)
    ids[0, torch.from_numpy(data[f"bos_{case}"])] = 1
    found = cu_seqlens(ByDocument(max_tokens=longest).segments(ids), bucket)
    assert found.dtype == torch.int32 and found.tolist() == data[f"cu_{case}"].tolist()
    assert int(found.diff().max()) == data[f"max_{case}"]


def test_cu_seqlens_begin_anew_in_every_row_and_keep_their_size():
    segments = torch.tensor([[1, 1, 2], [2, 2, 2], [2, 3, 3]])
    assert cu_seqlens(segments, 1).tolist() == [0, 2, 3, 6, 7, 9]
    assert cu_seqlens(segments).tolist() == [0, 2, 3, 6, 7] + [9] * 59
    assert cu_seqlens(segments, 6).tolist() == [0, 2, 3, 6, 7, 9]
    assert cu_seqlens(segments, 5).tolist() == [0, 2, 3, 6, 7] + [9] * 5
    assert [len(cu_seqlens(torch.arange(n)[None])) for n in (1, 62, 63, 64, 65, 127, 128)] == [64] * 3 + [128] * 3 + [
        192
    ]


@pytest.mark.parametrize("backend", list(FLASH))
@pytest.mark.parametrize(("window", "pair"), [(0, (-1, -1)), (5, (5, 0))])
def test_what_flash_attention_is_asked(calls, backend, window, pair):
    q, k, v = heads(6)
    attend(q, k, v, window, None, backend)
    name, given, options = calls[0]
    assert name == "flash_attn_func" and options == {"causal": True, "window_size": pair}
    assert all(one is other for one, other in zip(given, (q, k, v)))
    segments = torch.tensor([[1, 1, 2, 2, 2, 3], [3, 3, 4, 4, 4, 4]])
    attend(q, k, v, window, segments, backend, bounds(segments))
    name, given, options = calls[1]
    assert name == "flash_attn_varlen_func"
    assert (options["causal"], options["window_size"], options["max"]) == (True, pair, (6, 6))
    assert [tuple(x.shape) for x in given] == [(12, 4, 16), (12, 2, 16), (12, 2, 16)]
    for starts in options["cu"]:
        assert starts.dtype == torch.int32 and starts.tolist() == [0, 2, 5, 6, 8] + [12] * 59


def limited(**more: Any) -> ModelConfig:
    """Windows on the first layers, documents everywhere, and something else that lives in the memory of a forward."""
    parts = {"documents": ByDocument(max_tokens=7), "window": SlidingWindow(tokens=3, full_layers=2)}
    sizes = {"vocab_size": 61, "num_layers": 4, "model_dim": 64, "num_heads": 4, "num_kv_heads": 2}
    return ModelConfig(**sizes, **(parts | {"value_residual": ValueMix()} | more))


def batch(length: int = 24) -> torch.Tensor:
    """Ids in which documents begin."""
    ids = torch.randint(4, 61, (2, length), generator=torch.Generator().manual_seed(1))
    ids[0, 5] = ids[1, 9] = ids[1, 10] = 1
    return ids


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_whole_models_give_the_same_logits(calls, eager_flex, make_model, backend, dtype):
    model = make_model(limited())
    model.compute_dtype = dtype
    assert model.attention_backend == "sdpa"
    with torch.no_grad():
        expected = model.head(model.hidden(batch()))
        model.attention_backend = backend
        found = model.head(model.hidden(batch()))
        assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.2)
        assert torch.equal(found, model.head(model.hidden(batch(), model.starts(batch()))))
    assert (len(calls) == 8) == (backend in FLASH)


@pytest.mark.parametrize("length", [1, 7, 8, 20, 33])
@pytest.mark.parametrize("window", [0, 1, 6, 7, 8, 9, 30])
@pytest.mark.parametrize("documents", [0, 1, 3, 9])
def test_blocks_tell_what_is_seen(rng, length, window, documents):
    segments, size = None, 8
    if documents:
        segments = torch.from_numpy(np.sort(rng.integers(0, documents, (3, length)), axis=1))
    some, whole = seen_blocks(window, segments, torch.zeros(3, length), size)
    count = -(-length // size)
    pairs = torch.zeros(3 if documents else 1, count * size, count * size, dtype=torch.bool)
    pairs[:, :length, :length] = seen(window, segments, torch.zeros(3, length), {}).view(-1, length, length)
    blocks = pairs.view(-1, count, size, count, size)
    assert torch.equal(whole, blocks.all(4).all(2))
    found = blocks.any(4).any(2)
    assert not (found & ~some).any()
    if not (window and documents):  # both may leave a pair each and none together
        assert torch.equal(some, found)


def test_a_model_that_is_not_compiled_has_a_graph_of_flex_for_every_use(monkeypatch, make_model):
    """Two windows, with gradients and without, one row and several, one block and several: none computes all pairs."""

    def as_it_is(graph: Any, given: Any) -> Any:
        made.append(graph)
        return graph.forward

    made: list[Any] = []
    # torch computes flex's gradients on a CPU if it is not kept from it.
    monkeypatch.setattr(flex_module, "_validate_device", lambda *given: None, raising=False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is))
    attend_module.compiled_flex.cache_clear()
    config = limited(documents=ByDocument(max_tokens=0))
    run: Any = SimpleNamespace(model=config, train=SimpleNamespace(attention_later="auto"))

    def settled(model: GPT, device: torch.device, attention: str) -> GPT:
        model.attention_backend = "flex"
        return model

    monkeypatch.setattr(GPT, "settle", settled)
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=8), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ready(run, make_model(config).state_dict(), CPU)
        for grads in (False, True):
            for rows, length in ((4, 48), (4, 160), (3, 300), (1, 300), (1, 48), (2, 48)):
                with torch.set_grad_enabled(grads):
                    found = model.hidden(torch.randint(2, 60, (rows, length)))
                assert found.shape[:2] == (rows, length)
        count = len(made)
        assert count > 8
        with torch.no_grad():
            model.hidden(torch.randint(2, 60, (1, 129)))
        assert len(made) == count
    attend_module.compiled_flex.cache_clear()
    torch.compiler.reset()


def test_masks_are_made_once_per_forward(monkeypatch, make_model, eager_flex, calls):
    model, given, made = make_model(limited()), [], []
    sdpa, blocks = torch.nn.functional.scaled_dot_product_attention, attend_module.seen_blocks
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", lambda *x, **more: given.append(x[3]) or sdpa(*x, **more)
    )
    monkeypatch.setattr(attend_module, "seen_blocks", lambda *x: made.append(x) or blocks(*x))
    for name in ("sdpa", "flex", "fa2"):
        model.attention_backend = name
        with torch.no_grad():
            model.hidden(batch())
    assert given[0] is given[1] and given[2] is given[3] and not torch.equal(given[0], given[2])
    assert len(given) == 4 and len(made) == 2 and len({id(cu) for call in calls for cu in call[2]["cu"]}) == 1
    model.attention_backend = "sdpa"
    model.hidden(batch(15))
    assert given[4].shape[-1] == 15


def test_no_mask_where_whole_rows_are_seen(monkeypatch, tiny_model):
    given, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda *x, **more: given.append((x[3], more["is_causal"])) or sdpa(*x, **more),
    )
    tiny_model.hidden(batch() % 60)
    assert given == [(None, True)] * 3


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_compiled_model_is_one_graph(monkeypatch, calls, make_model, backend):
    # torch computes flex's gradients on a CPU if it is not kept from it.
    monkeypatch.setattr(flex_module, "_validate_device", lambda *given: None, raising=False)
    model = make_model(limited())
    ids, targets = batch()[:, :-1], batch()[:, 1:]
    expected = model(ids, targets)
    model.attention_backend = backend
    forward = torch.compile(model, dynamic=False, fullgraph=True, backend="eager" if backend in FLASH else "aot_eager")
    with warnings.catch_warnings():
        if backend == "flex":
            warnings.simplefilter("ignore")
        found = forward(ids, targets, model.starts(ids))
    assert (found - expected).abs() <= 1e-5
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for one, other in zip(wanted, torch.autograd.grad(found, list(model.parameters()), allow_unused=True)):
        assert (one is None) == (other is None) and (one is None or (one - other).abs().max() <= 1e-5)


@pytest.mark.parametrize("backend", list(FLASH))
@pytest.mark.parametrize(("most", "length", "longest"), [(7, 24, 7), (0, 24, 24), (2048, 24, 24), (7, 5, 5)])
def test_no_stretch_is_longer_than_documents_allow_and_flash_attention_is_told(
    calls, make_model, backend, most, length, longest
):
    model, ids = make_model(limited(documents=ByDocument(max_tokens=most))), batch(24)[:, :length]
    model.attention_backend = backend
    for starts in (None, model.starts(ids)):
        with torch.no_grad():
            model.hidden(ids, starts)
    assert len(calls) == 8 and {call[2]["max"] for call in calls} == {(longest, longest)}
    for _, _, options in calls:
        assert all(int(starts.diff().max()) <= longest for starts in options["cu"])


def test_documents_of_any_usual_number_have_one_shape(calls, make_model):
    model = make_model(limited(documents=ByDocument(max_tokens=0)))
    assert model.starts(batch()) is None
    model.attention_backend = "fa3"
    few, many = batch(), torch.ones(2, 60, dtype=torch.long)
    assert [len(model.starts(ids)[0]) for ids in (few, many, few)] == [64, 128, 64]
    row = torch.full((1, 98_304), 7)  # a micro-batch of the leader
    shapes = []
    for count in (1, 63, 64, 127, 128, 191, 192, 255, 256):
        row[0, torch.arange(count) * 300] = 1
        starts, _, longest, _ = model.starts(row)
        assert len(starts.unique()) == count + 1 and longest == 98_304
        shapes.append(len(starts))
    assert shapes == [256] * 8 + [512]
    assert make_model(limited(documents=ModelConfig().documents)).starts(few) is None


def test_a_number_of_documents_not_met_before_compiles_nothing(calls, monkeypatch, make_model):
    def cheap(q: Any, k: Any, v: Any, cu: Any, *rest: Any, **options: Any) -> Any:
        return q + (cu.diff() > 0).sum()

    monkeypatch.setattr(sys.modules[FLASH["fa3"]], "flash_attn_varlen_func", cheap)
    config = ModelConfig(**TINY, documents=ByDocument(max_tokens=0))
    model, counter, sums = make_model(config), CompileCounter(), set()
    model.attention_backend = "fa3"
    torch.compiler.reset()
    forward = torch.compile(model, dynamic=False, fullgraph=True, backend=counter)
    row = torch.full((1, 98_304), 7)
    with torch.no_grad():
        for count in (1, 70, 140, 250):
            row[0, torch.arange(count) * 300] = 1
            sums.add(float(forward(row, row, model.starts(row))))
    assert counter.frame_count == 1 and len(sums) == 4
    torch.compiler.reset()


def test_a_compiled_evaluation_is_one_graph_whatever_the_number_of_documents(calls, monkeypatch, make_model):
    def cheap(q: Any, k: Any, v: Any, cu: Any, *rest: Any, **options: Any) -> Any:
        return q + (cu.diff() > 0).sum()

    monkeypatch.setattr(sys.modules[FLASH["fa3"]], "flash_attn_varlen_func", cheap)
    counter, compiler = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiler(model, dynamic=dynamic, backend=counter))
    model, sums = make_model(ModelConfig(**TINY, documents=ByDocument(max_tokens=0))), set()
    model.attention_backend = "fa3"
    torch.compiler.reset()
    PlainEval(seq_len=512, batch_seqs=4, compiler=TorchCompile()).arrange(model)
    assert counter.frame_count == 1
    with torch.no_grad():
        for rows, count in ((4, 2), (4, 9), (3, 15), (1, 1)):
            ids = torch.full((rows, 512), 7)
            ids[:, torch.arange(count) * 30] = 1
            sums.add(float(model.hidden(ids).sum()))
    assert counter.frame_count == 1 and len(sums) == 4
    torch.compiler.reset()


TINY = {"vocab_size": 61, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}
WIDE = {"model_dim": 512, "num_heads": 8, "num_kv_heads": 4}
PLAIN, DOCUMENTS = ModelConfig(**WIDE), ModelConfig(**WIDE, documents=ByDocument())
WINDOWS = ModelConfig(**WIDE, window=SlidingWindow(tokens=64, full_layers=3))
NARROW = ModelConfig(model_dim=96, num_heads=16, num_kv_heads=4, documents=ByDocument())
ODD = ModelConfig(model_dim=528, num_heads=24, num_kv_heads=4, documents=ByDocument())
BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16
ALL = ("flash_attn", FLASH["fa2"], FLASH["fa3"], "triton")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a GPU of this capability is there, and these packages only."""

    def pretend(major: int, packages: tuple[str, ...]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.delitem(sys.modules, FLASH["fa2"], raising=False)
        for name in ALL:
            if name in packages:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
            elif name != FLASH["fa2"]:  # not found in `flash_attn`, if that is there
                monkeypatch.setitem(sys.modules, name, None)

    return pretend


@pytest.mark.parametrize(
    ("config", "device", "dtype", "major", "packages", "name", "reasons"),
    [
        (PLAIN, CPU, FP32, 9, ALL, "sdpa", ["fa3 needs a CUDA device"]),
        (DOCUMENTS, CPU, BF16, 9, ALL, "sdpa", ["fa3 needs a CUDA device", "fa2 needs", "flex needs"]),
        (PLAIN, CUDA, BF16, 9, ALL, "fa3", ["the fastest possible"]),
        (DOCUMENTS, CUDA, FP16, 9, ALL, "fa3", ["the fastest possible"]),
        (PLAIN, CUDA, FP32, 9, ALL, "sdpa", ["fa3 needs bfloat16"]),
        (DOCUMENTS, CUDA, FP32, 9, ALL, "sdpa", ["fa3 needs bfloat16", "flex needs bfloat16"]),
        (PLAIN, CUDA, BF16, 9, (), "sdpa", ["fa3 is missing: ", "flash_attn_interface"]),
        (PLAIN, CUDA, BF16, 8, ALL, "sdpa", ["fa3 cannot run on compute capability 8"]),
        (DOCUMENTS, CUDA, BF16, 8, ALL, "fa2", ["fa3 cannot run on compute capability 8"]),
        (WINDOWS, CUDA, BF16, 10, ALL, "fa2", ["fa3 cannot run on compute capability 10"]),
        (WINDOWS, CUDA, BF16, 9, ("triton",), "flex", ["fa3 is missing", "fa2 is missing"]),
        (DOCUMENTS, CUDA, BF16, 8, ("flash_attn_interface", "triton"), "flex", ["fa3 cannot run", "fa2 is missing"]),
        (DOCUMENTS, CUDA, BF16, 9, ("flash_attn", "triton"), "flex", ["fa3 is missing", "fa2 is missing"]),
        (DOCUMENTS, CUDA, BF16, 9, (), "sdpa", ["fa2 is missing", "flex is missing", "triton"]),
        (DOCUMENTS, CUDA, BF16, 7, ALL, "sdpa", ["fa2 cannot run", "flex cannot run on compute capability 7"]),
        (NARROW, CUDA, BF16, 9, ALL, "sdpa", ["fa3 cannot have heads of width 6", "flex cannot have heads of width 6"]),
        (ODD, CUDA, BF16, 9, ALL, "flex", ["fa3 cannot have heads of width 22", "fa2 cannot have"]),
    ],
)
def test_what_auto_chooses_and_why(machine, config, device, dtype, major, packages, name, reasons):
    machine(major, packages)
    found, why = choose_attention(config, device, dtype)
    assert found == name and why.startswith("auto: ")
    for reason in reasons:
        assert reason in why
    assert found in ("sdpa", *attention_names(config))


@pytest.mark.parametrize(
    ("config", "device", "dtype", "major", "packages", "name", "reason"),
    [
        (PLAIN, CPU, FP32, 9, ALL, "flex", "flex needs a CUDA device"),
        (PLAIN, CPU, BF16, 9, ALL, "fa2", "fa2 needs a CUDA device"),
        (PLAIN, CUDA, FP32, 9, ALL, "fa3", "fa3 needs bfloat16"),
        (PLAIN, CUDA, BF16, 9, ALL[:2], "fa3", "fa3 is missing"),
        (PLAIN, CUDA, BF16, 9, ("flash_attn_interface",), "fa2", "flash_attn"),
        (PLAIN, CUDA, BF16, 9, ("flash_attn", "triton"), "fa2", "fa2 is missing"),
        (PLAIN, CUDA, BF16, 8, ALL, "fa3", "compute capability 8"),
        (ODD, CUDA, BF16, 9, ALL, "fa2", "width 22"),
        (PLAIN, CUDA, BF16, 9, (), "flex", "triton"),
    ],
)
def test_what_is_not_possible_is_refused(machine, config, device, dtype, major, packages, name, reason):
    machine(major, packages)
    with pytest.raises(SetupError, match=reason) as raised:
        choose_attention(config, device, dtype, name)
    assert "train.attention" in str(raised.value) and raised.value.fix == "set train.attention=auto"


@pytest.mark.parametrize("name", list(BACKENDS))
def test_what_is_configured_is_taken(machine, name):
    machine(9, ALL)
    assert choose_attention(PLAIN, CUDA, BF16, name) == (name, f"{name}: as configured")


def test_a_model_settles(machine, make_model):
    machine(9, ALL)
    model = make_model(limited())
    assert model.settle(CPU, "bfloat16", "reference") is model
    assert (model.attention_backend, model.compute_dtype) == ("reference", torch.bfloat16)
    assert model.settle(CPU).attention_backend == "sdpa" and model.compute_dtype == torch.float32
    with pytest.raises(SetupError, match="needs a CUDA device"):
        model.settle(CPU, attention="fa3")


def test_every_backend_can_be_configured():
    for name in ("auto", *BACKENDS):
        assert TrainConfig(attention=name).attention == name
    with pytest.raises(ConfigError, match="fa4"):
        TrainConfig(attention="fa4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
class TestOnGpu:
    """The real ones."""

    def present(self, backend: str, config: ModelConfig = DOCUMENTS) -> None:
        """Skip with the reason where it is not possible."""
        try:
            choose_attention(config, CUDA, BF16, backend)
        except SetupError as error:
            pytest.skip(str(error))

    @pytest.mark.parametrize("length", [1, 130, 1024])
    @pytest.mark.parametrize(("window", "cut"), [(0, False), (64, False), (0, True), (64, True)])
    def test_results_and_gradients(self, backend, length, window, cut):
        self.present(backend)
        given = [x.to(CUDA).requires_grad_() for x in heads(length, width=64, dtype=BF16)]
        segments = stretches(length).to(CUDA) if cut else None
        weight = torch.randn(2, length, 4, 64, device=CUDA)
        wanted, found = (attend(*given, window, segments, name, bounds(segments)) for name in ("reference", backend))
        assert (wanted - found).abs().max() <= 2e-2
        both = [torch.autograd.grad((y * weight).sum(), given) for y in (wanted, found)]
        for one, other in zip(*both, strict=True):
            assert (one - other).abs().max() <= 2e-2 * one.abs().max()

    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    @pytest.mark.parametrize("parts", [{}, {"documents": ByDocument(), "window": SlidingWindow(tokens=64)}])
    def test_whole_models(self, make_model, backend, parts, compiled):
        config = ModelConfig(vocab_size=256, num_layers=6, model_dim=256, num_heads=4, num_kv_heads=2, **parts)
        self.present(backend, config)
        model = make_model(config).settle(CUDA, attention="reference")
        ids = torch.randint(2, 256, (4, 513), device=CUDA)
        ids[:, 100] = ids[1, 300] = 1
        expected = model(ids[:, :-1], ids[:, 1:])
        model.settle(CUDA, attention=backend)
        forward = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model
        found = forward(ids[:, :-1], ids[:, 1:], model.starts(ids[:, :-1]))
        assert (found - expected).abs() <= 1e-2
        both = [torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (expected, found)]
        for one, other in zip(*both, strict=True):
            assert one is None or (one - other).norm() <= 5e-2 * one.norm()


@pytest.mark.parametrize("wanted", ["auto", *BACKENDS])
def test_of_the_ways_to_train_only_sdpa_holds_for_scores(wanted):
    assert TrainConfig(attention=wanted).attention_later == ("sdpa" if wanted == "sdpa" else "auto")
