"""A GPU that is not there. Within `pretended_gpu()` torch says that there is one; tensors that are moved to it hold
their values on the CPU, say that they are on cuda:0, and refuse what a GPU's tensors refuse: operands and generators of
another device, numpy. It finds what was left behind on the wrong device, and no fault of arithmetic.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NAME = "NVIDIA H100 80GB HBM3"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
"""What takes operands of two devices."""
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default}
"""What takes indices of the CPU on a GPU, but not the other way round."""
DRAWS = ("randn", "rand", "randint", "randperm", "normal", "multinomial", "bernoulli")
DRAWS_IN_PLACE = ("normal_", "uniform_", "bernoulli_", "exponential_", "random_", "multinomial", "bernoulli")


class Far(Tensor):
    """A tensor on the pretended GPU; `near` has its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        made: Far = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=CPU,
            requires_grad=near.requires_grad,
        )
        made.near = near
        return made

    device = property(lambda self: CUDA)
    is_cuda = True

    @property
    def data(self) -> Tensor:
        """Its values without their history."""
        found: Tensor = Tensor.data.__get__(self)
        return found

    @data.setter
    def data(self, value: "Far") -> None:
        Tensor.data.__set__(self, value)
        self.near = value.near

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as by a GPU's tensors."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        """As Python's numbers."""
        return self.detach().near.tolist()

    def data_ptr(self) -> int:
        """Of the values."""
        return self.near.data_ptr()

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Generator:
    """A generator of one device."""

    made = torch.Generator

    def __init__(self, device: Any = "cpu") -> None:
        self.device, self.near = torch.device(device), Generator.made()

    def manual_seed(self, seed: int) -> "Generator":
        """Itself, seeded."""
        self.near.manual_seed(seed)
        return self


class Inside(TorchFunctionMode):
    """Within a function of tensors of the GPU, what torch itself makes is there as well."""

    depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) or not any(isinstance(x, Far) for x in tree_leaves((args, given))):
            return func(*args, **given)
        Inside.depth += 1
        try:
            return func(*args, **given)
        finally:
            Inside.depth -= 1


class Dispatch(TorchDispatchMode):
    """Operations without any tensor of the GPU, such as those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation's result where it belongs. RuntimeError for operands that a GPU would not take together."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    fars = [x for x in tensors if isinstance(x, Far)]
    if func in INDEXING:
        if fars and not isinstance(args[0], Far):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [args[0], *(x for x in args[2:3] if isinstance(x, Tensor))]
    if fars and func not in COPIES:
        changed = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], Far)
        if changed or any(x.dim() and not isinstance(x, Far) for x in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
    wanted = kwargs.get("device")
    there = torch.device(wanted).type == "cuda" if wanted is not None and not Inside.depth else bool(fars)
    there = there or (Inside.depth > 0 and func is not aten._local_scalar_dense.default)
    given = tree_map(values, kwargs)
    if "pin_memory" in given:
        given["pin_memory"] = False
    found = func(*tree_map(values, args), **given)
    if func is aten.copy_.default:
        return args[0]
    if not there or func is aten._local_scalar_dense.default:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map(moved, found))


def values(x: Any) -> Any:
    """What the CPU is given for an operand."""
    return x.near if isinstance(x, Far) else CPU if isinstance(x, torch.device) else x


def moved(x: Any) -> Any:
    """A tensor as one of the GPU."""
    return Far(x) if isinstance(x, Tensor) and not isinstance(x, Far) else x


plain_to = Tensor.to


def to(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """Tensor.to between the CPU and the GPU."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
    device, dtype = device or self.device, dtype or self.dtype
    if device.type == self.device.type:
        if dtype == self.dtype and not copy:
            return self
        if device.type == "cpu":
            return plain_to(self, dtype, copy=copy)
    with Dispatch():
        made: Tensor = aten._to_copy.default(self, dtype=dtype, device=device)
    return made


def on_its_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor, which makes a tensor without telling modes."""

    def call(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        return made if device is None else to(made, device)

    return call


def drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that draws, with a generator of the right device only."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        generator = kwargs.get("generator")
        if isinstance(generator, Generator):
            operand = next((x.device for x in args if isinstance(x, Tensor)), CPU)
            device = torch.device(kwargs.get("device") or operand)
            if generator.device.type != device.type:
                raise RuntimeError(f"Expected a '{device}' device type for generator but found '{generator.device}'")
            kwargs["generator"] = generator.near
        return draw(*args, **kwargs)

    return call


class Event:
    """A CUDA event, by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.time_s = 0.0

    def record(self) -> None:
        """Now."""
        self.time_s = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds from this event to the other."""
        return 1000 * (other.time_s - self.time_s)


def device_properties(device: Any = None) -> SimpleNamespace:
    """What the GPU says of itself."""
    return SimpleNamespace(name=NAME, uuid="0", total_memory=80 << 30, multi_processor_count=132)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within it, torch has a GPU."""
    cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": device_properties,
        "synchronize": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 1 << 30,
        "max_memory_reserved": lambda device=None: 1 << 30,
        "memory_reserved": lambda device=None: 1 << 30,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "Event": Event,
    }
    methods = {
        "to": to,
        "cpu": lambda self: to(self, CPU),
        "cuda": lambda self: to(self, CUDA),
        "pin_memory": lambda self: self,
    }
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for owner, changes in (
            (torch.cuda, cuda),
            (Tensor, methods | {name: drawn(getattr(Tensor, name)) for name in DRAWS_IN_PLACE}),
            (torch, {name: drawn(getattr(torch, name)) for name in DRAWS}),
            (torch, {name: on_its_device(getattr(torch, name)) for name in ("tensor", "as_tensor")}),
            (torch, {"Generator": Generator, "inference_mode": torch.no_grad}),
        ):
            for name, value in changes.items():
                stack.enter_context(mock.patch.object(owner, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(Dispatch())
        stack.enter_context(Inside())
        yield
