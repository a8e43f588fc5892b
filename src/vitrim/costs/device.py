"""Everything that a plan needs to know about the device: latency table, dense latency, fast multiple of neurons.

How models are timed is in `latency`. What the parts of a model cost is in `latency_table`.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from vitrim.costs.budget import Budget
from vitrim.costs.counting import PartCosts
from vitrim.costs.latency import LatencySettings, measure_latency
from vitrim.costs.latency_table import LatencyTable, fast_multiple, latency_table
from vitrim.runs.progress import log
from vitrim.structure import ViTStructure

BF16_MULTIPLE = 8  # columns; NVIDIA's tensor cores read bf16 in units of 16 bytes (NVIDIA, Matrix Multiplication Guide)
MAX_COMPARISON_ROUNDS, MIN_COMPARISON_ROUNDS = 101, 15
SECONDS_PER_COMPARISON = 12.0  # of a smaller model with the dense model


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """What was measured on the device for a budget.

    Attributes:
        multiple_of: the number of neurons in each MLP is a multiple of this.
        dense_ms: milliseconds of a forward pass of the dense model; 0 without a budget in milliseconds.
        table: what smaller models save; None without a budget in milliseconds.
    """

    multiple_of: int
    dense_ms: float = 0.0
    table: LatencyTable | None = None

    @classmethod
    def measure(
        cls, dense: nn.Module, budget: Budget, settings: LatencySettings, *, in_bf16: bool = False
    ) -> "DeviceTimes":
        """Measure what the budget needs, and nothing else.

        A budget in milliseconds needs the latency table and the dense latency. `multiple_of = "measured"` needs the
        fast multiple.

        Args:
            dense: the dense model. It is not changed.
            budget: of the compressed model.
            settings: runtime and batch size.
            in_bf16: whether the student is trained in bf16. Then `multiple_of = "auto"` is 8.

        Raises:
            SettingError: the runtime is missing. ExportFailed: a model cannot be exported to ONNX.
        """
        dense_ms, table = 0.0, None
        if budget.latency_ms:
            table = latency_table(dense, settings)
            first_ms = measure_latency(dense, replace(settings, rounds=3)).median_ms
            dense_ms = measure_latency(dense, settings_for_comparison(settings, first_ms)).median_ms
            log(f"latency: the dense model needs {dense_ms:.4g} ms {_runtime_in_words(settings)}")
        multiple = budget.multiple_of
        if multiple == "auto":
            multiple = BF16_MULTIPLE if in_bf16 else 1
            if in_bf16:
                log(f"each block keeps a multiple of {multiple} neurons, because training in bf16 is slow otherwise")
        elif multiple == "measured":
            latency_fraction = min(1.0, budget.latency_ms / dense_ms) if budget.latency_ms else 1.0
            multiple = fast_multiple(dense, settings, round(min(budget.params, budget.macs, latency_fraction), 1))
            log(f"latency: multiples of {multiple} neurons are fast {_runtime_in_words(settings)}")
        return cls(multiple_of=multiple, dense_ms=dense_ms, table=table)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `device.json`; nothing stands for what was not measured."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: Any) -> "DeviceTimes":
        """Read what `to_dict` wrote."""
        table = LatencyTable.from_dict(data["table"]) if data.get("table") else None
        return cls(multiple_of=data["multiple_of"], dense_ms=data.get("dense_ms", 0.0), table=table)

    def times(self, dense: ViTStructure) -> PartCosts | None:
        """Milliseconds of each part of the dense model; None without a budget in milliseconds."""
        return self.table.times(dense, self.dense_ms) if self.table else None


def settings_for_comparison(settings: LatencySettings, dense_ms: float) -> LatencySettings:
    """The same settings with as many rounds of two models as `SECONDS_PER_COMPARISON` allow.

    Args:
        settings: runtime and batch size.
        dense_ms: milliseconds of a forward pass of the dense model; the smaller model needs at most as long.
    """
    rounds = int(1000 * SECONDS_PER_COMPARISON / (2 * dense_ms))
    return replace(settings, rounds=min(MAX_COMPARISON_ROUNDS, max(MIN_COMPARISON_ROUNDS, rounds)))


def _runtime_in_words(settings: LatencySettings) -> str:
    runtime = "in PyTorch, on the device of the model" if settings.on == "model" else f"on {settings.on}"
    return f"({runtime}, batch size {settings.batch_size})"
