"""`recognizer-agent models` as a user meets it: processes, exit codes, streams, a real TLS server behind a real proxy."""

from __future__ import annotations

import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from fakes.bundles import make_bundle
from fakes.candidates import derive
from fakes.commandline import call
from fakes.downloads import FileServer, catalogue_entry, proxying, redirect, serving, stall_after
from fakes.graphs import rtmo_graph, stgcn_graph
from onnx import TensorProto, helper

from agent.commands.models_build import build, missing_tensorrt
from agent.config.load import load_config
from agent.config.schema import ServiceConfig
from agent.errors import ModelError
from agent.recognition import create_classifier
from agent.runtime.bundle import main as seal
from agent.runtime.devices import Accelerators

GOOD, FAILED, USAGE, CONFIG, INTERRUPTED = 0, 1, 2, 78, 130
PROXY_VARIABLES = {"http_proxy", "https_proxy", "no_proxy", "all_proxy"}
TENSORRT = "TensorrtExecutionProvider"


@dataclass(slots=True)
class Box:
    """A machine of its own: home, state, catalogue."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
        kept.pop("RECOGNIZER_MODELS", None)
        self.environment = kept | {"HOME": str(self.folder), "NO_COLOR": "1", "STATE_DIRECTORY": str(self.state)}

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def pulled(self) -> Path:
        return self.state / "models" / "pulled" / "rtmo-x"

    def catalogue(self, *entries: dict[str, Any]) -> Path:
        file = self.folder / "catalogue.json"
        file.write_text(json.dumps({"catalogue": 1, "models": entries}))
        return file

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agent", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self.environment | environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """In this process."""
        return call(self.folder, [str(argument) for argument in arguments], self.environment | environment)

    def run_process(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: what OpenSSL trusts is settled when Python starts."""
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=100)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rtmo_graph(tmp_path_factory.mktemp("model") / "model.onnx", size=(64, 96), conv_layers=3)


@pytest.fixture
def server(model: Path) -> Iterator[FileServer]:
    with serving({"/model.onnx": model.read_bytes()}) as running:
        yield running


def entry(model: Path, url: str, **changes: Any) -> dict[str, Any]:
    return catalogue_entry(model, [{"name": "somewhere", "url": url}], **changes)


# --- list, verify -----------------------------------------------------------------------------------------------------


def test_list_shows_what_ships_and_what_could_be_pulled(box: Box) -> None:
    done = box.run("models", "list")
    assert done.returncode == GOOD
    for words in ("shipped:fight-stgcn", "catalogue:rtmo-s", "39.6", "?x3x640x640", "Apache-2.0", "not pulled"):
        assert words in done.stdout
    items = json.loads(box.run("models", "list", "--json").stdout)
    (rtmo,) = [item for item in items if item["name"] == "rtmo-l"]
    assert (rtmo["state"], rtmo["size_bytes"], rtmo["figures"]["coco_ap"]) == ("not pulled", 175_926_543, 0.748)


def test_verify_names_every_problem_and_fails(box: Box) -> None:
    good, bad = make_bundle(box.folder / "good"), make_bundle(box.folder / "bad")
    (bad / "model.onnx").write_bytes(b"rot")
    (bad / "golden.npz").unlink()
    done = box.run("models", "verify", good, bad)
    assert done.returncode == FAILED
    assert "tiny 1.0.0: good (2 checksums, opset 17" in done.stdout
    assert done.stdout.count("problem: ") == 2
    report = json.loads(box.run("models", "verify", bad, "--json").stdout)
    assert (report[0]["good"], len(report[0]["problems"])) == (False, 2)


