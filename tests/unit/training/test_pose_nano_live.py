"""Batches made on a device are what the single views and targets are; a training that takes pictures in as they come."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch, the agent does not")

from pose_nano import augment, losses, targets  # noqa: E402  # after the skip
from pose_nano.augment import Recipe  # noqa: E402
from pose_nano.live import distort, views  # noqa: E402
from pose_nano.live.ahead import GraphTrainer, ahead  # noqa: E402
from pose_nano.live.pool import MOST_PEOPLE, Crowd, Pictures, Pool, read_pictures  # noqa: E402
from pose_nano.live.targets import draw  # noqa: E402
from pose_nano.live.train import Clock, main, read_plan  # noqa: E402
from pose_nano.network import Maps, PoseNano  # noqa: E402
from pose_nano.store import PAD, Annotations, ShardWriter  # noqa: E402
from pose_nano.train import Plan, Trainer  # noqa: E402
from test_pose_nano_data import person  # noqa: E402

HEIGHT, WIDTH = 192, 256
CPU = torch.device("cpu")


def somebody(rng: np.random.Generator) -> Annotations:
    """Nobody to five people, some hidden, some outside, some unknown."""
    parts = []
    for _ in range(int(rng.integers(0, 6))):
        one = person(
            x=float(rng.uniform(-20, WIDTH)), y=float(rng.uniform(-20, HEIGHT)), scale=float(rng.uniform(1, 7.5))
        )
        seen = rng.choice([1.0, 0.4, -1.0, 0.0], size=(1, 17)).astype(np.float32)
        weights = np.where(seen == 0, 0, rng.uniform(0.2, 1, (1, 17))).astype(np.float32)
        parts.append(replace(one, seen=seen, weights=weights, labelled=rng.random(1) < 0.8))
    return Annotations.joined(parts)


def crowd_of(pictures: list[Annotations]) -> Crowd:
    crowd = Crowd.empty(len(pictures), MOST_PEOPLE)
    for row, people in enumerate(pictures):
        for field in fields(Annotations):
            getattr(crowd, field.name)[row, : len(people)] = torch.from_numpy(getattr(people, field.name))
        crowd.there[row, : len(people)] = True
    return crowd


def people_of(crowd: Crowd, row: int) -> Annotations:
    there = crowd.there[row]
    return Annotations(*(getattr(crowd, field.name)[row][there].numpy() for field in fields(Annotations)))


def same(have: Annotations, want: Annotations) -> None:
    assert len(have) == len(want)
    for field in fields(Annotations):
        np.testing.assert_allclose(getattr(have, field.name), getattr(want, field.name), atol=2e-3, err_msg=field.name)


def test_targets_of_a_batch_are_those_of_each_picture() -> None:
    rng = np.random.default_rng(3)
    pictures = [augment.clip(somebody(rng), (HEIGHT, WIDTH)) for _ in range(40)]
    batch = draw(crowd_of(pictures).packed(), HEIGHT, WIDTH)
    for row, people in enumerate(pictures):
        single = targets.draw(people, HEIGHT, WIDTH)
        owned, near = single.owner_weight > 0, single.offset_weight > 0
        for name in ("centres", "keypoints", "owner_weight", "pose_weight", "offset_weight"):
            np.testing.assert_allclose(getattr(batch, name)[row], getattr(single, name), atol=1e-4, err_msg=name)
        # What does not count may be anything.
        np.testing.assert_allclose(batch.boxes[row].numpy()[owned], single.boxes[owned], atol=1e-3)
        np.testing.assert_allclose(batch.poses[row].numpy()[..., owned], single.poses[..., owned], atol=1e-3)
        np.testing.assert_allclose(batch.pose_scale[row].numpy()[:, owned], single.pose_scale[:, owned], rtol=1e-4)
        for axis in (0, 1):
            np.testing.assert_allclose(
                batch.offsets[row, :, axis].numpy()[near], single.offsets[:, axis][near], atol=1e-3
            )
        np.testing.assert_allclose(batch.offset_scale[row].numpy()[near], single.offset_scale[near], rtol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 5.0, 70.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_people_and_pictures_go_through_a_map_as_single_ones_do(angle: float, mirrored: bool) -> None:
    rng = np.random.default_rng(5)
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag(
        [-1.2 if mirrored else 1.2, 1.1]
    )
    shift = np.array([90.0, 100.0]) - matrix @ np.array([128.0, 96.0])
    affine = np.concatenate([matrix, shift[:, None]], axis=1).astype(np.float32)
    pictures = [somebody(rng) for _ in range(20)]
    canvas = (160, 224)
    batch = views.clip(
        views.transform(
            crowd_of(pictures),
            torch.from_numpy(affine).expand(len(pictures), -1, -1),
            straight=torch.full((len(pictures),), angle < augment.STRAIGHT_DEGREES),
            mirrored=torch.full((len(pictures),), mirrored),
        ),
        canvas,
    ).packed()
    for row, people in enumerate(pictures):
        moved = augment.transform(people, affine, straight=angle < augment.STRAIGHT_DEGREES, mirrored=mirrored)
        same(people_of(batch, row), augment.clip(moved, canvas))

    image = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8), (0, 0), 3)
    images = torch.full((2, 480, 640, 3), 7, dtype=torch.uint8)
    images[1, :HEIGHT, :WIDTH] = torch.from_numpy(image)
    have = views.warp(
        images, torch.tensor([1]), torch.tensor([[HEIGHT, WIDTH]]).float(), torch.from_numpy(affine)[None], canvas
    )[0]
    want = cv2.warpAffine(image, affine, canvas[::-1], borderMode=cv2.BORDER_CONSTANT, borderValue=(PAD,) * 3)
    difference = np.abs(have.permute(1, 2, 0).numpy() - want)
    assert difference.mean() < 0.5  # OpenCV rounds places to 1/32 px
    assert np.quantile(difference, 0.999) <= 4


def pool_of(tmp_path: Path, count: int) -> Pool:
    writer, rng = ShardWriter(tmp_path / "real-0", count), np.random.default_rng(1)
    for _ in range(count):
        writer.add(rng.integers(0, 256, (360, 640, 3)).astype(np.uint8), person(x=200.0, y=180.0, scale=12.5))
    writer.close()
    pool = Pool({"real": 8, "other": 4}, CPU)
    pool.add("real", read_pictures(tmp_path / "real-0"))
    return pool


def test_views_show_people_where_they_say(tmp_path: Path) -> None:
    pool, generator = pool_of(tmp_path, 6), torch.Generator().manual_seed(1)
    places = pool.draw({"real": 1.0, "other": 5.0}, 32, generator)
    assert set(places.tolist()) <= set(range(6))  # the other section has none yet
    image, crowd = views.view(pool, places, Recipe(canvas=(128, 160), lying=0.5), generator)
    assert image.shape == (32, 3, 128, 160)
    assert 0 <= float(image.min()) <= float(image.max()) <= 255
    assert torch.equal(image, image.round())
    assert crowd.there.any(dim=1).float().mean() > 0.8
    boxes = crowd.boxes[crowd.there]
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([160, 128, 160, 128])).all()


def test_new_pictures_take_the_place_of_the_oldest(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 6)
    again = Pictures(
        torch.full((5, 480, 640, 3), 9, dtype=torch.uint8), torch.full((5, 2), 300), Crowd.empty(5, MOST_PEOPLE)
    )
    pool.add("real", again)
    pool.add("other", again)  # of which there is room for four
    assert (pool.images[:, 0, 0, 0] == 9).tolist() == [True] * 3 + [False] * 3 + [True] * 6
    assert pool.taken_in() == {"real": 11, "other": 4}
    with pytest.raises(ValueError, match="no pictures yet in plays"):
        Pool({"plays": 3}, CPU).draw({"plays": 1.0}, 1, torch.Generator())


def test_what_jpeg_loses_is_what_opencv_s_loses() -> None:
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3)).astype(np.uint8), (0, 0), 2.5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    generator = torch.Generator().manual_seed(4)
    quality = float(distort.uniform(torch.Generator().manual_seed(4), 1, 1, 1, 1, 1, 1, low=12.0, high=70.0))
    have = distort._compressed(torch.from_numpy(image).permute(2, 0, 1)[None].float(), generator)[0]
    _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    want = cv2.imdecode(packed, cv2.IMREAD_COLOR).astype(np.float32)
    lost = np.abs(image - want).mean()
    assert np.abs(have.permute(1, 2, 0).numpy() - want).mean() < lost / 2


def crowded_batch() -> losses.Batch:
    rng = np.random.default_rng(3)
    return draw(crowd_of([augment.clip(somebody(rng), (HEIGHT, WIDTH)) for _ in range(8)]).packed(), HEIGHT, WIDTH)


def test_a_gpu_learns_what_a_cpu_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills cells that do not count, where a CPU leaves them out."""
    batch, generator = crowded_batch(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        image = torch.rand(8, 3, HEIGHT, WIDTH, generator=generator) * 255
        said = PoseNano()(image)

    def maps() -> Maps:
        return Maps(*(getattr(said, field.name).clone().requires_grad_() for field in fields(Maps)))

    alone, filled = maps(), maps()
    losses.total(losses.losses(alone, batch)).backward()
    monkeypatch.setattr(losses._Few, "__call__", lambda few, values, filling=0.0: few.filled(values, filling))
    losses.total(losses.losses(filled, batch)).backward()
    for field in fields(Maps):
        have, want = getattr(filled, field.name).grad, getattr(alone, field.name).grad
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-7, msg=field.name)


