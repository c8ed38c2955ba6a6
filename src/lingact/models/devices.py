"""The devices of this machine: how many there are, which one a run uses, and whether they suffice."""

import ctypes
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lingact.config.jobs import AnalyzeConfig, EvalConfig, JobConfig, TrainConfig
from lingact.errors import UserError

if TYPE_CHECKING:
    import torch


def check_devices(config: JobConfig) -> None:
    """Refuse a CUDA device that does not exist, more processes than devices, and half precision without CUDA.

    Raises:
        UserError: with the devices that there are.
    """
    key, asked, precision = "devices", config.devices if isinstance(config, (AnalyzeConfig, EvalConfig)) else 1, ""
    if isinstance(config, TrainConfig):
        key, asked, precision = "trainer.devices", config.trainer.devices, config.trainer.precision
    on_cuda = config.device.startswith("cuda")
    if not on_cuda and precision != "16-mixed" and (asked == 1 or config.device == "cpu"):
        return
    count = 0 if config.device == "cpu" else cuda_devices()
    _, _, number = config.device.partition(":")
    if on_cuda and int(number or 0) >= count:
        raise UserError(device_missing(config.device, count))
    if precision == "16-mixed" and count == 0:
        raise UserError("trainer.precision: 16-mixed needs a CUDA device; there is none, or device=cpu was given. Use bf16-mixed or 32-true")
    # device=auto is the CPU where there is no CUDA device; any number of processes can share that.
    if config.device in ("cuda", "auto") and 0 < count < asked:
        raise UserError(f"{key} is {asked}, and {count} CUDA devices are visible; give at most {count}, or device=cpu")


def device_missing(device: str, count: int) -> str:
    """The message on a device that does not exist."""
    return f"device: '{device}' is not there; {count} CUDA devices are visible. Use device=auto or device=cpu"


def cuda_devices() -> int:
    """How many CUDA devices torch sees. It is asked of the driver where torch is not imported yet, which would take seconds."""
    count = None if "torch" in sys.modules else _devices_of_driver()
    if count is None:
        import torch

        count = torch.cuda.device_count()
    return count


def _devices_of_driver() -> int | None:
    """None where only torch knows it: under ROCm, or if its version file does not say what it was built for."""
    spec = find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.is_file():
        return None
    built = dict(re.findall(r"^(cuda|hip): [^=]*= (.*)$", version.read_text(encoding="utf-8"), re.MULTILINE))
    if built.get("hip", "None") != "None" or "cuda" not in built:
        return None
    if built["cuda"] == "None":
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def resolve_device(device: str) -> "torch.device":
    """The device that a name means; `auto` is CUDA where there is a device, else the CPU.

    Raises:
        UserError: the device is unknown or does not exist.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Of several processes on one machine each has a device of its own.
    device = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"device: '{device}' is unknown; use auto, cpu, cuda or cuda:N") from None
    if resolved.type == "cuda" and (not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count()):
        raise UserError(device_missing(device, torch.cuda.device_count()))
    return resolved