def test_a_bundle_is_made_as_the_manual_says(box: Box, repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manual = (repo_dir / "docs" / "models.md").read_text(encoding="utf-8")
    another, _, make = manual.partition("\n## Another service\n")[2].partition("\n## Make a bundle\n")
    climbing = yaml.safe_load(another.split("```yaml\n")[1].split("```")[0])["services"]["climbing"]
    folder = box.folder / "climbing"
    folder.mkdir()
    stgcn_graph(folder / "model.onnx", window=(4, 64, 17, 3))
    (folder / "manifest.json").write_text(make.split("```json\n")[1].split("```")[0])
    unsealed = box.run("models", "verify", "climbing").stdout
    assert "files: Field required (hint: `python -m agent.runtime.bundle --seal climbing` writes" in unsealed
    monkeypatch.chdir(box.folder)
    exec(compile(make.split("```python\n")[1].split("```")[0], "docs/models.md", "exec"), {})
    assert seal(["--seal", "climbing"]) == GOOD
    done = box.run("models", "verify", "climbing")
    assert done.returncode == GOOD
    assert done.stdout.startswith("climbing 0.1.0: good (2 checksums, opset 17, ")
    assert done.stdout.endswith(", golden answers)\n")
    service = ServiceConfig.model_validate(climbing | {"model": folder, "device": "cpu"})
    assert create_classifier("climbing", service).labels == ("other", "climbing")


def test_verify_without_names_looks_at_all_that_is_here(box: Box) -> None:
    done = box.run("models", "verify")
    assert done.returncode == GOOD
    assert "fight-stgcn" in done.stdout
    assert "fall-stgcn" in done.stdout


def test_the_folder_that_one_stands_in_is_a_path_and_no_name(tmp_path: Path, model: Path) -> None:
    inside, outside = Box(make_bundle(tmp_path / "own")), Box(tmp_path)
    store = {"RECOGNIZER_MODELS": str(tmp_path / "models")}
    catalogue = outside.catalogue(entry(model, "https://host.invalid/model.onnx"))
    pulled = outside.run("models", "pull", "rtmo-x", "--catalogue", catalogue, "--file", model, **store)
    assert pulled.returncode == GOOD, pulled.stderr
    for text in (".", "./", "../own"):
        done = inside.run("models", "verify", text, **store)
        assert done.stdout.startswith("tiny 1.0.0: good ("), done.stdout
    (inside.folder / "manifest.json").unlink()
    done = inside.run("models", "verify", ".", **store)
    assert done.returncode == FAILED
    assert done.stdout.startswith("own: BAD (nothing could be checked)\n  problem: manifest.json: cannot be read")
    done = inside.run("models", "verify", "", **store)
    assert done.returncode == FAILED
    assert done.stderr.startswith("error: empty name: no such model (hint: ")


# --- pull -------------------------------------------------------------------------------------------------------------


def test_from_nothing_to_a_configuration_that_loads(box: Box, model: Path, server: FileServer) -> None:
    catalogue = box.catalogue(entry(model, server.url()))
    config = box.folder / "agent.yaml"
    config.write_text("pose: {model: 'catalogue:rtmo-x'}\n")
    before = box.run("check-config", config)
    assert before.returncode == CONFIG
    assert f"recognizer-agent models pull rtmo-x --config {config}" in before.stderr
    pulled = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue, "--config", config)
    assert (pulled.returncode, box.pulled.is_dir()) == (GOOD, True)
    assert "rtmo-x is ready" in pulled.stdout
    assert f"0.5 of {model.stat().st_size / 1e6:.1f} MB" in pulled.stderr
    assert box.run("check-config", config).returncode == GOOD
    listed = box.run("models", "list", "--catalogue", catalogue).stdout
    assert "ready" in next(line for line in listed.splitlines() if "rtmo-x" in line)
    assert "answers as recorded here" in box.run("models", "verify", "rtmo-x").stdout
    again = box.run("models", "pull", "catalogue:rtmo-x", "--catalogue", catalogue)
    assert (again.returncode, len(server.requests)) == (GOOD, 1)
    assert "is here already" in again.stdout
    assert box.run("models", "pull", "rtmo-x", "--catalogue", catalogue, "--force").returncode == GOOD
    assert len(server.requests) == 2


def test_models_may_be_shared_between_state_folders(box: Box, model: Path, server: FileServer) -> None:
    catalogue = box.catalogue(entry(model, server.url()))
    shared = box.folder / "shared"
    done = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue, RECOGNIZER_MODELS=str(shared))
    assert done.returncode == GOOD
    assert (shared / "pulled" / "rtmo-x").is_dir()
    assert not box.state.exists()


def test_a_damaged_model_is_pulled_again_without_being_asked(box: Box, model: Path, server: FileServer) -> None:
    catalogue = box.catalogue(entry(model, server.url()))
    box.run("models", "pull", "rtmo-x", "--catalogue", catalogue)
    (box.pulled / "model.onnx").write_bytes(b"rot")
    assert box.run("models", "pull", "rtmo-x", "--catalogue", catalogue).returncode == GOOD
    assert box.run("models", "verify", "rtmo-x").returncode == GOOD


