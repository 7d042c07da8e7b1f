"""Every kernel of every format on every CPU target that this machine can run, as `iq verify` runs them."""

import pytest
from conftest import CPU_TARGETS, SPEC

from iq.bundle import Bundle
from iq.compile.build import bundle
from iq.formats import FORMATS
from iq.kernels import select
from iq.verify.devices import open_real
from iq.verify.run import verify_bundle

pytestmark = [pytest.mark.needs_extras, pytest.mark.skipif(SPEC != "cpu", reason="kernels of CPUs")]


@pytest.mark.parametrize("target", CPU_TARGETS, ids=lambda t: t.id)
@pytest.mark.parametrize("fmt", [name for name in FORMATS if select(name)])
def test_kernels(environment, tmp_path, target, fmt):
    [path] = bundle(target.id, fmt, out=tmp_path, jobs=1)
    report = verify_bundle(Bundle.open(path), open_real)
    assert {k.key for k in report.kernels} == {k.key for k in select(fmt, target=target)}
    assert not {f"{k.key}: {c.name}": c.failure or c.checks for k in report.kernels for c in k.cases if not c.passed}
