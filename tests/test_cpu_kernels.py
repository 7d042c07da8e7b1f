"""Every kernel of every format on the CPU target that fits this machine best, as `iq verify` runs them; of some formats on the others."""

import pytest
from conftest import CPU_TARGETS, SPEC, cpu_formats

from iq.bundle import Bundle
from iq.compile.build import bundle
from iq.kernels import select
from iq.targets import TARGETS
from iq.verify.devices import open_real
from iq.verify.run import verify_bundle

pytestmark = [pytest.mark.needs_extras, pytest.mark.skipif(SPEC != "cpu", reason="kernels of CPUs")]


@pytest.mark.parametrize(("target", "fmt"), [(t.id, name) for t in CPU_TARGETS for name in cpu_formats(t) if select(name)])
def test_kernels(environment, tmp_path, target, fmt):
    [path] = bundle(target, fmt, out=tmp_path, jobs=1)
    report = verify_bundle(Bundle.open(path), open_real)
    assert {k.key for k in report.kernels} == {k.key for k in select(fmt, target=TARGETS[target])}
    assert not {f"{k.key}: {c.name}": c.failure or c.checks for k in report.kernels for c in k.cases if not c.passed}