def test_a_catalogue_without_models_says_so(box: Box) -> None:
    catalogue = box.catalogue()
    done = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue)
    assert (done.returncode, done.stderr) == (
        FAILED,
        "error: the catalogue has no 'rtmo-x' (hint: it has no models at all)\n",
    )
    catalogue.write_text("")
    for arguments in (("list",), ("verify", "rtmo-x"), ("pull", "rtmo-x")):
        done = box.run("models", *arguments, "--catalogue", catalogue)
        hint = "(hint: leave out --catalogue to use the shipped one)"
        assert (done.returncode, done.stderr) == (FAILED, f"error: {catalogue}: the catalogue is empty {hint}\n")


def test_a_newer_version_of_the_catalogue_is_pulled_without_being_asked(
    box: Box, model: Path, server: FileServer
) -> None:
    box.run("models", "pull", "rtmo-x", "--catalogue", box.catalogue(entry(model, server.url())))
    newer = box.catalogue(entry(model, server.url(), version="2021.1"))
    assert box.run("models", "pull", "rtmo-x", "--catalogue", newer).returncode == GOOD
    assert "2021.1" in box.run("models", "verify", "rtmo-x").stdout


def test_a_machine_without_network_is_told_how_to_go_on(box: Box, model: Path) -> None:
    catalogue = box.catalogue(entry(model, "https://host.invalid/model.onnx"))
    done = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue)
    assert done.returncode == FAILED
    assert "There is no network here" in done.stderr
    assert "Traceback" not in done.stderr
    by_hand = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue, "--file", model)
    assert (by_hand.returncode, box.pulled.is_dir()) == (GOOD, True)


@pytest.mark.parametrize("name", ["broken.onnx", "broken.zip"])
def test_a_broken_file_is_called_as_the_user_called_it(box: Box, model: Path, name: str) -> None:
    file = box.folder / name
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/end2end.onnx", "garbage")
    else:
        file.write_text("garbage")
    catalogue = box.catalogue(entry(model, "https://host.invalid/model.onnx"))
    arguments = ("models", "pull", "rtmo-x", "--catalogue", catalogue, "--file", name)
    done = box.run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (FAILED, 1)
    assert done.stderr.startswith(f"error: {name}: not the file of the catalogue: sha256 is ")
    done = box.run(*arguments, "--allow-unverified")
    assert (done.returncode, done.stderr) == (FAILED, f"error: {name}: is not an ONNX file\n")


def test_a_broken_model_of_a_source_is_named_after_the_source(box: Box, model: Path, server: FileServer) -> None:
    server.files["/model.onnx"] = b"garbage"
    garbage = box.folder / "garbage"
    garbage.write_bytes(b"garbage")
    done = box.run("models", "pull", "rtmo-x", "--catalogue", box.catalogue(entry(garbage, server.url())))
    assert done.returncode == FAILED
    assert done.stderr.splitlines()[-1] == "  somewhere: is not an ONNX file"


def test_ctrl_c_keeps_what_came_and_the_next_pull_goes_on(box: Box, model: Path, server: FileServer) -> None:
    server.plan = [stall_after(200_000)]
    catalogue = box.catalogue(entry(model, server.url()))
    process = box.start("models", "pull", "rtmo-x", "--catalogue", catalogue)
    deadline_s = time.monotonic() + 60
    while not any(part.stat().st_size >= 65_536 for part in box.state.glob("models/partial/*.part")):
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in stderr
    assert not box.pulled.exists()
    assert box.run("models", "pull", "rtmo-x", "--catalogue", catalogue).returncode == GOOD
    assert server.requests[-1][1]["range"].startswith("bytes=")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own for localhost; `cert.pem` and `key.pem`."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure(model: Path, authority: Path) -> Iterator[FileServer]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    with serving({"/model.onnx": model.read_bytes()}, tls) as running:
        yield running


def test_https_goes_through_a_tunnel_of_the_proxy(box: Box, model: Path, secure: FileServer, authority: Path) -> None:
    catalogue = box.catalogue(entry(model, secure.url(host="localhost")))
    with proxying() as proxy:
        trusted = {"SSL_CERT_FILE": str(authority / "cert.pem"), "HTTPS_PROXY": proxy.url}
        done = box.run_process("models", "pull", "rtmo-x", "--catalogue", catalogue, **trusted)
        assert (done.returncode, done.stderr.count("error")) == (GOOD, 0), done.stderr
        assert proxy.seen == [f"CONNECT localhost:{secure.port}"]