def test_nothing_of_a_step_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph cannot hold what depends on values; the device `meta` has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which it does not know
    meta = torch.device("meta")
    trainer = Trainer(Plan(1e-3, 10, 0), meta, bfloat16=False)
    for _ in range(2):  # the first makes the optimiser's state
        parts = trainer.step(torch.zeros(3, 3, 64, 96, device=meta), draw(Crowd.empty(3, 2, meta), 64, 96))
    assert parts["total"].shape == ()
    assert trainer.seen == 6
    with pytest.raises(NotImplementedError, match="nonzero"):
        torch.zeros(3, device=meta).nonzero()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_is_a_step() -> None:
    device = torch.device("cuda")
    batch = crowded_batch()
    batch = losses.Batch(**{f.name: getattr(batch, f.name).to(device) for f in fields(losses.Batch)})
    torch.manual_seed(2)
    images = torch.rand(4, 8, 3, HEIGHT, WIDTH, device=device) * 255
    learnt = []
    for kind in (Trainer, GraphTrainer):
        torch.manual_seed(1)
        trainer = kind(Plan(1e-3, 1000, 0), device, bfloat16=False)
        if kind is Trainer:
            for _ in range(3):  # what a recording warms up with
                trainer.rate.fill_(trainer.plan.at(0))
                for group in trainer.optimiser.param_groups:
                    group["lr"] = trainer.rate
                trainer.learn(images[0], batch)
        learnt.append([float(trainer.step(image, batch)["total"]) for image in images])
    assert learnt[1] == pytest.approx(learnt[0], rel=2e-2)


