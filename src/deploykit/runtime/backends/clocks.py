"""What a GPU runs at, and what keeps it from running faster: timings mean little without it.

Source: NVIDIA Management Library (NVML), docs.nvidia.com/deploy/nvml-api, through its own Python package.
"""

from __future__ import annotations

from typing import Final

from deploykit import optional
from deploykit.runtime.backends import cuda
from deploykit.verdict import Clocks

#: Reasons of NVML for clocks below the highest ones; that a GPU is idle is none.
_REASONS: Final = {
    "applications clocks setting": "ApplicationsClocksSetting",
    "power cap": "SwPowerCap",
    "hardware slowdown": "HwSlowdown",
    "sync boost": "SyncBoost",
    "temperature": "SwThermalSlowdown",
    "temperature, in hardware": "HwThermalSlowdown",
    "power brake": "HwPowerBrakeSlowdown",
    "display clock setting": "DisplayClockSetting",
}


def clocks(device: str) -> Clocks | None:
    """Return the clocks of a GPU now; None where NVIDIA's management library is not here or doesn't tell.

    Raises:
        MissingComponentError: No driver, no GPU, or no such device.
    """
    index, _ = cuda.gpu_at(device)
    if optional.COMPONENTS["pynvml"].version() is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByPciBusId(cuda.bus_id(index))
        sm, memory = (
            pynvml.nvmlDeviceGetClockInfo(gpu, kind) for kind in (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM)
        )
        mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    except pynvml.NVMLError:
        return None
    limits = [words for words, name in _REASONS.items() if mask & getattr(pynvml, f"nvmlClocksEventReason{name}", 0)]
    return Clocks(sm, memory, tuple(limits))
