"""The renders in tests/golden are what the templates render now: a change of templates shows what it does to them, in the diff."""

import golden_renders
import pytest

pytestmark = pytest.mark.needs_extras


@pytest.mark.parametrize(("target", "key"), golden_renders.KEPT, ids="/".join)
def test_kept(target: str, key: str) -> None:
    path = golden_renders.path_of(target, key)
    assert golden_renders.rendered(target, key) == path.read_text(encoding="utf-8"), f"{path.name}: `make golden`, and read the diff"


def test_no_other_is_kept() -> None:
    assert set(golden_renders.FOLDER.glob("*.mlir")) == {golden_renders.path_of(*which) for which in golden_renders.KEPT}
