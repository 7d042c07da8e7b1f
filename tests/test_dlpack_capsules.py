"""DLPack capsules: what crosses to other libraries and back, what is refused, and who keeps whom alive.

The other library is numpy, torch where it is installed, or a producer that this file makes by hand.
"""

import ctypes
import gc
import math
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iq.errors import DtypeError, LayoutError, ShapeError
from iq.runtime import dlpack
from iq.runtime.dtypes import DTYPES

USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}

# numpy takes no bf16 through DLPack.
NUMPYS = sorted(set(DTYPES) - {"bf16"})

CAPSULE_NEW = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))
GET_NAME = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
GET_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)


class Memory:
    """What an exporter owns: an array that weak references can point to."""

    def __init__(self, array):
        self.array = array


class Exporter:
    """An array as other libraries take it, through capsules of iq's."""

    def __init__(self, array, dtype, owner=None, *, readonly=False, device=(dlpack.CPU, 0)):
        self.array, self.dtype, self.readonly, self.device = array, dtype, readonly, device
        self.owner = owner if owner is not None else array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        versioned = dlpack.negotiate(max_version)
        address = self.array.ctypes.data if self.array.size else 0
        return dlpack.export(address, self.array.shape, self.dtype, self.device, self.owner, readonly=self.readonly, versioned=versioned)

    def __dlpack_device__(self):
        return self.device


def numbers(shape, name="f32"):
    return np.arange(math.prod(shape)).reshape(shape).astype(DTYPES[name].numpy)


def managed(capsule):
    """The structure that a capsule holds."""
    name = GET_NAME(capsule)
    return (dlpack.ManagedVersioned if b"versioned" in name else dlpack.Managed).from_address(GET_POINTER(capsule, name))


def lend(*, versioned=True, owner=None, shape=(2, 3)):
    """A capsule of f32 made by export."""
    array = numbers(shape)
    owner = owner or Memory(array)
    owner.array = array
    return dlpack.export(array.ctypes.data, shape, "f32", (dlpack.CPU, 0), owner, readonly=False, versioned=versioned)


class Producer:
    """A capsule as no library here makes it: an own deleter, which counts."""

    def __init__(self, array, *, versioned, deleter=True, **fields):
        self.deleted, self.threads = 0, []
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.managed = dlpack.ManagedVersioned(major=1) if versioned else dlpack.Managed()
        self.managed.tensor = dlpack.Tensor(
            data=array.ctypes.data, device_type=1, ndim=array.ndim, code=2, bits=32, lanes=1, shape=ctypes.addressof(self.shape)
        )
        self._deleter = DELETER(self._delete)
        if deleter:
            self.managed.deleter = ctypes.cast(self._deleter, ctypes.c_void_p)
        for name, value in fields.items():
            setattr(self.managed.tensor, name, value)
        self.array = array
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        self.capsule = CAPSULE_NEW(ctypes.addressof(self.managed), self.name, None)

    def _delete(self, pointer):
        assert pointer == ctypes.addressof(self.managed)
        self.deleted += 1
        self.threads.append(threading.get_ident())


def view(imported):
    """The bytes of an imported array on the host, as numpy sees them."""
    if not imported.nbytes:
        return np.empty(imported.shape, DTYPES[imported.dtype].numpy)
    raw = (ctypes.c_uint8 * imported.nbytes).from_address(imported.address)
    return np.frombuffer(raw, DTYPES[imported.dtype].numpy).reshape(imported.shape)


versions = pytest.mark.parametrize("versioned", [True, False], ids=["versioned", "unversioned"])
producers = pytest.mark.parametrize("name", sorted(DTYPES))


# ---- Out


@pytest.mark.parametrize("name", NUMPYS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 1, 4), (0,), (4, 0, 2)])
def test_numpy_takes_what_is_exported(name, shape):
    array = numbers(shape, name)
    taken = np.from_dlpack(Exporter(array, name))
    assert (taken.shape, taken.dtype) == (shape, array.dtype)
    assert taken.tobytes() == array.tobytes()
    if taken.size:
        assert taken.ctypes.data == array.ctypes.data
        assert taken.flags.writeable == np.from_dlpack(array).flags.writeable  # numpy 2.1 makes all read-only


