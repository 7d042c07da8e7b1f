"""Plans, packed and run by the extension and through ctypes, against a library that records what it is asked to launch."""

import ctypes
import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import iq.runtime
from iq.runtime.launching import CAPTURING, EntryPoints, Step, pack, run_ctypes

HERE = Path(iq.runtime.__file__).parent
ROOT = HERE.parent.parent

# Kernels here are numbers of how many pointers and constants they take: 1002 takes one and two.
RECORDER = r"""
#include <stdint.h>
#include <unistd.h>
enum { ROOM = 4096 };
typedef struct { uint64_t function, stream, current, thread, arguments[16]; uint32_t dims[7], count; } record;
record records[ROOM];
int recorded, capturing_status, capturing, launch_status, get_status, set_status, calls, held;
static __thread uint64_t current = 7;
static __thread char here;
int launch(uint64_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, uint64_t stream,
           void **arguments, void **extra) {
  record *r = &records[__atomic_fetch_add(&recorded, 1, __ATOMIC_SEQ_CST) % ROOM];
  *r = (record){f, stream, current, (uint64_t)&here, {0}, {gx, gy, gz, bx, by, bz, shared}, 0};
  for (unsigned i = 0; i < f / 1000; ++i) r->arguments[r->count++] = *(uint64_t *)arguments[i];
  for (unsigned i = 0; i < f % 1000; ++i) r->arguments[r->count++] = *(uint32_t *)arguments[f / 1000 + i];
  for (int i = 0; i < 10000 && __atomic_load_n(&held, __ATOMIC_SEQ_CST); ++i) usleep(1000);
  return extra || held ? 1 : launch_status;
}
int get_context(uint64_t *out) { ++calls; *out = current; return get_status; }
int set_context(uint64_t to) { ++calls; current = to; return set_status; }
int get_device(int *out) { ++calls; *out = (int)current; return get_status; }
int set_device(int to) { ++calls; current = (uint64_t)to; return set_status; }
int is_capturing(uint64_t stream, int *out) { ++calls; *out = capturing; return stream ? capturing_status : 906; }
"""


class Record(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("current", ctypes.c_uint64),
        ("thread", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 16),
        ("dims", ctypes.c_uint32 * 7),
        ("count", ctypes.c_uint32),
    )


