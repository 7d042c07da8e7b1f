"""Which of several artifacts a device may run, and gets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from iq.bundle.manifest import MANIFEST
from iq.bundle.module import Module
from iq.bundle.reading import Bundle, find, read_manifest
from iq.errors import BundleError, NoArtifactError
from iq.kernels import KernelSpec
from iq.targets import TARGETS, Accepted, DeviceId, Rejected, Target, match


def best_match(artifacts: Iterable[str], device_id: DeviceId, cpu_flags: frozenset[str], path: Path | None = None) -> str:
    """The id of the artifact that fits a device best (see iq.targets.match).

    path: of the bundles that the artifacts are; None where they are the targets that iq compiles for.
    Raises NoArtifactError where none fits: what the device is, why those near it do not fit, and the command that makes what does.
    """
    verdicts = {artifact: match(DeviceId.parse(artifact), device_id, cpu_flags) for artifact in artifacts}
    accepted = [(verdict.rank, artifact) for artifact, verdict in verdicts.items() if isinstance(verdict, Accepted)]
    if accepted:
        return min(accepted)[1]
    near = [verdict.reason for verdict in verdicts.values() if isinstance(verdict, Rejected) and verdict.near]
    if path is None:
        lines = [f"iq does not compile for {device_id}", *near, "`iq targets` lists what it compiles for"]
    else:
        lines = [
            f"{path} has no kernels for {device_id}: it has those for {', '.join(verdicts)}",
            *near,
            _remedy(device_id, cpu_flags, path),
        ]
    raise NoArtifactError("\n".join(lines))


def _remedy(device_id: DeviceId, cpu_flags: frozenset[str], path: Path) -> str:
    """What to do where the bundles at a path have nothing for a device."""
    try:
        target = best_match(TARGETS, device_id, cpu_flags)
    except NoArtifactError as error:
        return str(error)
    lies_in = path if path.is_dir() and not (path / MANIFEST).exists() else Path("artifacts")
    return f"`iq compile --target {target} --out {lies_in}` makes them"


class Bundles:
    """The bundles at a path, one for each target: where the runtime gets its kernels from."""

    def __init__(self, path: str | Path) -> None:
        """Find the bundles: a directory of them, one bundle's directory, or a zip. Only manifests are read.

        Raises ManifestError, or BundleError when two bundles are for the same target.
        """
        self.path = Path(path)
        self._paths: dict[str, Path] = {}
        self._opened: dict[str, Bundle] = {}
        for found in find(self.path):
            target = read_manifest(found).target
            if target in self._paths:
                raise BundleError(f"{self._paths[target]} and {found} are both for {target}: remove one")
            self._paths[target] = found

    def target(self, device_id: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> Target:
        """The target whose artifacts fit the device best: pinned to its features, else for any; its bundle is checked now.

        Raises NoArtifactError with what there is and what to do, and what Bundle.open raises.
        """
        return self._bundle(best_match(self._paths, device_id, cpu_flags, self.path)).target

    def module(self, target: Target, spec: KernelSpec) -> Module:
        """The kernels of a kernel's format, for a target that `target()` returned. Raises as `Bundle.module` does."""
        return self._bundle(target.id).module(spec.format)

    def _bundle(self, target: str) -> Bundle:
        if target not in self._paths:
            raise NoArtifactError(f"{self.path} holds no artifact for {target}; it has {', '.join(self._paths)}")
        if target not in self._opened:
            self._opened[target] = Bundle.open(self._paths[target])
        return self._opened[target]