def test_numpy_takes_read_only_arrays_as_such():
    taken = np.from_dlpack(Exporter(numbers((3,)), "f32", readonly=True))
    assert not taken.flags.writeable


@producers
@versions
@given(shape=shapes)
def test_the_structure(name, versioned, shape):
    array = numbers(shape, name)
    capsule = dlpack.export(array.ctypes.data, shape, name, (dlpack.ROCM, 3), array, readonly=versioned, versioned=versioned)
    assert GET_NAME(capsule) == (b"dltensor_versioned" if versioned else b"dltensor")
    structure = managed(capsule)
    tensor = structure.tensor
    assert (tensor.data, tensor.byte_offset, tensor.device_type, tensor.device_id) == (array.ctypes.data, 0, 10, 3)
    kind = {"f": 2, "i": 0, "u": 1, "b": 4}[name[0]]
    assert (tensor.code, tensor.bits, tensor.lanes) == (kind, 8 * array.itemsize, 1)
    ints = ctypes.c_int64 * len(shape)
    assert tensor.ndim == len(shape)
    if shape:
        assert tuple(ints.from_address(tensor.shape)) == shape
    if shape and array.size:
        dense = tuple(stride // array.itemsize for stride in np.empty(shape, array.dtype).strides)
        assert tuple(ints.from_address(tensor.strides)) == dense
    if versioned:
        assert (structure.major, structure.minor, structure.flags) == (1, 0, 1)


@versions
def test_what_is_exported_can_be_loaded(versioned):
    for name in DTYPES:
        array = numbers((2, 3), name)
        capsule = dlpack.export(array.ctypes.data, (2, 3), name, (dlpack.CUDA, 1), array, readonly=False, versioned=versioned)
        got = dlpack.load(capsule)
        assert (got.address, got.shape, got.dtype, got.device) == (array.ctypes.data, (2, 3), name, (2, 1))
        assert (got.readonly, got.nbytes) == (False, array.nbytes)


@versions
def test_memory_that_the_host_cannot_read_is_exported(versioned):
    got = dlpack.load(dlpack.export(3, (2**40,), "f32", (dlpack.ROCM, 0), None, readonly=False, versioned=versioned))
    assert (got.address, got.nbytes) == (3, 2**42)


@versions
def test_an_empty_array_may_lie_nowhere(versioned):
    got = dlpack.load(dlpack.export(0, (3, 0), "f16", (dlpack.ROCM, 0), None, readonly=versioned, versioned=versioned))
    assert (got.address, got.shape, got.nbytes, got.readonly) == (0, (3, 0), 0, versioned)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (BufferError, "read-only array takes a versioned", {"readonly": True, "versioned": False}),
        (DtypeError, "expected one of f16", {"dtype": "complex64"}),
        (ShapeError, "non-negative", {"shape": (2, -1)}),
        (ShapeError, "33 axes", {"shape": (1,) * 33}),
        (ShapeError, "bytes", {"shape": (2**31, 2**31)}),
        (LayoutError, "NULL", {"address": 0}),
    ],
)
def test_what_is_not_exported(error, message, change):
    owner = Memory(None)
    gone = weakref.ref(owner)
    arguments = {"address": 64, "shape": (2, 3), "dtype": "f32", "device": (1, 0), "readonly": False, "versioned": True}
    with pytest.raises(error, match=message):
        dlpack.export(**(arguments | change), owner=owner)
    del owner
    gc.collect()
    assert gone() is None


# ---- In


