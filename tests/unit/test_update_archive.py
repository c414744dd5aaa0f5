"""Archives that came over the air: what is a plain bundle gets in, all else leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zstandard
from fakes.bundles import make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.errors import ConfigError, ModelError, TrustError
from agent.runtime.bundle import MANIFEST, seal_bundle
from agent.update import contents
from agent.update.archive import MAX_FILES, unpack
from agent.update.contents import CONFIGURATION
from agent.update.faults import UntrustedError
from agent.update.release import Release
from ota.release.pack import Packed, Wishes, pack


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(bundle, tmp_path_factory.mktemp("packed"), {}, Wishes())


def configuration(content: bytes, **changes: Any) -> Release:
    fields = {
        "slot": "configuration", "name": "site", "version": "1", "number": 1, "manifest_sha256": hashlib.sha256(content).hexdigest(),
        "unpacked_bytes": len(content),
    }  # fmt: skip
    return Release.model_validate(fields | changes)


def member(name: str, content: bytes = b"a: 1\n", **fields: Any) -> bytes:
    """One file of a ustar archive; fields: of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def archive(file: Path, *members: bytes, end: bytes = bytes(1024)) -> Path:
    file.write_bytes(zstandard.ZstdCompressor(level=3).compress(b"".join(members) + end))
    return file


def refusal(file: Path, folder: Path, release: Release, reason: str = "archive", **options: Any) -> str:
    """The refusal's text; nothing is left behind."""
    with pytest.raises(UntrustedError) as caught:
        unpack(file, folder, release, **options)
    assert caught.value.reason == reason, str(caught.value)
    assert list(folder.iterdir()) == []
    return str(caught.value)


# --- what gets in -----------------------------------------------------------------------------------------------------


def test_a_packed_bundle_comes_out_as_it_went_in(packed: Packed, bundle: Path, tmp_path: Path) -> None:
    unpack(packed.file, tmp_path / "out", packed.release)
    names = {path.relative_to(bundle) for path in bundle.rglob("*")}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (bundle / name).read_bytes()
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o644


def test_modes_do_not_follow_the_umask_or_the_archive(tmp_path: Path) -> None:
    content = b"a: 1\n"
    file = archive(tmp_path / "x", member(CONFIGURATION, content, mode=0o6777, uid=12, gid=12, mtime=99))
    before = os.umask(0o077)
    try:
        unpack(file, tmp_path / "out", configuration(content))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / CONFIGURATION).stat().st_mode) == 0o644


def test_a_folder_that_is_not_empty_is_left_alone(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError):
        unpack(packed.file, tmp_path, packed.release)
    assert (tmp_path / "mine").read_text() == "precious"


def test_packing_twice_gives_the_same_bytes(packed: Packed, bundle: Path, tmp_path: Path) -> None:
    for file in bundle.iterdir():
        os.utime(file, (1, 1))
    again = pack(bundle, tmp_path, {}, Wishes())
    assert again.file.read_bytes() == packed.file.read_bytes()
    assert again.release == packed.release