def test_batches_are_made_one_ahead_and_in_order() -> None:
    made: list[int] = []
    batch = crowded_batch()

    def make() -> tuple[torch.Tensor, losses.Batch]:
        made.append(len(made))
        return torch.tensor(made[-1]), batch

    for number, (image, _) in zip(range(4), ahead(make, CPU), strict=False):
        assert int(image) == number


def test_rates_follow_the_time() -> None:
    clock = Clock(rate=1.0, minutes=10.0, decay=0.5)
    clock.started -= 240
    assert clock.at(0) == pytest.approx(1.0)
    clock.started -= 210
    assert clock.at(10**9) == pytest.approx(0.5, abs=0.01)
    clock.started -= 150
    assert clock.at(0) == pytest.approx(0.0, abs=0.001)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[pool]\nplays = 3\n[[mix]]\nshare = 1\nbatch = 2\nsources = { real = 1 }", "\\[pool\\] does not have: real"),
        ("[pool]\nplays = 3\n[[mix]]\nshare = 1\nsources = { plays = 1 }", "batch"),
        (
            "[pool]\nplays = 3\n[[mix]]\nshare = 1\nbatch = 2\ncanvas = [100, 64]\nsources = { plays = 1 }",
            "multiples of 32",
        ),
        ("[pool\n", "wanted: "),
    ],
)
def test_a_plan_that_is_wrong_says_so(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        read_plan(file)
    assert str(file) in str(caught.value)


def test_pictures_that_come_while_it_runs_are_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Recording a graph may take longer than the training.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        "[pool]\nplays = 8\n[[mix]]\nshare = 1\nbatch = 2\ncanvas = [64, 64]\nzoom = [0.8, 1.3]\nsources = { plays = 1 }\n"
    )
    start, shards = tmp_path / "start.pt", tmp_path / "shards"
    shards.mkdir()
    torch.save({"average": PoseNano().state_dict()}, start)

    def arrive(number: int) -> None:
        writer = ShardWriter(shards / f"plays-{number}", 4)
        for _ in range(4):
            writer.add(np.full((480, 640, 3), 90, np.uint8), person(x=200.0, y=180.0, scale=12.5))
        writer.close()

    arrive(1)
    later = threading.Timer(2.0, arrive, (2,))
    later.start()
    options = (
        f"--run {tmp_path / 'run'} --start {start} --shards {shards} --plan {plan} --minutes 0.2 --least 4 --report 1"
    )
    monkeypatch.setattr("sys.argv", ["train", *options.split()])
    main()
    later.join()
    assert not list(shards.iterdir())
    assert "8}" in capsys.readouterr().out.splitlines()[-1]  # pictures taken in, in the end
    learnt = torch.load(tmp_path / "run" / "average.pt", weights_only=True)["average"]
    first = torch.load(start, weights_only=True)["average"]
    assert not torch.equal(learnt["stem.0.weight"], first["stem.0.weight"])
    assert (tmp_path / "run" / "log.csv").read_text().startswith("seen,centres,")
