"""When what IREE makes is destroyed: never after the device it came from, never in a forked child, never by a dying interpreter.

IREE's Python objects do not keep their device alive in every case, and destroying one after its device, or a device in a process that
lacks the device's threads, crashes or hangs. Python alone gives no order: its garbage collector clears cycles in any, tracebacks keep
the locals of frames for as long as somebody keeps the error, and daemon threads are in the middle of calls when the interpreter ends. So:

- What IREE made is in an `Owner`, one for each opened device, and nowhere else. Users' objects hold a `Handle`, which is a number. When a
  handle dies its object is released. The registry of `weakref.finalize`, which is no part of any cycle, holds the owner until the last
  handle is gone; the owner's device goes after all else.
- Only methods marked `driver_call` touch these objects. They return none of them, and their frames are emptied before an error leaves.
- A forked child leaves its parent's objects alone and refuses to use them. At exit, calls that are under way are waited for, later ones
  are refused (a daemon thread is ended by them), and then everything is destroyed in order.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from iree.runtime._binding import disable_leak_checker

from iq.errors import DeviceError, IqError

P = ParamSpec("P")
Result = TypeVar("Result")
OwnerType = TypeVar("OwnerType", bound="Owner")

_EXITING = "the interpreter is exiting"
_FORKED = "it was opened by the process that this one was forked from: open devices after the fork, or start processes with spawn"

_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
# The calls under way. An owner in here stays alive.
_calls: dict[object, tuple[Owner, threading.Thread]] = {}
_exiting = threading.Event()


class Handle:
    """Stands for an object that its owner keeps until this handle is gone."""

    __slots__ = ("__weakref__", "key", "owner")

    def __init__(self, owner: Owner, key: int) -> None:
        self.owner = owner
        self.key = key


class Owner:
    """All that IREE made for one opened device.

    make_current: makes the device the calling thread's own; CUDA needs it before anything that reaches the driver.
    pending_error: why a call failed, where the device can say more than IREE's status does; asking takes the error.
    """

    def __init__(self, make_current: Callable[[], None], pending_error: Callable[[], BaseException | None]) -> None:
        if _exiting.is_set():
            _refuse(f"no device can be opened: {_EXITING}")
        # The first attribute: Python drops them in the order they were made, so these go before a subclass's device does.
        self._objects: dict[int, Any] = {}
        self._keys = itertools.count()
        self._unusable = ""
        self._abandoned = False
        self.make_current = make_current
        self.pending_error = pending_error
        _owners.add(self)

    def check_usable(self) -> None:
        """Raises DeviceError where the device can no longer be used; in a daemon thread at exit SystemExit, to end it."""
        if self._unusable:
            _refuse(f"the device cannot be used: {self._unusable}")

    def _keep(self, made: Any) -> Handle:
        handle = Handle(self, next(self._keys))
        weakref.finalize(handle, self._release, handle.key).atexit = False
        self._objects[handle.key] = made
        return handle

    def _object(self, handle: Handle) -> Any:
        if handle.owner is not self:
            raise DeviceError("a buffer of another device: cross over through the host, with put(buffer.numpy())")
        return self._objects[handle.key]

    def _release(self, key: int) -> None:
        if self._unusable:
            return  # `_close_all` destroys it, or nobody does
        with contextlib.suppress(DeviceError):  # a lost device: IREE ignores what its driver says then
            self.make_current()
        self._objects.pop(key, None)

    def _after_failure(self) -> None:
        """Called after each driver call that raised, and may abandon the device."""

    def _close(self) -> None:
        """Destroy everything. Subclasses go on with their device."""
        with contextlib.suppress(DeviceError):
            self.make_current()
        self._objects.clear()

    def _abandon(self, why: str) -> None:
        """Never destroy anything, not even when the process ends, and refuse further use."""
        if self._abandoned:
            return
        self._unusable, self._abandoned = why, True
        disable_leak_checker()  # which would list these objects on stderr
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


def _refuse(message: str) -> NoReturn:
    # A daemon thread's traceback may hold stderr's lock while the interpreter ends, which aborts the process; SystemExit prints none.
    if _exiting.is_set() and threading.current_thread().daemon:
        raise SystemExit(message)
    raise DeviceError(message)


def driver_call(method: Callable[Concatenate[OwnerType, P], Result]) -> Callable[Concatenate[OwnerType, P], Result]:
    """Marks the methods of an owner that touch what IREE made.

    They must not return any of it, nor catch errors. Raises DeviceError where the device can no longer be used, and what the device says
    went wrong, if it says anything, in place of IREE's status.
    """

    @functools.wraps(method)
    def call(owner: OwnerType, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        token = object()
        # Before the owner is asked: `_close_all` waits for the calls that it finds here, once it has made owners refuse.
        _calls[token] = owner, threading.current_thread()
        try:
            owner.check_usable()
            owner.make_current()
            result = method(owner, *args, **kwargs)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            owner._after_failure()
            # Not in a `finally`: an interrupt just before the frames are emptied leaves the owner in here, and so alive.
            _calls.pop(token, None)
            _raise(owner.pending_error(), error)
            raise
        _calls.pop(token, None)
        _raise(owner.pending_error(), None)  # IREE ignores some errors, of hipFree for one
        return result

    return call


def _raise(failure: BaseException | None, cause: BaseException | None) -> None:
    try:
        if failure is not None:
            raise failure from cause
    finally:
        del failure, cause  # else the error and this frame, which its traceback has, would keep each other alive


@contextlib.contextmanager
def iree_errors(kind: type[IqError], what: str) -> Iterator[None]:
    """Raises IREE's errors, which come as various built-in exceptions, as `kind`; iq's own pass through."""
    try:
        yield
    except IqError:
        raise
    except Exception as error:
        raise kind(f"{what}: {error}") from error


def _leave_to_parent() -> None:
    _calls.clear()  # the threads of other calls are not in this process
    for owner in list(_owners):
        owner._abandon(_FORKED)


def _close_all() -> None:
    _exiting.set()
    for owner in list(_owners):
        owner._unusable = owner._unusable or _EXITING
    # Only daemon threads are left. One that came back from a call into an interpreter which has ended would abort the process.
    me = threading.current_thread()
    while any(thread is not me and thread.is_alive() for _, thread in list(_calls.values())):
        time.sleep(0.001)
    if threading.active_count() > 1:
        disable_leak_checker()  # which would list what these threads hold when they are cut off
    interrupted = {owner for owner, _ in _calls.values()}
    for owner in list(_owners):
        if owner in interrupted:
            owner._abandon(_EXITING)
        elif not owner._abandoned:
            owner._close()


os.register_at_fork(after_in_child=_leave_to_parent)
atexit.register(_close_all)
