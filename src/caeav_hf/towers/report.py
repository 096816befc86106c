"""What became of each key of a checkpoint, and of the flags that came with it."""

from dataclasses import dataclass, field


@dataclass
class ConversionReport:
    """
    Attributes:
        mapped: The authors' keys to ours; several where they stack queries, keys and values.
        ignored: Keys that have no place here, to the reason.
        missing: Our keys that the checkpoint does not hold, to where their values come from.
        without_effect: The authors' flags that were given and change nothing, to the reason.
    """

    mapped: dict[str, list[str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """A few lines: how many keys and flags of each kind, reasons with their numbers."""
        lines = [f"{len(self.mapped)} keys mapped to {sum(map(len, self.mapped.values()))} tensors"]
        for title, entries in (
            ("ignored", self.ignored),
            ("not in the checkpoint", self.missing),
            ("options without effect", self.without_effect),
        ):
            reasons: dict[str, int] = {}
            for reason in entries.values():
                reasons[reason] = reasons.get(reason, 0) + 1
            lines += [f"{count} {title}: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)