class Recorder:
    """The library. context: what its plans make current."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.get, self.set = "get_context", "set_context"
        self.reset()

    def reset(self):
        for name in ("recorded", "capturing_status", "capturing", "launch_status", "get_status", "set_status", "calls", "held"):
            self[name] = 0
        self.library.set_context(ctypes.c_uint64(7))
        self["calls"] = 0

    def __getitem__(self, name):
        return ctypes.c_int.in_dll(self.library, name).value

    def __setitem__(self, name, value):
        ctypes.c_int.in_dll(self.library, name).value = value

    @property
    def current(self):
        found = ctypes.c_uint64()
        self.library.get_context(ctypes.byref(found))
        return found.value

    def entry(self, context=7):
        names = ("launch", self.get, self.set, "is_capturing")
        launch, get, set, capturing = (ctypes.cast(self.library[name], ctypes.c_void_p).value for name in names)
        return EntryPoints(launch, get, set, context, capturing)

    def records(self):
        found = (Record * 4096).in_dll(self.library, "records")[: self["recorded"]]
        return [(r.function, tuple(r.dims), tuple(r.arguments[: r.count]), r.stream, r.current) for r in found]


def hatch_build():
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorder")
    (folder / "recorder.c").write_text(RECORDER)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", folder / "recorder.so", folder / "recorder.c"], check=True)
    return Recorder(folder / "recorder.so")


@pytest.fixture
def recorder(library):
    library.get, library.set = "get_context", "set_context"
    library.reset()
    return library


def extension():
    """`_launch.run`, skipping where the extension is not built."""
    return pytest.importorskip("iq.runtime._launch", exc_type=ImportError).run


@pytest.fixture(scope="module", params=["extension", "ctypes"])
def run(request):
    return extension() if request.param == "extension" else run_ctypes


def step(function, pointers=(), constants=(), grid=(1, 1, 1), block=(64, 1, 1), shared=0):
    return Step(function, grid, block, shared, tuple(pointers), tuple(constants))


# ---- What is launched


def test_arguments_offsets_constants_and_grids(recorder, run):
    first = step(2002, [(0, 0), (2, 4096)], [4096, -1], (3, 2, 1), (32, 2, 4), 22560)
    second = step(3000, [(2, 4096), (2, 1 << 40), (1, 0)], (), (1 << 31, 65535, 2))
    plan = pack(recorder.entry(), [first, second], 3)
    assert run(plan, 1 << 63, 0, 1 << 62, 2 << 60, 3 << 50) == 0
    assert recorder.records() == [
        (2002, (3, 2, 1, 32, 2, 4, 22560), (1 << 62, (3 << 50) + 4096, 4096, 0xFFFFFFFF), 1 << 63, 7),
        (3000, (1 << 31, 65535, 2, 64, 1, 1, 0), ((3 << 50) + 4096, (3 << 50) + (1 << 40), 2 << 60), 1 << 63, 7),
    ]


def test_the_limits(recorder, run):
    pointers = [1 << 32 | i for i in range(16)]
    steps = [step(16000, [(i, 8 * n) for i in range(16)]) for n in range(4)]
    assert run(pack(recorder.entry(), steps, 16), 5, 0, *pointers) == 0
    assert [r[2] for r in recorder.records()] == [tuple(p + 8 * n for p in pointers) for n in range(4)]
    # A value that has been there needs no room.
    pack(recorder.entry(), [*steps, step(1000, [(15, 24)])], 16)
    for refused, said in [
        (([*steps, step(1, [], [1])], 16), "more than 64 different arguments"),
        (([step(17, [], range(17))], 0), "17 arguments"),
        (([], 17), "17 pointers"),
        (([step(1000, [(2, 0)])], 2), "pointer 2 of a call that has 2"),
        (([step(1000, [(-1, 0)])], 2), "pointer -1"),
        (([step(1000, [(0, -1)])], 2), "do not fit"),
        (([step(1, [], [1], grid=(1 << 32, 1, 1))], 2), "does not fit"),
        (([step(1, [], [1], grid=(-1, 1, 1))], 2), "does not fit"),
    ]:
        with pytest.raises(ValueError, match=said):
            pack(recorder.entry(), *refused)


def test_many_steps(recorder, run):
    plan = pack(recorder.entry(), [step(1001, [(0, 0)], [n % 60]) for n in range(500)], 1)
    assert run(plan, 5, 0, 99) == 0
    assert [r[2] for r in recorder.records()] == [(99, n % 60) for n in range(500)]


@pytest.mark.parametrize("empty", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_empty_grids_are_left_out(recorder, run, empty):
    plan = pack(recorder.entry(), [step(1, [], [1], empty), step(1, [], [2])], 0)
    assert run(plan, 5, 0) == 0
    assert [r[2] for r in recorder.records()] == [(2,)]
    # Nothing at all to launch: the device is not asked.
    recorder.reset()
    assert run(pack(recorder.entry(), [step(1000, [(0, 0)], (), empty)], 1), 5, 1, 3) == 0
    assert (recorder.records(), recorder["calls"]) == ([], 0)


def test_equal_calls_make_equal_plans(recorder):
    plans = [pack(recorder.entry(), [step(1001, [(0, 0)], [n])], 1) for n in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


# ---- Statuses, devices, capture


def test_the_first_status_ends_it(recorder, run):
    recorder["launch_status"] = 719
    assert run(pack(recorder.entry(), [step(0), step(0)], 0), 5, 0) == 719
    assert len(recorder.records()) == 1


@pytest.mark.parametrize("api", ["context", "device"])
@pytest.mark.parametrize("launch_status", [0, 719])
def test_the_thread_gets_its_device_back(recorder, run, api, launch_status):
    recorder.get, recorder.set = f"get_{api}", f"set_{api}"
    recorder["launch_status"] = launch_status
    there = 1 << 40 | 3 if api == "context" else 3
    assert run(pack(recorder.entry(there), [step(0)], 0), 5, 0) == launch_status
    assert recorder.records() == [(0, (1, 1, 1, 64, 1, 1, 0), (), 5, there)]
    assert recorder["calls"] == 3  # asked, set, and set back
    assert recorder.current == 7
    recorder.reset()
    assert run(pack(recorder.entry(7), [step(0)], 0), 5, 0) == 0
    assert recorder["calls"] == 1  # what is current is not set


@pytest.mark.parametrize(("what", "launched"), [("get_status", 0), ("set_status", 0), ("capturing_status", 0)])
def test_other_statuses(recorder, run, what, launched):
    recorder[what] = 4
    assert run(pack(recorder.entry(3), [step(0)], 0), 5, 1) == 4
    assert len(recorder.records()) == launched


def test_a_thread_without_a_device_keeps_the_plans(recorder, run):
    recorder["get_status"] = 201  # invalid context
    assert run(pack(recorder.entry(3), [step(0)], 0), 5, 0) == 0
    assert len(recorder.records()) == 1
    assert recorder.current == 3


def test_streams_that_are_captured(recorder, run):
    plan = pack(recorder.entry(3), [step(0)], 0)
    recorder["capturing"] = 1
    assert run(plan, 5, 1) == CAPTURING == -1
    assert (recorder.records(), recorder.current) == ([], 7)
    assert run(plan, 5, 0) == 0  # becomes part of the graph
    recorder["capturing"] = 0
    assert run(plan, 5, 1) == 0
    assert len(recorder.records()) == 2
    assert run(plan, 0, 1) == 906  # the default stream, while another one is captured


def test_threads(recorder, run):
    """Each with its own pointers and device, all running two plans."""
    plans = [pack(recorder.entry(context), [step(2001, [(0, 0), (1, context)], [context])] * 2, 2) for context in (7, 8)]
    start = threading.Barrier(8)

    def work(n):
        start.wait()
        for i in range(100):
            assert run(plans[(n + i) % 2], n + 1, i % 2, n << 32 | i, n << 33 | i) == 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    records = recorder.records()
    assert len(records) == 8 * 100 * 2
    expected = {
        (2001, (1, 1, 1, 64, 1, 1, 0), (n << 32 | i, (n << 33 | i) + 7 + (n + i) % 2, 7 + (n + i) % 2), n + 1, 7 + (n + i) % 2)
        for n in range(8)
        for i in range(100)
    }
    assert set(records) == expected


def test_other_threads_run_meanwhile(recorder, run):
    """The launch waits for another thread of Python."""
    recorder["held"] = 1
    plan = pack(recorder.entry(), [step(0)], 0)
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(run, plan, 5, 0)
        while not recorder["recorded"]:
            pass
        recorder["held"] = 0
        assert status.result() == 0


# ---- What is refused


def test_wrong_calls(recorder, run):
    plan = pack(recorder.entry(), [step(2000, [(0, 0), (1, 0)])], 2)
    for arguments in [(plan, 5, 0), (plan, 5, 0, 1), (plan, 5, 0, 1, 2, 3), (plan, 5, 0, *range(40))]:
        with pytest.raises(TypeError, match=f"takes 2 pointers, not {len(arguments) - 3}"):
            run(*arguments)
    for arguments in [
        (),
        (plan,),
        (plan, 5),
        ("plan", 5, 0, 1, 2),
        (None, 5, 0, 1, 2),
        (bytearray(plan), 5, 0, 1, 2),
        (plan, 5.0, 0, 1, 2),
    ]:
        with pytest.raises(TypeError):
            run(*arguments)
    for arguments in [(plan, None, 0, 1, 2), (plan, 5, "0", 1, 2), (plan, 5, 0, 1.5, 2), (plan, 5, 0, 1, None)]:
        with pytest.raises(TypeError):
            run(*arguments)
    for arguments in [
        (plan, -1, 0, 1, 2),
        (plan, 1 << 64, 0, 1, 2),
        (plan, 5, 0, -1, 2),
        (plan, 5, 0, 1, 1 << 64),
        (plan, 5, 0, 1 << 200, 0),
    ]:
        with pytest.raises(OverflowError):
            run(*arguments)
    assert (recorder.records(), recorder["calls"]) == ([], 0)
    assert run(plan, 5, 0, 2**64 - 1, 2) == 0
    assert recorder.records()[0][2] == (2**64 - 1, 2)


def test_plans_of_another_length(recorder, run):
    plan = pack(recorder.entry(), [step(1001, [(0, 0)], [3])] * 2, 1)
    for wrong in [b"", *(plan[:n] for n in range(1, len(plan))), plan + b"\0", plan * 2]:
        with pytest.raises(ValueError, match="not a plan"):
            run(wrong, 5, 0, 1)
    assert recorder["calls"] == 0


HEADER, STEP = 56, 56


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (40, 1), (40, 3), (40, 2**32 - 1),  # steps
        (44, 17), (44, 2**32 - 1), (44, 0),  # pointers; with none, a value refers to one that is not there
        (48, 1), (48, 3), (48, 65), (48, 2**32 - 1),  # values
        (52, 1),  # the zero
        (HEADER + 36, 17), (HEADER + 36, 2**32 - 1), (HEADER + 36, 3 | 1 << 31),  # arguments
        (HEADER + 40, 2), (HEADER + 40, 0xFF),  # which values
        (HEADER + 2 * STEP + 8, 1), (HEADER + 2 * STEP + 8, 16), (HEADER + 2 * STEP + 8, 2**32 - 2),  # the pointer of a value
        (HEADER + 2 * STEP + 12, 1),
    ],
)  # fmt: skip
def test_plans_that_lead_elsewhere(recorder, run, at, value):
    plan = bytearray(pack(recorder.entry(), [step(1001, [(0, 0)], [3])] * 2, 1))
    assert len(plan) == HEADER + 2 * STEP + 2 * 16
    struct.pack_into("<I", plan, at, value)
    with pytest.raises(ValueError, match="not a plan"):
        run(bytes(plan), 5, 0, *[1] * min(struct.unpack_from("<I", plan, 44)[0], 20))
    assert recorder["calls"] == 0


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_altered_plans_do_no_harm(library, run, data):
    """Whatever the bytes after the entry points are: launched, or refused; both implementations agree."""
    library.get, library.set = "get_context", "set_context"
    library.reset()
    steps = [step(0, [(n % 2, n)], [n, 4]) for n in range(data.draw(st.integers(0, 3)))]
    plan = bytearray(pack(library.entry(), steps, 2))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(40, len(plan) - 1), st.integers(0, 255)), max_size=4)):
        inside = (at - HEADER) % STEP
        if not (HEADER <= at < HEADER + len(steps) * STEP and inside < 8):  # a function, which tells the recorder what to read
            plan[at] = byte
    given_ = bytes(plan) if data.draw(st.booleans()) else bytes(plan)[: data.draw(st.integers(0, len(plan)))]

    def outcome(implementation):
        try:
            return implementation(given_, 5, 0, 1, 2)
        except (TypeError, ValueError) as error:
            return str(error)

    assert outcome(run) == outcome(run_ctypes)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_no_plan(run, data):
    with pytest.raises((ValueError, TypeError)):  # a header without steps has no pointers, or too few are given
        run(data, 5, 0, *range(17))


# ---- Which implementation


def python(code, **environment):
    env = {**os.environ, "IQ_LAUNCH": "", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_the_implementation_can_be_chosen():
    ask = "from iq.runtime import launching as l; print(l.IMPLEMENTATION, l.run is l.run_ctypes)"
    assert python(ask, IQ_LAUNCH="ctypes").stdout == "ctypes True\n"
    refused = python(ask, IQ_LAUNCH="cython")
    assert refused.returncode == 1
    assert "DeviceError: IQ_LAUNCH=cython is neither ctypes nor extension" in refused.stderr
    hidden = "import sys; sys.modules['iq.runtime._launch'] = None; " + ask
    assert python(hidden).stdout == "ctypes True\n"
    refused = python(hidden, IQ_LAUNCH="extension")
    assert "DeviceError: IQ_LAUNCH=extension, but iq.runtime._launch is not built" in refused.stderr


def test_the_extension_is_used_where_it_is_built():
    extension()
    ask = "from iq.runtime import launching as l; print(l.IMPLEMENTATION, l.run is l.run_ctypes)"
    assert python(ask).stdout == python(ask, IQ_LAUNCH="extension").stdout == "extension False\n"


# ---- Building it


@pytest.fixture
def checkout(tmp_path):
    """A folder with the source in its place, and the build hook's functions."""
    hook = hatch_build()
    source = tmp_path / hook.SOURCE
    source.parent.mkdir(parents=True)
    source.write_bytes((ROOT / hook.SOURCE).read_bytes())
    return tmp_path, hook


