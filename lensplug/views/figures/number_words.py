"""What the numbers that a study averages are called in figures: a name of `OverExamples.values` -> words and units."""

from __future__ import annotations

WORDS = {
    "mass": "attention mass",
    "preference": "preference (nats)",
    "ratio": "mass over chance",
    "entropy_nats": "entropy (nats)",
    "largest_weight": "largest weight",
    "target_log_probability": "log-probability of the target (nats)",
    "target_rank": "rank of the target",
    "target_on_top": "share with the target on top",
    "settled": "share settled",
    "kl_to_last_nats": "KL to the last layer (nats)",
    "right": "share answered right",
    "changed": "share of answers changed",
    "log_probability": "log-probability of the target (nats)",
    "below_random": "distance below random orders (nats)",
    "effect": "effect on the answer (nats)",
    "total": "what the medium adds to the answer (nats)",
    "interaction": "interaction of medium and text (nats)",
    "by_medium": "what the medium alone adds (nats)",
    "by_text": "what the text alone adds (nats)",
    "value": "what the region adds to the target",
    "mean_of_tokens": "what the medium adds to a token (nats)",
}
SHARES = ("target_on_top", "settled", "right", "changed")
"""Numbers whose means are shares of examples."""
CONDITIONS = {
    "with": "as it is",
    "without": "without the medium",
    "control": "control: less text",
    "none": "all neurons",
    "chosen": "without the chosen neurons",
    "random": "control: without random neurons",
}
"""Of `modality_ablation` and `neuron_ablation`."""


def words(number: str) -> str:
    """A number in words."""
    return WORDS.get(number, number.replace("_", " "))


def mean_of(number: str) -> str:
    """The beginning of a title: "Mean mass", "Share settled"."""
    said = "mass" if number == "mass" else words(number).partition(" (")[0]
    return said[0].upper() + said[1:] if said.startswith(("share", "what")) else f"Mean {said}"
