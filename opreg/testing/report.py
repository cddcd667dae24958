"""What ``opreg.testing.check`` tried of an op."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """What ``check`` tried of an op: how many times each check ran, and what was left out, with the reason."""

    op: str
    tried: Counter[str] = field(default_factory=Counter)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.op}: every check passed", *(f"  {n:4} x {what}" for what, n in self.tried.items())]
        lines += [f"  {n:4} x skipped {what}: {why}" for (what, why), n in self.skipped.items()]
        return "\n".join(lines)