@pytest.mark.parametrize("name", NUMPYS)
@versions
@given(shape=shapes)
def test_what_numpy_exports_is_taken(name, versioned, shape):
    array = numbers(shape, name)
    capsule = array.__dlpack__(max_version=(1, 0)) if versioned else array.__dlpack__()
    got = dlpack.load(capsule)
    assert GET_NAME(capsule) == (b"used_dltensor_versioned" if versioned else b"used_dltensor")
    assert (got.shape, got.dtype, got.device, got.readonly) == (shape, name, (1, 0), False)
    assert (got.nbytes, got.address) == (array.nbytes, array.ctypes.data)
    assert view(got).tobytes() == array.tobytes()


def test_read_only_arrays_of_numpy():
    array = numbers((4,))
    array.flags.writeable = False
    assert dlpack.load(array.__dlpack__(max_version=(1, 0))).readonly


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1), (0, 3), (2, 1, 3)])
def test_strides_that_do_not_count(shape):
    """Those of axes of length 1, and of empty arrays: nothing is ever reached by them."""
    array = numbers(shape)
    strides = [977 if n == 1 or not array.size else s // 4 for n, s in zip(shape, array.strides, strict=True)]
    pointer = (ctypes.c_int64 * len(shape))(*strides)
    producer = Producer(array, versioned=True, strides=ctypes.addressof(pointer))
    assert dlpack.load(producer.capsule).shape == shape


@versions
def test_no_strides_are_those_of_a_c_contiguous_array(versioned):
    producer = Producer(numbers((2, 3)), versioned=versioned, strides=None)
    assert dlpack.load(producer.capsule).shape == (2, 3)


@versions
def test_the_byte_offset_counts(versioned):
    array = numbers((6,))
    producer = Producer(array, versioned=versioned, byte_offset=8)
    assert dlpack.load(producer.capsule).address == array.ctypes.data + 8


NEGATIVE = (ctypes.c_int64 * 2)(2, -3)
HUGE = (ctypes.c_int64 * 2)(2**40, 2**40)


@versions
@pytest.mark.parametrize(
    ("error", "message", "fields"),
    [
        (DtypeError, r"complex, 64 bits; expected one of f16, f32", {"code": 5, "bits": 64}),
        (DtypeError, r"bool, 8 bits; expected", {"code": 6, "bits": 8}),
        (DtypeError, r"float, 32 bits, 4 lanes; expected", {"lanes": 4}),
        (DtypeError, r"float, 32 bits, 0 lanes; expected", {"lanes": 0}),
        (DtypeError, r"int, 16 bits; expected", {"code": 0, "bits": 16}),
        (DtypeError, r"bfloat, 32 bits; expected", {"code": 4}),
        (DtypeError, r"type code 10, 8 bits; expected", {"code": 10, "bits": 8}),
        (ShapeError, r"\(2, -3\) is no shape", {"shape": ctypes.addressof(NEGATIVE)}),
        (ShapeError, r"memory has more than", {"shape": ctypes.addressof(HUGE)}),
        (ShapeError, r"33 axes; expected 0 to 32", {"ndim": 33}),
        (ShapeError, r"-1 axes", {"ndim": -1}),
        (ShapeError, r"has no shape", {"shape": None}),
        (LayoutError, r"24 bytes has the data pointer NULL", {"data": None}),
        (LayoutError, r"24 bytes has the data pointer NULL", {"data": None, "byte_offset": 64}),
    ],
)
def test_what_is_refused_is_not_taken(versioned, error, message, fields):
    producer = Producer(numbers((2, 3)), versioned=versioned, **fields)
    with pytest.raises(error, match=message):
        dlpack.load(producer.capsule)
    assert GET_NAME(producer.capsule) == producer.name
    assert producer.deleted == 0


@pytest.mark.parametrize(
    "array", [numbers((4, 6)).T, numbers((4, 6))[:, ::2], numbers((4, 6))[::-1], np.broadcast_to(numbers((3,)), (2, 3))]
)
def test_only_c_contiguous_arrays_are_taken(array):
    with pytest.raises(LayoutError, match=r"shape \(\d, \d\) and strides .* is not C-contiguous; copy it first"):
        dlpack.load(array.__dlpack__(max_version=(1, 0)))


@pytest.mark.parametrize("array", [np.ones(3, np.complex64), np.ones(3, bool), np.ones(3, np.int16), np.ones(3, np.uint64)], ids=str)
def test_types_of_numpy_that_no_buffer_holds(array):
    with pytest.raises(DtypeError, match="no buffer holds elements"):
        dlpack.load(array.__dlpack__())


def test_a_later_major_version_is_refused():
    producer = Producer(numbers((2, 3)), versioned=True)
    producer.managed.major, producer.managed.minor = 2, 5
    with pytest.raises(LayoutError, match=r"DLPack 2\.5; expected 1: pass max_version=\(1, 0\)"):
        dlpack.load(producer.capsule)
    producer.managed.major = 1
    assert dlpack.load(producer.capsule).dtype == "f32"  # later minor versions are laid out alike


@versions
def test_a_capsule_is_taken_once(versioned):
    capsule = lend(versioned=versioned)
    dlpack.load(capsule)
    with pytest.raises(DtypeError, match="taken already"):
        dlpack.load(capsule)


@pytest.mark.parametrize("name", [b"tensor", b"dltensor2", b"", None])
def test_other_capsules_are_refused(name):
    with pytest.raises(DtypeError, match="expected a DLPack capsule"):
        dlpack.load(CAPSULE_NEW(64, name, None))


@pytest.mark.parametrize("what", [None, 3, "dltensor", numbers((3,))], ids=lambda what: type(what).__name__)
def test_other_things_are_refused(what):
    with pytest.raises(DtypeError, match="expected a DLPack capsule"):
        dlpack.load(what)


# ---- torch


@producers
def test_torch_takes_what_is_exported_and_back(name):
    torch = pytest.importorskip("torch")
    if name == "u32" and not hasattr(torch, "uint32"):
        pytest.skip("this torch has no uint32")
    array = numbers((2, 3), name)
    memory = Memory(array)
    gone = weakref.ref(memory)
    taken = torch.from_dlpack(Exporter(array, name, memory))
    assert (tuple(taken.shape), taken.data_ptr()) == ((2, 3), array.ctypes.data)
    del memory
    got = dlpack.load(taken.__dlpack__())
    assert (got.address, got.shape, got.dtype, got.device) == (array.ctypes.data, (2, 3), name, (1, 0))
    del taken
    gc.collect()
    assert gone() is not None
    del got
    gc.collect()
    assert gone() is None


def test_tensors_of_torch_that_are_not_contiguous():
    torch = pytest.importorskip("torch")
    with pytest.raises(LayoutError, match="contiguous"):
        dlpack.load(torch.ones(3, 4).T.__dlpack__())


def test_a_tensor_of_torch_that_dies_with_an_error_leaves_the_error():
    torch = pytest.importorskip("torch")
    memory = Memory(numbers((2, 3)))
    gone = weakref.ref(memory)
    with pytest.raises(ZeroDivisionError):
        print(torch.from_dlpack(Exporter(memory.array, "f32", memory)), 1 // 0)
    del memory
    gc.collect()
    assert gone() is None


def test_tensors_of_torch_that_are_held_when_the_interpreter_ends():
    pytest.importorskip("torch")
    _, errors, status = run("""
import torch
tensors = [torch.from_dlpack(Exporter())]
tensors.append(dlpack.load(tensors[0].__dlpack__()))
sys.modules["kept"] = [torch.from_dlpack(Exporter()), dlpack.load(torch.ones(3).__dlpack__())]
""")
    assert (errors, status) == ("", 0)


# ---- Who keeps whom


@versions
def test_an_owner_lives_as_long_as_its_consumer(versioned):
    owner = Memory(None)
    gone = weakref.ref(owner)
    got = dlpack.load(lend(owner=owner, versioned=versioned))
    del owner
    gc.collect()
    assert gone() is not None
    del got
    assert gone() is None


def test_an_owner_lives_as_long_as_numpys_array():
    memory = Memory(numbers((8,)))
    gone = weakref.ref(memory)
    part = np.from_dlpack(Exporter(memory.array, "f32", memory))[2:4]
    del memory
    gc.collect()
    assert part.tolist() == [2, 3]
    del part
    assert gone() is None


@versions
def test_a_capsule_that_nobody_takes_frees_its_owner(versioned):
    owner = Memory(None)
    gone = weakref.ref(owner)
    capsule = lend(owner=owner, versioned=versioned)
    del owner
    assert gone() is not None
    del capsule
    assert gone() is None


@versions
def test_a_capsule_that_dies_with_an_error_leaves_the_error(versioned):
    """The interpreter drops what a call had got so far while the error is set."""
    owner = Memory(None)
    gone = weakref.ref(owner)
    with pytest.raises(ZeroDivisionError):
        print(lend(owner=owner, versioned=versioned), 1 // 0)
    del owner
    assert gone() is None


def test_a_consumer_that_refuses_frees_the_owner():
    memory = Memory(numbers((8,), "bf16"))
    gone = weakref.ref(memory)
    with pytest.raises((BufferError, RuntimeError)):  # numpy drops the capsule with its error set
        np.from_dlpack(Exporter(memory.array, "bf16", memory, device=(dlpack.ROCM, 0)))
    del memory
    gc.collect()
    assert gone() is None


@versions
def test_an_array_that_dies_with_an_error_leaves_the_error(versioned):
    owner = Memory(None)
    gone = weakref.ref(owner)
    with pytest.raises(ZeroDivisionError):
        print(dlpack.load(lend(owner=owner, versioned=versioned)), 1 // 0)
    del owner
    assert gone() is None


@versions
def test_a_deleter_may_be_called_by_a_thread_without_the_gil(versioned):
    owner = Memory(None)
    gone = weakref.ref(owner)
    capsule = lend(owner=owner, versioned=versioned)
    name, structure = GET_NAME(capsule), managed(capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), USED[name])
    del owner, capsule
    assert gone() is not None
    thread = threading.Thread(target=DELETER(structure.deleter), args=(ctypes.addressof(structure),))
    thread.start()
    thread.join()
    assert gone() is None


@versions
def test_a_producers_deleter_is_called_once(versioned):
    producer = Producer(numbers((2, 3)), versioned=versioned)
    got = dlpack.load(producer.capsule)
    keep = got.keep
    del got
    gc.collect()
    assert producer.deleted == 0
    del keep
    assert producer.deleted == 1
    del producer.capsule
    gc.collect()
    assert producer.deleted == 1


@versions
def test_a_producer_without_a_deleter(versioned):
    producer = Producer(numbers((2, 3)), versioned=versioned, deleter=False)
    got = dlpack.load(producer.capsule)
    assert view(got).tolist() == producer.array.tolist()
    del got
    gc.collect()
    assert producer.deleted == 0


def test_an_array_in_a_cycle_is_given_back():
    producer = Producer(numbers((2, 3)), versioned=True)
    cycle = [dlpack.load(producer.capsule)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert producer.deleted == 1


def test_an_array_is_given_back_by_the_thread_that_drops_it():
    producer = Producer(numbers((2, 3)), versioned=True)
    held = [dlpack.load(producer.capsule)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert producer.threads == [thread.ident]


def test_many_threads():
    def work():
        for n in range(200):
            owner = Memory(None)
            gone.append(weakref.ref(owner))
            np.from_dlpack(Lender(owner)) if n % 2 else dlpack.load(lend(owner=owner))

    class Lender:
        def __init__(self, owner):
            self.owner = owner

        def __dlpack__(self, **_):
            return lend(owner=self.owner)

        def __dlpack_device__(self):
            return (1, 0)

    gone = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len(gone) == 800
    assert all(ref() is None for ref in gone)


# ---- The end of a process

PRELUDE = """
import ctypes, os, sys, threading, numpy as np
from iq.runtime import dlpack

array = np.arange(6, dtype=np.float32)

class Exporter:
    def __dlpack__(self, **_):
        return dlpack.export(array.ctypes.data, (6,), "f32", (1, 0), self, readonly=False, versioned=True)
    def __dlpack_device__(self):
        return (1, 0)
    def __del__(self):
        sys and sys.stdout and print("freed", flush=True)

taken = np.from_dlpack(Exporter())
"""


def run(script):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + script], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.split(), done.stderr, done.returncode


@pytest.mark.parametrize(
    "script",
    [
        "",
        "capsule = Exporter().__dlpack__()",
        "got = dlpack.load(Exporter().__dlpack__())",
        "got = dlpack.load(np.arange(6).__dlpack__()); used = Exporter().__dlpack__(); again = dlpack.load(used)",
        "sys.modules['kept'] = [taken, dlpack.load(Exporter().__dlpack__()), Exporter().__dlpack__()]",
        "got = [taken, dlpack.load(Exporter().__dlpack__())]; got.append(got); del taken",
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(taken))",
        "import atexit; atexit.register(lambda: globals().pop('taken'))",
    ],
)
def test_what_is_held_when_the_interpreter_ends(script):
    _, errors, status = run(script)
    assert (errors, status) == ("", 0)


def test_a_consumer_that_outlives_the_interpreter():
    """Written in C, it calls the deleter from its own exit handler, when there is no interpreter left."""
    _, errors, status = run("""
capsule = Exporter().__dlpack__()
api, libc = ctypes.pythonapi, ctypes.CDLL(None)
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
pointer = api.PyCapsule_GetPointer(ctypes.py_object(capsule), b"dltensor_versioned")
used = b"used_dltensor_versioned"
api.Py_IncRef(ctypes.py_object(used))
api.PyCapsule_SetName(ctypes.py_object(capsule), used)
deleter = dlpack.ManagedVersioned.from_address(pointer).deleter
assert libc.__cxa_atexit(ctypes.c_void_p(deleter), ctypes.c_void_p(pointer), None) == 0
""")
    assert (errors, status) == ("", 0)


def test_a_producer_is_left_alone_at_exit():
    printed, errors, status = run("""
tensor = dlpack.Tensor(data=64, device_type=1, ndim=0, code=2, bits=32, lanes=1)
deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: print("deleted", flush=True))
managed = dlpack.Managed(tensor=tensor, deleter=ctypes.cast(deleter, ctypes.c_void_p))
new = ctypes.pythonapi.PyCapsule_New
new.restype = ctypes.py_object
sys.modules["kept"] = dlpack.load(new(ctypes.c_void_p(ctypes.addressof(managed)), b"dltensor", None))
ctypes.pythonapi.Py_IncRef(ctypes.py_object(managed))
""")
    assert ("deleted" in printed, errors, status) == (False, "", 0)


def test_a_fork():
    printed, errors, status = run("""
got = dlpack.load(Exporter().__dlpack__())
child = os.fork()
if not child:
    del taken, got
    np.from_dlpack(Exporter())
    sys.exit(7)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status), taken[5], flush=True)
del taken, got
""")
    assert (printed, errors, status) == (["freed"] * 3 + ["child", "7", "5.0"] + ["freed"] * 2, "", 0)


# ---- Names


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ((1, 0), "cpu"),
        ((2, 0), "cuda:0"),
        ((2, 3), "cuda:3"),
        ((10, 1), "hip:1"),
        ((3, 0), "pinned host memory of cuda"),
        ((11, 0), "pinned host memory of hip"),
        ((8, 0), "DLPack device type 8"),
    ],
)
def test_names_of_devices(device, name):
    assert dlpack.device_name(device) == name


@pytest.mark.parametrize(("asked", "versioned"), [(None, False), ((0, 8), False), ((1, 0), True), ((1, 2), True), ((2, 0), True)])
def test_negotiation(asked, versioned):
    assert dlpack.negotiate(asked) is versioned
