"""(0) The same run again gives the same scores."""

import numpy as np

from pgolf.audit.bench import REPEATS, noise_between
from pgolf.audit.stream import Stream
from pgolf.audit.subject import Subject
from pgolf.audit.trace import Trial
from pgolf.audit.verdict import HOLDS, STATISTICAL, Finding, untested


def check_replay(subject: Subject, stream: Stream) -> tuple[Finding, Trial, float]:
    """The verdict, a run to compare with, and the noise between equal runs in nats."""
    trials = [subject.run(stream.tokens)]
    if trials[0].error:
        return untested("0", trials[0].error), trials[0], 0.0
    trials.append(subject.run(stream.tokens))
    same = np.array_equal(trials[0].nll, trials[1].nll, equal_nan=True)
    if same and (trials[0].commits == trials[1].commits).all():
        finding = Finding(check="0", verdict=HOLDS, what="two runs, equal to the last bit", n=1)
        return finding, trials[0], 0.0
    trials += [subject.run(stream.tokens) for _ in range(REPEATS - 2)]
    noise = noise_between(trials)
    what = f"equal runs differ by up to {noise:.3g} nats; below, losses count as equal within ten times that"
    return (
        Finding(check="0", verdict=STATISTICAL, what=what, n=REPEATS, figures={"noise_nats": noise}),
        trials[0],
        noise,
    )
