"""Sliding evaluation beside a plain loop over windows, with the share of each measure; n-gram pass and exact cache.

The plain loop computes all logits of one window at a time and looks at those it scores. Then, one after another: the
logits of the scored positions only, the last block at these only (but for keys and values), windows in batches, and
torch.compile at the batch's one shape. Rounds alternate; ratios compare the least times, which on a CPU are those of
the process itself, whatever else the machine does. Peak memory is what the process has taken beyond what it had before
the first pass.

Windows share no prefixes: the state of a token depends on all that its window holds before it, from the second block
on, and two windows hold different tokens before it.
"""

import argparse
import copy
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.report import parser, show, spread
from pgolf.config.load import resolve
from pgolf.core.dist import pick_device
from pgolf.core.evals.compiled import TorchCompile
from pgolf.core.evals.exact_cache import Caching, ExactCache
from pgolf.core.evals.ledger import evaluate
from pgolf.core.evals.sliding import SlidingEval, sliding_windows
from pgolf.core.evals.token_tilt import TokenTilt
from pgolf.core.model.gpt import GPT
from pgolf.core.shards import open_shard

MIB = 1024


def window_by_window(model: GPT, tokens: np.ndarray, method: SlidingEval, needed: bool = False) -> np.ndarray:
    """Losses (T,) by the plain loop, of all logits or only of those needed."""
    ids, device = torch.from_numpy(tokens), next(model.parameters()).device
    losses = np.zeros(len(tokens) - 1, np.float32)
    with torch.no_grad():
        for start, first, end in sliding_windows(len(losses), method.seq_len, method.stride).tolist():
            row = ids[start : start + end + 1].to(device)
            skip = first if needed else 0
            logits = model.head(model.hidden(row[None, :-1])[:, skip:])[0]
            nll = F.cross_entropy(logits, row[skip + 1 :], reduction="none")
            losses[start + first : start + end] = nll[first - skip :].cpu().numpy()
    return losses