def test_it_builds_without_a_warning_and_once(checkout, monkeypatch):
    root, hook = checkout
    monkeypatch.setattr(hook, "FLAGS", (*hook.FLAGS, "-Werror"))
    assert hook.build(root) in ("", f"Python's headers are not in {hook.sysconfig.get_path('include')} (Debian: python3-dev)")
    if not (root / hook.BUILT).exists():
        pytest.skip("there are no Python headers here")
    assert sorted(p.name for p in (root / hook.BUILT).parent.iterdir()) == ["_launch.abi3.so", "_launch.c"]
    before = (root / hook.BUILT).stat()
    assert hook.build(root) == ""
    assert (root / hook.BUILT).stat() == before
    os.utime(root / hook.SOURCE, ns=(0, before.st_mtime_ns + 10**9))  # the source has changed
    assert hook.build(root) == ""
    assert (root / hook.BUILT).stat().st_ino != before.st_ino


def test_why_it_is_not_built(checkout, monkeypatch, tmp_path):
    root, hook = checkout
    with monkeypatch.context() as patch:
        patch.setenv("CC", "no-such-compiler")
        assert hook.build(root) == "there is no C compiler no-such-compiler"
    with monkeypatch.context() as patch:
        patch.setattr(hook.sysconfig, "get_path", lambda name: str(tmp_path / "include"))
        assert hook.build(root) == f"Python's headers are not in {tmp_path}/include (Debian: python3-dev)"
    with monkeypatch.context() as patch:
        patch.setattr(hook.sys, "platform", "win32")
        assert "win32" in hook.build(root)
    (root / hook.SOURCE).write_text("this is not C")
    if (Path(hook.sysconfig.get_path("include")) / "Python.h").exists():
        assert "fails: " in hook.build(root)
    assert not (root / hook.BUILT).exists()
    assert [p.name for p in (root / hook.BUILT).parent.iterdir()] == ["_launch.c"]
