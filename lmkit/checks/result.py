"""What every check gives back, and how a share is told."""

from dataclasses import dataclass, field

from lmkit.evaluation.intervals import Estimate

EXAMPLES = 5  # of each kind that are shown


@dataclass
class Result:
    """The result of one check. Shares lie between 0 and 1, bias scores between -1 and 1."""

    check: str  # its name, which is that of its option
    summary: str  # one sentence, as a model card has it
    counts: dict[str, int]
    shares: dict[str, Estimate]  # with 95% intervals
    blind_spots: list[str]  # what the check cannot see
    examples: list[str] = field(default_factory=list)


def percent(share: Estimate) -> str:
    """Returns a share with its interval, like `1.5% (95% interval 0.4% to 4.3%)`."""
    bounds = "undefined" if share.low is None or share.high is None else f"{share.low:.1%} to {share.high:.1%}"
    return f"{share.value:.1%} (95% interval {bounds})"
