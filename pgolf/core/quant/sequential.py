"""Matrices quantized in the order in which they act, each for the inputs that those before it leave.

Both models run beside each other as two halves of every batch, and all batches go as far as a matrix, together, before
it is quantized, so that going through all matrices is one forward pass. A matrix W that is given x~ where the float
model gives it x comes nearest to what the float model has there, by least squares, as W + T H^-1, with H the sum of
x~^T x~ and T that of (W (x - x~))^T x~ (arXiv:2504.02692). The last one of an MLP also makes up for what the residual
stream lacks there, of which x~ tells a part.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT, Node
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.gptq import factorise
from pgolf.core.quant.qtensor import QTensor

CORRECTION_DAMPING = 0.1
"""Share of the mean diagonal added to H: tokens are few, and what only they ask for is no gain elsewhere."""
STREAM_SHARE = 0.5
"""How much of what the stream lacks an MLP makes up for."""

MOST_TOKENS = 131_072
"""Calibration tokens that are taken at most, as all their residual streams are held."""


def held_batches(batches: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
    """The first of a calibration's numbered batches."""
    found, tokens = list[Tensor](), 0
    for _, ids_BT in batches:
        if tokens < MOST_TOKENS:
            found.append(ids_BT)
            tokens += ids_BT.numel()
    return found


class PairedLookups(TorchFunctionMode):
    """Lets the second half of a batch look up in tables what `quantized` gives for theirs."""

    def __init__(self, names: Mapping[int, str], quantized: Callable[[str], Tensor]) -> None:
        super().__init__()
        self.names, self.quantized = names, quantized

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch passes here; those of `embedding` are changed."""
        out = func(*args, **(kwargs or {}))
        if func is F.embedding and (name := self.names.get(args[1].data_ptr())):
            out.chunk(2)[1].copy_(F.embedding(args[0].chunk(2)[1], self.quantized(name)))
        return out


class PairedStream(threading.local):
    """A residual connection as it is, of a batch of two halves, which knows what the second lacks."""

    def __init__(self, residual: Any) -> None:
        self.residual = residual

    def __getattr__(self, name: str) -> Any:
        return getattr(self.residual, name)

    def block(
        self, root: Any, layer: int, lanes: tuple[Tensor, ...], mix: Any, attention: Any, mlp: Any
    ) -> tuple[Tensor, ...]:
        """As the residual connection does."""

        def said_by(x: Tensor) -> Tensor:
            y = attention(x)

            def joined(value: float) -> tuple[Tensor, ...]:
                wide = tuple(lane.float() for lane in lanes)
                found: tuple[Tensor, ...] = self.residual.block(root, layer, wide, mix, lambda x: y, lambda x: value)
                return found

            self.joined = joined
            return y

        result: tuple[Tensor, ...] = self.residual.block(root, layer, lanes, mix, said_by, mlp)
        return result

    def lacking(self) -> Tensor:
        """What the MLP under way would have to say more (B,T,C) so that the block's lanes would be, by least squares,
        those of the first half of the batch; its share of that.
        """
        total, squares = torch.zeros(()), torch.zeros(())
        for without, one in zip(self.joined(0.0), self.joined(1.0)):
            exact, given = without.chunk(2)
            factor = (one - without).chunk(2)[0]
            total, squares = total + factor * (exact - given), squares + factor.square()
        return STREAM_SHARE * total / squares.clamp_min(1e-12)


class Relay:
    """Threads that run one at a time, in their order, each as far as `rest`: which is faster decides nothing."""

    def __init__(self, count: int) -> None:
        self.count, self.running, self.under_way = count, 0, 0
        self.failed: BaseException | None = None
        self.changed, self.here = threading.Condition(), threading.local()

    @property
    def place(self) -> int:
        """That of the thread that asks."""
        return int(self.here.place)

    def run(self, work: Callable[[int], Any]) -> None:
        """Do it for every place; what one of them raises, or interrupts, ends all and is raised."""
        self.failed, self.running, threads = None, 0, list[threading.Thread]()
        try:
            with self.changed:
                for place in range(self.count):
                    threads.append(threading.Thread(target=self.leg, args=(work, place), name="in turn"))
                    threads[-1].start()
                    self.under_way += 1
            self.finish()
        except BaseException as error:
            self.end(error)
            self.finish()
        for one in threads:  # an interpreter that ends while threads do aborts
            one.join()
        if self.failed is not None:
            raise self.failed

    def finish(self) -> None:
        """Wait for all threads, with an open ear for signals."""
        with self.changed:
            while self.under_way:
                self.changed.wait(0.2)

    def leg(self, work: Callable[[int], Any], place: int) -> None:
        """One thread."""
        self.here.place = place
        try:
            self.wait()
            work(place)
            self.pass_on()
        except BaseException as error:
            self.end(error)
        finally:
            with self.changed:
                self.under_way -= 1
                self.changed.notify_all()

    def end(self, error: BaseException) -> None:
        """All threads end when they rest next."""
        with self.changed:
            self.failed = self.failed or error
            self.changed.notify_all()

    def wait(self) -> None:
        """Until it is this thread's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.failed or self.running == self.place)
        if self.failed is not None:
            raise self.failed

    def pass_on(self) -> None:
        """It is the next one's turn."""
        with self.changed:
            self.running = (self.place + 1) % self.count
            self.changed.notify_all()

    def rest(self) -> None:
        """Let all others go as far."""
        self.pass_on()
        self.wait()