def test_a_certificate_that_nobody_vouches_for_is_refused(box: Box, model: Path, secure: FileServer) -> None:
    catalogue = box.catalogue(entry(model, secure.url(host="localhost")))
    done = box.run("models", "pull", "rtmo-x", "--catalogue", catalogue)
    assert done.returncode == FAILED
    assert "no trustworthy TLS connection" in done.stderr
    assert secure.requests == []


def test_https_never_steps_down_to_http(box: Box, model: Path, secure: FileServer, authority: Path) -> None:
    secure.plan = [redirect("http://192.0.2.1/model.onnx")]
    catalogue = box.catalogue(entry(model, secure.url(host="localhost")))
    trusted = {"SSL_CERT_FILE": str(authority / "cert.pem")}
    done = box.run_process("models", "pull", "rtmo-x", "--catalogue", catalogue, **trusted)
    assert done.returncode == FAILED
    assert "redirects from https to http (192.0.2.1): refused" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pull", "rtmo-xxl"), FAILED, "the catalogue has no 'rtmo-xxl' (hint: it has rtmo-t, rtmo-s, rtmo-m, rtmo-l)"),
        (("verify", "moon"), FAILED, "moon: no such model"),
        (("bench", "rtmo-s"), FAILED, "recognizer-agent models pull rtmo-s"),
        (("bench", "fight-stgcn", "--provider", "cuda:7"), CONFIG, "--provider: device 'cuda:7' needs"),
        (("bench", "fight-stgcn", "--provider", "npu"), USAGE, "expected cpu, cuda[:N] or tensorrt[:N], got 'npu'"),
        (("verify", "--device", "auto"), USAGE, "expected cpu, cuda[:N] or tensorrt[:N], got 'auto'"),
        (("build", "--device", "gpu"), USAGE, "got 'gpu'"),
        (("bench", "fight-stgcn", "--threads", "-1"), USAGE, "expected 1 or more"),
        (("bench", "fight-stgcn", "--batch", "0"), USAGE, "expected 1 or more"),
        (("pull", "rtmo-s", "--file", "x", "--from", "y"), USAGE, "not allowed with argument"),
        (("pull", "rtmo-s", "--file", "/none/model.onnx"), FAILED, "/none/model.onnx"),
        (("list", "--catalogue", "/none/catalogue.json"), FAILED, "the catalogue cannot be read"),
    ],
)
def test_wrong_arguments_are_answered_with_a_hint(box: Box, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = box.run("models", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# --- bench, build -----------------------------------------------------------------------------------------------------


def test_bench_measures_both_sessions_side_by_side(box: Box) -> None:
    bundle = make_bundle(box.folder / "tiny")
    done = box.run("models", "bench", bundle, "--batch", "1,3", "--seconds", "0.1", "--threads", "1", "--json")
    assert done.returncode == GOOD, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "tiny 1.0.0"
    assert [(one["device"], one["batch"]) for one in report["measured"]] == [("cpu", 1), ("cpu", 3)]
    for one in report["measured"]:
        assert one["pairs"] >= 10
        assert 0 < one["agent_ms"] <= one["agent_p95_ms"]
        assert one["per_second"] == pytest.approx(1e3 * one["batch"] / one["agent_ms"])
        assert 0.1 < one["ratio"] < 10
    table = box.run("models", "bench", bundle, "--batch", "2", "--seconds", "0.1")
    title, columns, row = table.stdout.splitlines()
    assert title.startswith("tiny 1.0.0, sha256 ")
    assert "agent / bare" in columns
    assert row.split()[:2] == ["cpu", "2"]
    assert table.stderr == ""


@pytest.mark.parametrize("shape", [["batch", 3, 64], ["batch", 3, 64, 96, 1], []])
def test_bench_refuses_a_bundle_whose_graph_is_not_what_its_manifest_says(box: Box, shape: list[object]) -> None:
    inputs = [{"name": "input", "shape": shape, "preprocessing": {"kind": "letterbox"}}]
    bundle = make_bundle(box.folder / "tiny", golden=False, inputs=inputs)
    done = box.run("models", "bench", bundle, "--batch", "1", "--seconds", "0.1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
    shown = ", ".join(map(str, shape))
    assert f"input 'input' should have the shape ({shown}), the graph says input (?, 3, 64, 96) float32" in done.stderr
    assert f"(hint: mend the manifest, then `recognizer-agent models verify {bundle}`)" in done.stderr


@pytest.mark.parametrize(("batch", "measured"), [("200000000", []), ("2,1,200000000,3", ["2", "1"])])
def test_bench_of_a_batch_that_no_memory_holds_says_so_after_what_it_has_measured(
    box: Box, batch: str, measured: list[str]
) -> None:
    command = ("models", "bench", make_bundle(box.folder / "tiny"), "--batch", batch, "--seconds", "0.1")
    done, as_json = box.run(*command), box.run(*command, "--json")
    assert (done.returncode, as_json.returncode) == (FAILED, FAILED)
    assert [row.split()[1] for row in done.stdout.splitlines()[2:]] == measured
    report = json.loads(as_json.stdout) if as_json.stdout else {"measured": []}
    assert [str(one["batch"]) for one in report["measured"]] == measured
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "a batch of 200000000 is too large: input (?, 3, 64, 96) float32 takes 14,745.6 GB, the memory here" in error
    assert error.endswith("(hint: a smaller --batch)")


def test_bench_of_a_graph_that_runs_out_of_memory_says_so(box: Box) -> None:
    """In a process that may have so little: the input fits, what is computed from it does not."""
    command = [sys.executable, "-m", "agent", "models", "bench", make_bundle(box.folder / "tiny"), "--seconds", "0.1"]
    limit = 4_000_000_000
    done = subprocess.run(
        [*map(str, command), "--batch", "20000"], env=box.environment, cwd=box.folder, text=True, capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)), check=False,
    )  # fmt: skip
    assert done.returncode == FAILED
    assert "Traceback" not in done.stderr
    assert "error: a batch of 20000 is too large: " in done.stderr


def test_bench_wants_an_input_whose_first_size_is_the_batch(box: Box) -> None:
    scalar = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "scalar", [scalar], [answer])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), box.folder / "s.onnx"
    )
    done = box.run("models", "bench", "s.onnx", "--seconds", "0.1")
    assert done.returncode == FAILED
    assert done.stderr == "error: s: the first size of the input should be the batch, the graph takes x () float32\n"