def by_ledger(model: GPT, tokens: np.ndarray, method: SlidingEval) -> np.ndarray:
    """Losses (T,) by pgolf."""
    return evaluate(model, tokens, np.ones(len(tokens) - 1, np.uint16), method)[1].losses


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: of the process on a CPU, on the wall with a GPU, which is waited for."""
    now = time.perf_counter if device.type == "cuda" else time.process_time
    start = now()
    action()
    return now() - start


def peak_kib() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sliding_rows(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Every measure on top of those before it."""
    model = GPT(resolve(options.preset).config.model).settle(device).eval()
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, model.config.vocab_size, options.targets + 1)
    one = SlidingEval(seq_len=options.window, stride=options.stride, batch_seqs=1)
    many = SlidingEval(seq_len=options.window, stride=options.stride, batch_seqs=options.batch)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "window by window": lambda: window_by_window(model, tokens, one),
        "needed logits only": lambda: window_by_window(model, tokens, one, True),
        "needed part of the last block": lambda: by_ledger(model, tokens, one),
    }
    networks = {"in batches": model}
    if options.compile:
        networks["compiled"] = copy.deepcopy(model)
        start = time.perf_counter()
        replace(many, compiler=TorchCompile()).arrange(networks["compiled"])
        print(f"compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    ways |= {name: partial(by_ledger, network, tokens, many) for name, network in networks.items()}
    times: dict[str, list[float]] = {}
    before, peaks = peak_kib(), dict[str, int]()
    probe = tokens[: options.window * 2]
    wanted = window_by_window(model, probe, one)
    for network in networks.values():
        assert np.allclose(by_ledger(network, probe, many), wanted, atol=options.tolerance)
    for _ in range(options.rounds):
        for name, way in ways.items():
            times.setdefault(name, []).append(seconds_of(way, device))
            peaks.setdefault(name, peak_kib() - before)
    least = {name: min(spent) for name, spent in times.items()}
    rows, last = list[dict[str, Any]](), 0.0
    for name, spent in times.items():
        rows.append(
            {
                "measure": name,
                **spread(spent),
                "tokens_per_s": round(options.targets / least[name], 1),
                "over_the_loop": round(least["window by window"] / least[name], 3),
                "over_the_last": round(last / least[name], 3) if last else 1.0,
                "peak_mib": round(peaks[name] / MIB, 1),
                "bytes_per_token": "-",
            }
        )
        last = least[name]
    return rows


def held_kib() -> int:
    """The memory this process has now; the most it has had, where that is all the system says."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    except OSError:
        return peak_kib()


def drawn(count: int) -> np.ndarray:
    """A stream of about so many tokens in which phrases come again."""
    rng = np.random.default_rng(0)
    phrases = rng.integers(0, 8192, (count // 200, 20))
    return np.where(
        np.repeat(rng.random(count // 20) < 0.3, 20),
        phrases[rng.integers(0, len(phrases), count // 20)].ravel(),
        rng.integers(0, 8192, count // 20 * 20),
    )


def stream_of(options: argparse.Namespace, most: int) -> np.ndarray:
    """The first tokens of the shards, or of a drawn stream."""
    shards = [np.asarray(open_shard(path)) for path in options.shards]
    return (np.concatenate(shards) if shards else drawn(most))[:most].astype(np.int64)


def pass_row(name: str, times: list[float], count: int, peak: int) -> dict[str, Any]:
    """What a pass over a stream of so many tokens takes; `peak` in KiB."""
    return {
        "measure": name,
        **spread(times),
        "tokens_per_s": round(count / min(times), 1),
        "over_the_loop": "-",
        "over_the_last": "-",
        "peak_mib": round(peak / MIB, 1),
        "bytes_per_token": round(peak * 1024 / count, 1),
    }


def hint_row(options: argparse.Namespace) -> dict[str, Any]:
    """The n-gram pass."""
    tokens, before = stream_of(options, options.ngram_tokens), held_kib()
    times = [seconds_of(lambda: TokenTilt().hints(tokens), torch.device("cpu")) for _ in range(options.rounds)]
    return pass_row("n-gram pass", times, len(tokens), peak_kib() - before)


def cache_row(options: argparse.Namespace) -> dict[str, Any]:
    """The exact cache, asked for windows of `stride` targets, once."""
    tokens = stream_of(options, options.cache_tokens)
    logp = torch.zeros(options.stride, int(tokens.max()) + 1).log_softmax(-1)
    ledger: Any = SimpleNamespace(model=SimpleNamespace(parts=()), context=lambda stop: tokens[:stop])
    cache = Caching(ledger, ExactCache())

    def ask() -> None:
        for position in range(0, len(tokens) - options.stride, options.stride):
            cache.apply(position, logp)

    before = held_kib()
    return pass_row("exact cache", [seconds_of(ask, torch.device("cpu"))], len(tokens), peak_kib() - before)


def apart(row: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """A row from a process of its own, whose peak memory is that row's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(row, (options,))


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="demo", help="the model's preset")
    arguments.add_argument("--window", type=int, default=1024, help="tokens per window")
    arguments.add_argument("--stride", type=int, default=64, help="scored tokens per window")
    arguments.add_argument("--batch", type=int, default=4, help="windows per forward pass")
    arguments.add_argument("--targets", type=int, default=8192, help="tokens to score")
    arguments.add_argument("--ngram-tokens", type=int, default=4_000_000, help="tokens of the n-gram pass")
    arguments.add_argument("--cache-tokens", type=int, default=131_072, help="tokens that the exact cache counts")
    arguments.add_argument(
        "--shards", type=Path, nargs="*", default=[], help="token shards for these two, instead of a drawn stream"
    )
    arguments.add_argument("--rounds", type=int, default=3, help="timings of each measure")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments.add_argument("--compile", action="store_true", help="measure torch.compile too")
    arguments.add_argument("--tolerance", type=float, default=1e-4, help="largest difference from the plain loop, nats")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device, 0)
    show("eval_speed", options, [*sliding_rows(options, device), apart(hint_row, options), apart(cache_row, options)])


if __name__ == "__main__":
    main()
