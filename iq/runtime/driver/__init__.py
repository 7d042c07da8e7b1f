"""The GPU's own driver, HIP or CUDA, through ctypes: devices, memory, streams, events, modules and graphs."""

from iq.runtime.driver.api import CUDA, HIP, Api
from iq.runtime.driver.driver import Context, Driver, DriverError
from iq.runtime.driver.library import load

__all__ = ["CUDA", "HIP", "Api", "Context", "Driver", "DriverError", "load"]