def test_build_says_what_is_missing(box: Box) -> None:
    done = box.run("models", "build", make_bundle(box.folder / "tiny"))
    if TENSORRT in done.stderr:
        assert "no TensorRT here, nothing to build: onnxruntime" in done.stderr
    assert done.returncode == FAILED


CPU_ONLY = ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Accelerators("1.32.0", CPU_ONLY), "has no TensorrtExecutionProvider, only CPUExecutionProvider"),
        (Accelerators("1.32.0", (TENSORRT, *CPU_ONLY), problem="no NVIDIA driver"), "no GPU: no NVIDIA driver"),
        (Accelerators("1.32.0", (TENSORRT, *CPU_ONLY), ("GPU",)), "libnvinfer cannot be loaded"),
    ],
)
def test_each_missing_piece_of_tensorrt_has_its_own_words(machine: Accelerators, words: str) -> None:
    assert words in missing_tensorrt(machine)


@pytest.mark.parametrize(
    ("make", "title"), [(make_bundle, "tiny 1.0.0"), (partial(derive, "fall-stgcn"), "fall-stgcn 0.5.0")]
)
def test_a_build_that_fails_says_why_and_exits_with_one(
    box: Box, capfd: pytest.CaptureFixture[str], make: Callable[[Path], Path], title: str
) -> None:
    """The real builder process, on a machine believed to have TensorRT."""
    import onnxruntime

    if TENSORRT in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    believed = Accelerators("1.32.0", (TENSORRT, *CPU_ONLY), ("Pretend GPU (9.9)",), "1", "10.0.0")
    assert missing_tensorrt(believed) == ""
    bundle = make(box.folder / "bundle")
    config = load_config([], env={"STATE_DIRECTORY": str(box.state)})
    assert build(config, bundle, device="tensorrt", precision="", machine=believed) == FAILED
    said = capfd.readouterr().err
    assert f"{title}: building" in said
    assert f"error: {title}: the engine build failed: " in said
    assert "no TensorrtExecutionProvider" in said
    with pytest.raises(ModelError, match="nothing to build: the configuration names no model for TensorRT"):
        build(config, None, device="tensorrt", precision="", machine=believed)
