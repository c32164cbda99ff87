"""The metrics that runs are compared by. Loads nothing: the command line reads it for its help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes
    ----------
    key : name in files.
    words, unit : for sentences; `scale` turns stored values into that unit.
    """

    key: str
    words: str
    unit: str
    lower_is_better: bool
    scale: float = 1.0


METRICS = {
    m.key: m
    for m in (
        Metric("kld_nats", "KLD from the original", "nats a token", True),
        Metric("nll_nats", "loss (ln perplexity)", "nats a token", True),
        Metric("top1_agreement", "agreement on the top token", "points", False, 100),
        Metric("score", "score", "points", False, 100),
    )
}
