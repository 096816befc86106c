"""Report of the conversion of a checkpoint."""

from dataclasses import dataclass, field


@dataclass
class ConversionReport:
    """
    How each key of a checkpoint, and each flag given with it, was converted.

    Attributes:
        mapped: For each of the authors' keys this package's keys, several if it stacks queries, keys and values.
        ignored: Keys that this package does not use, with the reason.
        missing: This package's keys that the checkpoint lacks, with the origin of their values.
        without_effect: The authors' flags that have no effect, with the reason.
    """

    mapped: dict[str, list[str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return a few lines with the number of keys and flags of each kind and for each reason."""
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
