"""What a plan needs to know about the device: the latency table, the dense model's latency, the fast multiple."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from vitrim.costs.budget import Budget
from vitrim.costs.counting import PartCosts
from vitrim.costs.latency import LatencySettings, measure_latency
from vitrim.costs.latency_table import LatencyTable, fast_multiple, latency_table
from vitrim.runs.progress import log
from vitrim.structure import ViTStructure

MAX_ROUNDS, MIN_ROUNDS = 101, 15
SECONDS_FOR_A_CHECK = 12.0


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """What a budget needs to know of the device that the latency settings name; empty where it asks for nothing.

    Attributes:
        multiple_of: neurons are kept in multiples of this.
        dense_ms: a forward pass of the dense model. table: which share of it narrower and fewer blocks save.
    """

    multiple_of: int
    dense_ms: float = 0.0
    table: LatencyTable | None = None

    @classmethod
    def measure(cls, dense: nn.Module, budget: Budget, settings: LatencySettings) -> "DeviceTimes":
        """Time the dense model and narrower ones, as far as `budget` needs it.

        Raises:
            SettingError: what is to run the models is not here. ExportFailed: ONNX cannot take them.
        """
        dense_ms, table = 0.0, None
        if budget.latency_ms:
            table = latency_table(dense, settings)
            first_ms = measure_latency(dense, replace(settings, rounds=3)).median_ms
            dense_ms = measure_latency(dense, settings_for_a_check(settings, first_ms)).median_ms
            log(f"latency: the dense model takes {dense_ms:.4g} ms {place_of(settings)}")
        multiple = budget.multiple_of
        if multiple == "auto":
            latency_share = min(1.0, budget.latency_ms / dense_ms) if budget.latency_ms else 1.0
            multiple = fast_multiple(dense, settings, round(min(budget.params, budget.macs, latency_share), 1))
            log(f"latency: neurons in multiples of {multiple} are fast {place_of(settings)}")
        return cls(multiple_of=multiple, dense_ms=dense_ms, table=table)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "DeviceTimes":
        table = LatencyTable.from_dict(data["table"]) if data["table"] else None
        return cls(multiple_of=data["multiple_of"], dense_ms=data["dense_ms"], table=table)

    def times(self, dense: ViTStructure) -> PartCosts | None:
        return self.table.times(dense, self.dense_ms) if self.table else None


def settings_for_a_check(settings: LatencySettings, dense_ms: float) -> LatencySettings:
    """As many rounds of two models as there is time for."""
    rounds = int(1000 * SECONDS_FOR_A_CHECK / (2 * dense_ms))
    return replace(settings, rounds=min(MAX_ROUNDS, max(MIN_ROUNDS, rounds)))


def place_of(settings: LatencySettings) -> str:
    runtime = "where it is" if settings.on == "model" else f"on {settings.on}"
    return f"{runtime}, batch {settings.batch_size}"
