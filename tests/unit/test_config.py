"""Configuration: layers, variables, paths, and errors that say where and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent.config.load import load_config
from agent.config.reload import compare
from agent.config.schema import AgentConfig
from agent.errors import ConfigError
from agent.masking import mask_text


def write(folder: Path, text: str, name: str = "agent.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config([path], env=env)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_carry_the_required_rules() -> None:
    services = load_config(env={}).services
    fight, fall = services["fight"].rules, services["fall"].rules
    assert (fight.alert_threshold, fight.alert_count, fight.normal_threshold, fight.normal_count) == (0.8, 3, 0.5, 2)
    assert (fall.alert_threshold, fall.alert_count, fall.normal_threshold, fall.normal_count) == (0.6, 2, 0.4, 3)
    assert services["fall"].selection == {
        "height_change": 0.35, "posture_angle": 0.25, "movement": 0.2, "persistence": 0.15, "position": 0.05,
    }  # fmt: skip


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    site = write(tmp_path, "mqtt: {host: a.example, port: 1}\n", "site.yaml")
    box = write(tmp_path, "mqtt: {port: 2}\n", "box.yaml")
    mqtt = load_config([site, box], env={}).mqtt
    assert (mqtt.host, mqtt.port) == ("a.example", 2)


def test_the_model_for_cpus_goes_with_the_model_that_it_stands_in_for(tmp_path: Path) -> None:
    site = write(tmp_path, "pose: {model: /m, cpu_model: /m-int8}\n", "site.yaml")
    box = write(tmp_path, "pose: {threads: 2}\n", "box.yaml")
    assert load_config([site, box], env={}).pose.cpu_model == Path("/m-int8")
    other = write(tmp_path, "pose: {model: /other}\n", "other.yaml")
    pose = load_config([site, other], env={}).pose
    assert (pose.model, pose.cpu_model) == (Path("/other"), None)


def test_variables_are_filled_in_and_keep_their_type(tmp_path: Path) -> None:
    text = (
        "mqtt:\n  host: '${HOST}'\n  port: ${PORT:-1884}\n  username: $${x}\n"
        "pose:\n  options:\n    n: ${N}\n    s: '${N}'\n"
    )
    config = load_config([write(tmp_path, text)], env={"HOST": "broker", "N": "5"})
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.username) == ("broker", 1884, "${x}")
    assert config.pose.options == {"n": 5, "s": "5"}


@pytest.mark.parametrize("text", ["1042", "0042", "yes", "null", "~", "", "2024-01-01", "1:30"])
def test_a_variable_that_yaml_takes_for_something_else_is_shown_as_filled_in(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "mqtt:\n  username: ${NAME:-}\n  password: ${SECRET}\n  password_file: ${FILE}\n")
    hint = '(hint: write "${NAME}" in quotes: then it is text, whatever is filled in)'
    shown, masked, file = problems(path, NAME=text, SECRET=text, FILE="7")
    assert shown == f"{path}:2:mqtt.username: Input should be a valid string, got {text!r} {hint}"
    assert masked == f"{path}:3:mqtt.password: Input should be a valid string {hint}"
    assert file.startswith(f"{path}:4:mqtt.password_file: ")
    assert file.endswith(hint)
    assert [mask_text(line) for line in (shown, masked, file)] == [shown, masked, file]


@pytest.mark.parametrize("text", ["=", "<<", "2024-99-99"])
def test_a_variable_that_yaml_cannot_make_anything_of_has_the_hint_too(tmp_path: Path, text: str) -> None:
    (problem,) = problems(write(tmp_path, "mqtt:\n  password: ${SECRET}\n"), SECRET=text)
    assert 'write "${NAME}" in quotes' in problem


def test_what_was_not_filled_in_has_no_hint_about_variables(tmp_path: Path) -> None:
    site = write(tmp_path, "mqtt: {username: '${NAME}'}\ndevice_id: ${BOX}\n", "site.yaml")
    box = write(tmp_path, "device_id: 1042\n", "box.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config([site, box], env={"NAME": "0042", "BOX": "0042"})
    assert str(caught.value) == f"{box}:1:device_id: Input should be a valid string, got '1042'"


def test_a_device_may_be_called_by_a_number(repo_dir: Path) -> None:
    assert load_config(env={"RECOGNIZER_DEVICE_ID": "0042"}).device_id == "0042"
    service = repo_dir / "systemd" / "agent.yaml"
    assert load_config([service], env={"RECOGNIZER_DEVICE_ID": "0042"}).device_id == "0042"


def test_unset_variable_names_line_and_hint(tmp_path: Path) -> None:
    path = write(tmp_path, "mqtt:\n  port: ${BROKER_PORT}\n")
    (text,) = problems(path)
    assert text.startswith(f"{path}:2:mqtt.port: the environment variable BROKER_PORT is not set (hint: set it ")


def test_what_is_to_be_done_about_a_password_that_is_not_set_can_be_read(tmp_path: Path) -> None:
    (text,) = problems(write(tmp_path, "mqtt:\n  password_file: ${BROKER_PASSWORD}\n"))
    assert mask_text(text) == text


@pytest.mark.parametrize("text", ["a${B:***}c", "${B", "${}", "${1}", "${B-x}", "${B:-x", "${ B }", "$$${"])
def test_what_names_no_variable_is_not_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"mqtt:\n  host: '{text}'\n")
    assert problems(path, B="b") == [
        f"{path}:2:mqtt.host: a ${{ that names no variable (hint: write ${{NAME}} or ${{NAME:-default}}, and $$ for a dollar sign)"
    ]


def test_who_may_not_read_the_file_is_told_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)  # root may read every file
    assert problems(tmp_path / "agent.yaml")[-1].endswith(
        "cannot be read: Permission denied (hint: run the command with sudo)"
    )


def test_all_errors_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "cameras:\n  - id: door\n    source: 0\n    fps_max: 3\n  - id: 'a b'\n    source: x.mp4\n"
        "mqtt: {prot: 5}\nservices: {fight: {rules: {alert_threshold: 0.3}}}\n",
    )
    found = problems(path)
    assert [text.split(":")[1:3] for text in found] == [
        ["4", "cameras.0.fps_max"], ["5", "cameras.1.id"], ["8", "services.fight.rules"], ["7", "mqtt.prot"],
    ]  # fmt: skip
    assert "did you mean 'protocol'?" in found[3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "the top level must be a mapping"),
        ("mqtt: {port: 1}\nmqtt: {port: 2}\n", "given twice"),
        ("mqtt: {port: 70000}\n", "less than or equal to 65535, got '70000'"),
        ("cameras: [{id: a, source: '0'}, {id: a, source: '1'}]\n", "two cameras have the id 'a'"),
        ("cameras: [{id: a, source: '0', services: [dance]}]\n", "unknown service 'dance' (known: fall, fight)"),
        (
            'mqtt: {host: "mqtt://u:s3cret@192.0.2.2:1883"}\n',
            "agent.yaml:1:mqtt.host: must be a name or an address alone, no URL: port and tls are keys of their own, got 'mqtt://***@",
        ),
        ("mqtt: {tls: {cert_file: a.pem}}\n", "cert_file and key_file go together"),
        ("cameras: [{id: a}]\n", "required key is missing"),
        ("state_dir: ~nobody-has-this-name/x\n", "agent.yaml:1:state_dir: there is no home folder for its ~"),
        ("pose: {model: ~nobody-has-this-name/m}\n", "agent.yaml:1:pose.model: there is no home folder for its ~"),
        ('state_dir: "a\\0b"\n', "agent.yaml:1:state_dir: a path cannot hold a NUL character"),
        ("log: {level: !!bool maybe}\n", "agent.yaml:1:log.level: not a valid value: 'maybe' is no bool"),
        ('http: {port: !!int ""}\n', "agent.yaml:1:http.port: not a valid value: '' is no int"),
        ("device_id: !!timestamp soon\n", "agent.yaml:1:device_id: not a valid value: 'soon' is no timestamp"),
        ("health: {probe_interval_s: .inf}\n", "health.probe_interval_s: expected a number up to 1000000000"),
        ("outbox: {history_days: 1.0e+300}\n", "outbox.history_days: Input should be less than or equal to 36500"),
        ("cameras: [{id: a, source: '0', max_fps: .nan}]\n", "cameras.0.max_fps: Input should be greater than"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(problems(write(tmp_path, text)))


def test_a_mistake_in_a_list_is_looked_for_in_the_file_whose_list_it_is(tmp_path: Path) -> None:
    site = write(tmp_path, "cameras:\n  - id: a\n    source: '0'\nmqtt: {port: 0}\n", "site.yaml")
    box = write(tmp_path, "cameras:\n\n\n  - id: b\n", "box.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config([site, box], env={})
    found = [(Path(problem.file).name, problem.line, problem.path) for problem in caught.value.problems]
    assert found == [("box.yaml", 4, "cameras.0.source"), ("site.yaml", 4, "mqtt.port")]


def test_the_variable_for_models_is_named_where_it_is_no_path(tmp_path: Path) -> None:
    (text,) = problems(write(tmp_path, "{}\n"), RECOGNIZER_MODELS="~nobody-has-this-name/models")
    assert text.startswith("RECOGNIZER_MODELS: there is no home folder for its ~")


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "absent.yaml: cannot be read: No such file" in problems(tmp_path / "absent.yaml")[0]


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(path)[0]


@pytest.mark.parametrize("text", ["cameras: &a [*a]\n", "cameras: &a {b: *a}\n", "[" * 5000])
def test_what_is_nested_without_end_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "loop.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"loop\.yaml: nested without end, or too deeply"):
        load_config([tmp_path / "loop.yaml"], env={})


def test_aliases_of_aliases_are_not_written_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]
    (text,) = problems(write(tmp_path, "\n".join(lines)))
    assert "agent.yaml: more than 100,000 values (hint: look for aliases" in text


def test_relative_paths_belong_to_the_file_that_names_them(tmp_path: Path) -> None:
    text = "state_dir: var\ncameras:\n  - {id: f, source: clip.mp4}\n  - {id: v, source: 0}\n  - {id: r, source: 'rtsp://x/y'}\n"
    config = load_config([write(tmp_path, text)], env={})
    assert config.state_dir == tmp_path / "var"
    assert [camera.source for camera in config.cameras] == [str(tmp_path / "clip.mp4"), "0", "rtsp://x/y"]


@pytest.mark.parametrize("password", ["hunter2", "hunt@er2", "hunt/er2", "hunt?er2"])
def test_no_part_of_a_password_is_in_a_message(tmp_path: Path, password: str) -> None:
    (problem,) = problems(write(tmp_path, f"update: {{server: 'https://me:{password}@fleet.example/'}}\n"))
    assert "er2" not in problem
    assert "https://***@fleet.example/" in problem


def test_password_is_not_in_the_repr(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load_config([write(tmp_path, "mqtt: {password: hunter2}\n")], env={}))


def base(**update: object) -> AgentConfig:
    return AgentConfig.model_validate({"services": {"fight": {"model": "/m"}}} | update)


def test_reload_applies_rules_live_and_leaves_the_broker_for_a_restart() -> None:
    new = base(
        services={"fight": {"model": "/m", "rules": {"alert_threshold": 0.9}}},
        mqtt={"port": 1999},
        log={"level": "debug"},
    )
    change = compare(base(), new)
    assert change.live == ("services.fight.rules.alert_threshold", "log.level")
    assert change.restart == ("mqtt.port",)
    assert change.effective.services["fight"].rules.alert_threshold == 0.9
    assert change.effective.mqtt.port == 1883


def test_reload_without_change_is_empty() -> None:
    change = compare(base(), base())
    assert (change.live, change.restart, change.effective) == ((), (), base())


def test_cameras_come_and_go_live() -> None:
    change = compare(base(), base(cameras=[{"id": "door", "source": "0"}]))
    assert change.live == ("cameras",)
    assert change.effective.cameras[0].id == "door"


def test_new_service_needs_a_restart() -> None:
    change = compare(base(), base(services={"fight": {"model": "/m"}, "fall": {"model": "/n"}}))
    assert change.restart == ("services.fall",)
    assert list(change.effective.services) == ["fight"]


def test_what_else_changed_beside_a_new_service_is_applied() -> None:
    new = base(services={"fight": {"model": "/m", "rules": {"alert_threshold": 0.9}}, "fall": {"model": "/n"}})
    change = compare(base(), new)
    assert (change.live, change.restart) == (("services.fight.rules.alert_threshold",), ("services.fall",))
    assert change.effective.services["fight"].rules.alert_threshold == 0.9


def test_a_service_that_is_gone_serves_until_the_restart() -> None:
    change = compare(base(services={"fight": {"model": "/m"}, "fall": {"model": "/n"}}), base())
    assert change.restart == ("services.fall",)
    assert list(change.effective.services) == ["fight", "fall"]


@pytest.mark.parametrize(
    ("before", "wanted", "until_the_restart"),
    [
        (["fight"], ["push"], ("fight",)),
        (None, ["push"], None),
        (["fight"], ["push", "fight"], ("fight",)),
        (["fight"], [], ()),
        (["fight"], None, None),
    ],
)
def test_a_camera_is_not_left_to_a_service_that_does_not_run_yet(
    before: list[str] | None, wanted: list[str] | None, until_the_restart: tuple[str, ...] | None
) -> None:
    old = base(cameras=[{"id": "yard", "source": "0", "services": before}])
    services = {"fight": {"model": "/m"}, "push": {"model": "/p"}}
    change = compare(old, base(cameras=[{"id": "yard", "source": "1", "services": wanted}], services=services))
    (yard,) = change.effective.cameras
    assert (yard.source, yard.services) == ("1", until_the_restart)
    assert ("cameras.yard.services" in change.restart) is ("push" in (wanted or ()))
    assert AgentConfig.model_validate(change.effective.model_dump()) == change.effective


def test_a_new_camera_that_nobody_could_watch_waits_for_the_restart() -> None:
    services = {"fight": {"model": "/m"}, "push": {"model": "/p"}}
    change = compare(base(), base(cameras=[{"id": "yard", "source": "0", "services": ["push"]}], services=services))
    assert change.effective.cameras == ()
    assert change.restart == ("services.push", "cameras.yard.services")


@pytest.mark.parametrize("name", ["default", "one-camera", "four-cameras", "jetson", "pose-nano", "posenet"])
def test_shipped_configurations_are_valid(repo_dir: Path, name: str) -> None:
    env = {"POSENET_MODEL": "/m.tflite"}
    config = load_config([repo_dir / "configs" / f"{name}.yaml"], env=env, need_pulled_models=False)
    assert sorted(config.services) == ["fall", "fight"]


@pytest.mark.parametrize("name", ["one-camera", "four-cameras", "jetson"])
def test_an_example_for_a_box_has_the_places_of_the_installation(repo_dir: Path, name: str) -> None:
    config = load_config([repo_dir / "configs" / f"{name}.yaml"], env={}, need_pulled_models=False)
    installed = load_config([repo_dir / "systemd" / "agent.yaml"], env={})
    assert config.state_dir == installed.state_dir == Path("/var/lib/recognizer")
    assert config.mqtt.password_file in {None, installed.mqtt.password_file}
    assert config.pose.model is not None
    assert config.pose.model.parent == Path("/var/lib/recognizer/models/pulled"), "where `models pull` puts it"


def test_every_shipped_configuration_is_in_the_test_above(repo_dir: Path) -> None:
    named = {path.stem for path in (repo_dir / "configs").glob("*.yaml")} - {"release-gate"}  # bars, not settings
    assert named == {"default", "one-camera", "four-cameras", "jetson", "pose-nano", "posenet"}