class InTurn:
    """What it takes to quantize parameters in turn: the float model, and batches of ids (B,T) from training.

    Memory: the residual streams of all batches and the activations of a forward pass over one, both twice.
    """

    def __init__(self, model: GPT, batches: Sequence[Tensor]) -> None:
        self.model, self.batches = model, batches
        self.relay = Relay(len(batches))
        self.sums = dict[str, Tensor]()
        """What all batches found at the matrix they are at."""
        self.inputs = list[Tensor | None]([None]) * len(batches)
        """The last inputs (2B,T,C) by batch: matrices side by side have the same."""
        self.factor: Any = None

    def add(self, name: str, value: Tensor) -> None:
        """Add what one batch found."""
        self.sums[name] = self.sums[name] + value if self.relay.place else value

    def corrected(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """A matrix (R,C) float32 as it is best for the inputs of all batches; `scale` (R,) is what its outputs are
        multiplied with before they join the stream.
        """
        if self.factor is None:
            return weight
        wanted = weight @ self.sums["drift"].cpu()
        if scale is not None:
            wanted += (scale / (scale.square() + 1e-3 * scale.square().mean()))[:, None] * self.sums["lacking"].cpu()
        (upper, order, _), moved = self.factor, torch.empty_like(wanted)
        moved[:, order] = wanted[:, order] @ upper.T @ upper
        return weight + moved

    def stop(self, x: Tensor, stream: PairedStream | None) -> bool:
        """Add what one batch finds in the inputs x (2B,T,C) of a matrix; whether it is the last batch to do so."""
        before, last = self.inputs[self.relay.place], self.relay.place + 1 == len(self.batches)
        exact, given = (half.flatten(0, -2).float() for half in x.chunk(2))
        if before is None or before.data_ptr() != x.data_ptr() or before.shape != x.shape:
            hessian = given.T @ given
            self.add("hessian", hessian)
            self.add("drift", exact.T @ given - hessian)
            self.inputs[self.relay.place] = x
            if last:
                self.factor = factorise(self.sums["hessian"].cpu(), CORRECTION_DAMPING)
        if stream is not None:
            self.add("lacking", stream.lacking().flatten(0, -2).T @ given)
        return last

    def codes(
        self,
        weights: Mapping[str, Tensor],
        known: Mapping[str, Any],
        code: Callable[[ParamSpec, Tensor, Any], QTensor | Tensor],
    ) -> dict[str, QTensor | Tensor]:
        """All that the model looks up or multiplies with before its logits, as `code` makes it of spec, weight and what
        is known of it. Tables are what they are without this.
        """
        specs = {spec.name: spec for spec in param_specs(self.model.config)}
        parameters, made = dict(self.model.named_parameters()), dict[str, QTensor | Tensor]()
        values, config = dict[str, Tensor](), self.model.config
        stream = PairedStream(config.residual)

        def make(name: str, weight: Tensor) -> None:
            one = made[name] = code(specs[name], weight, known.get(name))
            values[name] = (one.dequantize() if isinstance(one, QTensor) else one).to(parameters[name])

        def plain(name: str) -> Tensor:
            if name not in values:
                make(name, weights[name].float())
            return values[name]

        def tap(name: str, x: Tensor, y: Tensor) -> None:
            if specs[name].role == CONTROL:
                plain(name)
            elif name not in values:
                head, closing, tail = name.partition("mlp.proj.weight")
                if self.stop(x, stream if closing and not tail else None):
                    scale = weights[f"{head}mlp_scale"].float() if closing and not tail else None
                    make(name, self.corrected(weights[name].float(), scale))
                self.relay.rest()
            y.chunk(2)[1].copy_(F.linear(x.chunk(2)[1], values[name].to(x.dtype)))

        @torch.no_grad()
        def work(place: int) -> None:
            with PairedLookups({weight.data_ptr(): name for name, weight in parameters.items()}, plain):
                self.model.hidden(torch.cat((self.batches[place], self.batches[place])))

        try:
            self.model.config = copy.copy(config)
            object.__setattr__(self.model.config, "residual", stream)
            for name, node in self.model.named_modules():
                if isinstance(node, Node) and f"{name}.weight" in parameters:
                    node.tap = partial(tap, f"{name}.weight")
            self.relay.run(work)
        finally:
            self.inputs, self.model.config = list[Tensor | None]([None]) * len(self.batches), config
            for node in self.model.modules():
                if isinstance(node, Node):
                    node.tap = None
        return made