def test_files_and_folders_are_flushed(packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    unpack(packed.file, tmp_path / "out", packed.release)
    assert {str(path) for path in (tmp_path / "out").rglob("*")} | {str(tmp_path / "out")} <= flushed


# --- names and kinds --------------------------------------------------------------------------------------------------

NAMES = [
    "/etc/passwd", "../up", "a/../../up", "./a", "a//b", "a/", "", ".", "..", ".hidden", "a/.hidden/b", "a\\b", "C:x", "-rf", "a b", "a\nb",
    "a\x01b", "ä.onnx", "a/b/c/d/e", "x" * 101 + "/y", "~root", "$HOME", "a*b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder_or_confuse(tmp_path: Path, name: str) -> None:
    file = archive(tmp_path / "x", member(name))
    refusal(file, tmp_path / "out", configuration(b"a: 1\n"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(min_size=1, max_size=60))
def test_whatever_the_name_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    try:
        header = member(name)
    except (ValueError, UnicodeError):
        return  # not even a header
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True, exist_ok=True)
    file = archive(tmp_path / "x", header)
    with pytest.raises((UntrustedError, ModelError)):
        unpack(file, folder, configuration(b"another"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "out", "x"]


KINDS = {
    "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "hard link": {"type": tarfile.LNKTYPE, "linkname": "a"},
    "character device": {"type": tarfile.CHRTYPE}, "block device": {"type": tarfile.BLKTYPE}, "pipe": {"type": tarfile.FIFOTYPE},
    "folder": {"type": tarfile.DIRTYPE}, "contiguous": {"type": tarfile.CONTTYPE}, "old file": {"type": tarfile.AREGTYPE},
    "long name": {"type": tarfile.GNUTYPE_LONGNAME}, "sparse": {"type": tarfile.GNUTYPE_SPARSE}, "extended": {"type": tarfile.XHDTYPE},
    "global": {"type": tarfile.XGLTYPE}, "file with a link": {"type": tarfile.REGTYPE, "linkname": "/etc/passwd"},
}  # fmt: skip


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_only_plain_files(tmp_path: Path, fields: dict[str, Any]) -> None:
    content = b"" if fields["type"] != tarfile.REGTYPE else b"a: 1\n"
    file = archive(tmp_path / "x", member(CONFIGURATION, content, **fields))
    assert "no plain file" in refusal(file, tmp_path / "out", configuration(b"a: 1\n"))


@pytest.mark.parametrize(
    "names", [("a.md", "a.md"), ("a.md", "A.MD"), ("a", "a/b"), ("a/b", "a"), ("a/b", "A")], ids=" ".join
)
def test_no_name_twice(tmp_path: Path, names: tuple[str, str]) -> None:
    file = archive(tmp_path / "x", *(member(name) for name in names))
    assert "twice" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


def test_extended_headers_of_python_are_no_plain_archive(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("ä" * 60)
        tar.addfile(info)
    file = archive(tmp_path / "x", out.getvalue(), end=b"")
    refusal(file, tmp_path / "out", configuration(bytes(1000)))


# --- bombs ------------------------------------------------------------------------------------------------------------


def test_a_bomb_stops_at_the_signed_size(tmp_path: Path) -> None:
    """4 GB of zeros in some hundred kilobytes: not one byte more than signed is written."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=3).stream_writer(out, closefd=False) as stream:
        info = tarfile.TarInfo(CONFIGURATION)
        info.size = 4 << 30
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):  # more of it than is ever read
            stream.write(bytes(1 << 20))
    file = tmp_path / "x"
    file.write_bytes(out.getvalue())
    assert "more than the 1,000 bytes" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


def test_many_small_files_stop_at_the_signed_size(tmp_path: Path) -> None:
    file = archive(tmp_path / "x", *(member(f"f{number}", b"x" * 100) for number in range(20)))
    assert "more than the 1,000 bytes" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


def test_too_many_files(tmp_path: Path) -> None:
    file = archive(tmp_path / "x", *(member(f"f{number}", b"") for number in range(MAX_FILES + 1)))
    assert f"more than {MAX_FILES} files" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


def test_a_window_larger_than_8_mib_is_not_allocated(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as stream:
        stream.write(member(CONFIGURATION) + bytes(1024))
    file = tmp_path / "x"
    file.write_bytes(out.getvalue())
    assert "zstd" in refusal(file, tmp_path / "out", configuration(b"a: 1\n"))


def test_a_negative_size(tmp_path: Path) -> None:
    header = bytearray(member(CONFIGURATION, b"", size=0)[:512])
    header[124:136] = b"\xff" * 12  # base 256: -1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file = archive(tmp_path / "x", bytes(header))
    assert "below 0" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-20], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK\x03\x04" + data,
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    ],
    ids=["end cut", "half", "empty", "zip", "bit"],
)  # fmt: skip
def test_broken_compression(packed: Packed, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "x"
    file.write_bytes(spoil(packed.file.read_bytes()))
    refusal(file, tmp_path / "out", packed.release)


@pytest.mark.parametrize(
    "end", [b"", bytes(512), bytes(512) + b"x" * 512, bytes(512 * 40)], ids=["none", "half", "data", "too much"]
)
def test_what_follows_the_last_file(tmp_path: Path, end: bytes) -> None:
    file = archive(tmp_path / "x", member(CONFIGURATION), end=end)
    refusal(file, tmp_path / "out", configuration(b"a: 1\n"))


def test_something_between_two_files(tmp_path: Path) -> None:
    spoiled = bytearray(member("a"))
    spoiled[-1] = 1
    file = archive(tmp_path / "x", bytes(spoiled), member("b"))
    assert "between" in refusal(file, tmp_path / "out", configuration(bytes(1000)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000), packed_too=st.booleans())
def test_no_bytes_at_all_do_harm(tmp_path: Path, data: bytes, packed_too: bool) -> None:
    file = tmp_path / "x"
    file.write_bytes(zstandard.ZstdCompressor().compress(data) if packed_too else data)
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    with pytest.raises((UntrustedError, ModelError)):
        unpack(file, folder, configuration(b"another"))
    assert list(folder.iterdir()) == []


# --- the bundle inside ------------------------------------------------------------------------------------------------


def repacked(
    bundle: Path, change: Callable[[Path], None], tmp_path: Path, *, seal: bool = True
) -> tuple[Path, Release]:
    """The bundle after `change`, sealed anew and signed as it is now: what a signer who errs, or whose key is stolen, lets out."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    original = pack(bundle, tmp_path, {}, Wishes()).release
    change(folder)
    if seal:
        fields = json.loads((folder / MANIFEST).read_bytes())
        del fields["files"]
        seal_bundle(folder, fields)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    size = sum(path.stat().st_size for path in files.values())
    out = archive(tmp_path / "changed.tar.zst", *(member(name, path.read_bytes()) for name, path in files.items()))
    return out, original.model_copy(update={"manifest_sha256": digest, "unpacked_bytes": size})


def test_another_manifest_than_the_signed_one(packed: Packed, tmp_path: Path) -> None:
    release = packed.release.model_copy(update={"manifest_sha256": "0" * 64})
    assert "sha256 of manifest.json" in refusal(packed.file, tmp_path / "out", release, "manifest")


def test_no_manifest(tmp_path: Path, packed: Packed) -> None:
    file = archive(tmp_path / "x", member("model.onnx"))
    refusal(file, tmp_path / "out", packed.release, "manifest")


def test_a_file_that_is_not_the_sealed_one(bundle: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        with (folder / "model.onnx").open("ab") as model:
            model.write(b"\0")

    file, release = repacked(bundle, change, tmp_path, seal=False)
    with pytest.raises(TrustError, match="sha256"):
        unpack(file, tmp_path / "out", release)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"), [("name", "other"), ("version", "9.9.9"), ("slot", "action/fight"), ("contract", None)]
)
def test_another_bundle_than_described(packed: Packed, tmp_path: Path, field: str, value: str | None) -> None:
    contract = packed.release.contract
    assert contract
    changed = value or contract.model_copy(update={"outputs": contract.outputs[:1]})
    release = packed.release.model_copy(update={field: changed})
    refusal(packed.file, tmp_path / "out", release, "release")


@pytest.mark.parametrize("name", ["weights.pkl", "model.pt", "lib.so", "run.py", "model.engine", "noname"])
def test_files_that_are_no_data(bundle: Path, tmp_path: Path, name: str) -> None:
    file, release = repacked(bundle, lambda folder: void((folder / name).write_bytes(pickle.dumps({}))), tmp_path)
    assert "no files of this kind" in refusal(file, tmp_path / "out", release, "content")


def void(_: object) -> None:
    """For lambdas that return nothing."""


class Payload:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/recognizer-was-here",)


def test_pickled_objects_in_arrays(bundle: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        np.savez(folder / "golden.npz", **{"input.input": np.array([Payload()], dtype=object)})

    file, release = repacked(bundle, change, tmp_path)
    assert "pickled objects" in refusal(file, tmp_path / "out", release, "content")


def test_arrays_that_unpack_to_too_much(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_ARRAYS_BYTES", 1 << 20)

    def change(folder: Path) -> None:
        with zipfile.ZipFile(folder / "golden.npz", "w", zipfile.ZIP_DEFLATED) as arrays:
            arrays.writestr("input.input.npy", bytes(2 << 20))

    file, release = repacked(bundle, change, tmp_path)
    assert "unpacks to" in refusal(file, tmp_path / "out", release, "content")


def test_an_array_that_claims_more_than_it_holds(bundle: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        out = io.BytesIO()
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
        with zipfile.ZipFile(folder / "golden.npz", "w") as arrays:
            arrays.writestr("input.input.npy", out.getvalue() + bytes(100))

    file, release = repacked(bundle, change, tmp_path)
    assert "not what it holds" in refusal(file, tmp_path / "out", release, "content")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"x" * 1000])
def test_arrays_that_are_none(bundle: Path, tmp_path: Path, content: bytes) -> None:
    file, release = repacked(bundle, lambda folder: void((folder / "golden.npz").write_bytes(content)), tmp_path)
    with pytest.raises(ModelError, match="not a readable"):
        unpack(file, tmp_path / "out", release)
    assert list((tmp_path / "out").iterdir()) == []


def graph(file: Path, *, domain: str = "", location: str = "") -> None:
    """A graph with an operator of `domain`, or weights at `location`."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    if location:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], domain=domain)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], [weights]), opset_imports=opsets)
    onnx.save(model, file)


def test_custom_operators_unless_allowed(bundle: Path, tmp_path: Path) -> None:
    file, release = repacked(bundle, lambda folder: graph(folder / "model.onnx", domain="evil.ops"), tmp_path)
    assert "evil.ops::Add" in refusal(file, tmp_path / "out", release, "content")
    unpack(file, tmp_path / "out", release, allow_custom_ops=True)


@pytest.mark.parametrize(
    "location", ["/etc/shadow", "../weights.data", "a/../../weights.data", "..\\weights.data", "a\0b", "a" * 300]
)
def test_weights_outside_the_bundle_are_never_allowed(bundle: Path, tmp_path: Path, location: str) -> None:
    file, release = repacked(bundle, lambda folder: graph(folder / "model.onnx", location=location), tmp_path)
    words = "outside its folder" if len(location) < 255 else "weights"  # from Python 3.14 on missing
    assert words in refusal(file, tmp_path / "out", release, "content", allow_custom_ops=True)


def test_weights_in_a_sealed_file_are_fine(bundle: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        graph(folder / "model.onnx", location="model.data")
        (folder / "model.data").write_bytes(bytes(16))

    file, release = repacked(bundle, change, tmp_path)
    unpack(file, tmp_path / "out", release)


def test_weights_in_a_document_are_not_sealed(bundle: Path, tmp_path: Path) -> None:
    """Documents may be changed without breaking the seal."""

    def change(folder: Path) -> None:
        graph(folder / "model.onnx", location="CARD.md")
        (folder / "CARD.md").write_bytes(bytes(16))

    file, release = repacked(bundle, change, tmp_path)
    assert "not sealed" in refusal(file, tmp_path / "out", release, "content")


def test_a_second_graph_is_looked_at_as_well(bundle: Path, tmp_path: Path) -> None:
    file, release = repacked(bundle, lambda folder: graph(folder / "other.onnx", location="/etc/shadow"), tmp_path)
    refusal(file, tmp_path / "out", release, "content")


# --- configurations ---------------------------------------------------------------------------------------------------


def test_a_configuration(tmp_path: Path) -> None:
    source = tmp_path / "site.yaml"
    source.write_text("outbox: {history_days: 9}\n")
    packed = pack(source, tmp_path, {"configuration": 4}, Wishes(name="site", version="2026.1"))
    assert (packed.release.number, packed.release.path) == (5, "configuration/site-2026.1.tar.zst")
    unpack(packed.file, tmp_path / "out", packed.release)
    assert (tmp_path / "out" / CONFIGURATION).read_bytes() == source.read_bytes()


def test_a_configuration_that_no_device_would_take_is_not_signed(tmp_path: Path) -> None:
    source = tmp_path / "site.yaml"
    source.write_text("outbox: {history_days: 9}\ncameras: []\nhealt: {}\n")
    with pytest.raises(ConfigError) as caught:
        pack(source, tmp_path, {}, Wishes(name="site", version="1"))
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [(2, "cameras")]
    source.write_text("healt: {}\n")
    with pytest.raises(ConfigError, match=r"site\.yaml:1:healt"):
        pack(source, tmp_path, {}, Wishes(name="site", version="1"))


@pytest.mark.parametrize("names", [("other.yaml",), (CONFIGURATION, "more.yaml"), ("a/" + CONFIGURATION,)])
def test_a_configuration_is_one_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = archive(tmp_path / "x", *(member(name) for name in names))
    refusal(file, tmp_path / "out", configuration(b"a: 1\n", unpacked_bytes=1000), "content")


def test_another_configuration_than_the_signed_one(tmp_path: Path) -> None:
    file = archive(tmp_path / "x", member(CONFIGURATION, b"a: 2\n"))
    refusal(file, tmp_path / "out", configuration(b"a: 1\n"), "manifest")


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    yield
    assert not Path("/tmp/recognizer-was-here").exists()
