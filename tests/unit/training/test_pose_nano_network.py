"""Losses, decoder, checkpoints: what trained weights would do, tried on maps that are made up and on the smallest runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch, the agent does not")

from pose_nano.augment import MIRROR, Recipe  # noqa: E402  # after the skip
from pose_nano.decoder import DecoderOptions, PoseNanoDetector  # noqa: E402
from pose_nano.export import load_detector, save_weights  # noqa: E402
from pose_nano.geometry import POINT_STRIDE, STRIDE  # noqa: E402
from pose_nano.losses import Batch, focal, left_right_loss, losses, total  # noqa: E402
from pose_nano.network import Maps, PoseNano, Shape, parameter_count  # noqa: E402
from pose_nano.store import Annotations, ShardWriter  # noqa: E402
from pose_nano.stream import Mix, Views, batches, read_mixes  # noqa: E402
from pose_nano.targets import Targets, draw  # noqa: E402
from pose_nano.train import Plan, Trainer  # noqa: E402
from test_pose_nano_data import person  # noqa: E402

HEIGHT, WIDTH = 192, 256


def batch_of(people: Annotations) -> Batch:
    targets = draw(people, HEIGHT, WIDTH)
    return Batch(**{f.name: torch.from_numpy(getattr(targets, f.name))[None] for f in fields(Targets)})


def perfect_maps(people: Annotations) -> Maps:
    """What a network that learnt everything would say."""
    batch = batch_of(people)
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = (torch.stack([x, y]) + 0.5) * STRIDE
    boxes = batch.boxes.permute(0, 3, 1, 2)
    sides = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], dim=1)
    logit = lambda value: torch.logit(value.clamp(1e-4, 1 - 1e-4))  # noqa: E731  # used twice in one line
    return Maps(logit(batch.centres[:, None]), logit(batch.keypoints), sides.clamp(min=1), batch.poses, batch.offsets)


class Fixed(torch.nn.Module):
    """Says the same maps whatever it sees."""

    def __init__(self, maps: Maps) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, image: torch.Tensor) -> Maps:
        return self.maps


def decoded(people: Annotations, options: DecoderOptions | None = None) -> tuple[np.ndarray, np.ndarray]:
    detector = PoseNanoDetector(Fixed(perfect_maps(people)), options)  # type: ignore[arg-type]  # a stand-in by design
    dets, keypoints = detector(torch.zeros(1, 3, HEIGHT, WIDTH))
    rows = dets[0, :, 4] > 0.3
    return dets[0, rows].numpy(), keypoints[0, rows].numpy()


def test_the_network_is_within_its_budget() -> None:
    assert parameter_count(PoseNano()) <= 2_000_000


def test_perfect_maps_lose_next_to_nothing() -> None:
    people = Annotations.joined([person(x=60), person(x=180, scale=4)])
    parts = losses(perfect_maps(people), batch_of(people))
    assert float(parts["poses"]) == pytest.approx(0, abs=1e-5)
    assert float(parts["offsets"]) == pytest.approx(0, abs=1e-5)
    assert float(parts["sides"]) == pytest.approx(0, abs=1e-3)
    assert float(parts["keypoints"]) < 0.05


def test_unknown_cells_do_not_count() -> None:
    target = torch.tensor([[-1.0, 0.0, 1.0]])
    assert float(focal(torch.tensor([[9.0, -9.0, 9.0]]), target)) == pytest.approx(0, abs=1e-5)
    assert float(focal(torch.tensor([[-9.0, 9.0, 9.0]]), target)) > 1


def test_both_ankles_on_the_same_foot_cost_what_telling_them_apart_does_not() -> None:
    people = person(x=60)
    target = batch_of(people).keypoints
    told = left_right_loss(perfect_maps(people).keypoints, target)
    either = torch.maximum(target, target[:, MIRROR]).clamp(1e-4, 1 - 1e-4)
    assert float(told) < 0.05
    assert float(left_right_loss(torch.logit(either), target)) == pytest.approx(np.log(2), abs=1e-4)
    assert float(left_right_loss(torch.zeros_like(target), torch.full_like(target, -1))) == 0


def test_two_people_are_decoded_where_they_are() -> None:
    people = Annotations.joined([person(x=60), person(x=180, scale=4)])
    dets, keypoints = decoded(people)
    assert len(dets) == 2
    order = np.argsort(dets[:, 0])
    np.testing.assert_allclose(keypoints[order][..., :2], people.keypoints, atol=0.15)  # cells far off whisper
    np.testing.assert_allclose(dets[order, :4], people.boxes, atol=1.0)


def test_one_person_with_two_peaks_is_reported_once() -> None:
    maps = perfect_maps(person())
    row, column = divmod(int(maps.centres.argmax()), WIDTH // STRIDE)
    maps.centres[0, 0, row + 2, column] = 4.0  # a second peak, not next to the first
    maps.poses[0, :, :, row + 2, column] = maps.poses[0, :, :, row, column] - torch.tensor([0.0, 2.0 * STRIDE])
    maps.sides[0, :, row + 2, column] = maps.sides[0, :, row, column]
    dets, _ = PoseNanoDetector(Fixed(maps))(torch.zeros(1, 3, HEIGHT, WIDTH))  # type: ignore[arg-type]  # as above
    assert int((dets[0, :, 4] > 0).sum() >= 1)
    assert int((dets[0, :, 4] > 0.3).sum()) == 1


def test_a_coarse_pose_snaps_to_the_peak_nearby_and_stays_where_there_is_none() -> None:
    maps = perfect_maps(person())
    maps.poses[:, 9] += 4.0
    for least_peak, error in ((2.0, 4.0), (0.05, 0.0)):  # no peak scores 2
        options = DecoderOptions(least_peak=least_peak, say=0)
        detector = PoseNanoDetector(Fixed(maps), options)  # type: ignore[arg-type]  # as above
        _, keypoints = detector(torch.zeros(1, 3, HEIGHT, WIDTH))
        found = keypoints[0, 0, 9, :2].numpy() - person().keypoints[0, 9]
        np.testing.assert_allclose(found, error, atol=0.1)


def test_the_regressed_place_has_a_say_while_it_agrees_with_the_peak() -> None:
    say, scores = {}, {}
    for wrong_px in (0.0, 4.0, 20.0):
        maps = perfect_maps(person())
        maps.poses[:, 9, 0] += wrong_px
        dets, keypoints = PoseNanoDetector(Fixed(maps))(torch.zeros(1, 3, HEIGHT, WIDTH))  # type: ignore[arg-type]  # as above
        scores[wrong_px] = float(dets[0, 0, 4])
        say[wrong_px] = float(keypoints[0, 0, 9, 0]) - person().keypoints[0, 9, 0]
    assert say[0.0] == pytest.approx(0, abs=0.1)
    assert 0.5 < say[4.0] < 0.3 * 4.0  # its share, less what it disagrees
    assert say[20.0] == pytest.approx(0, abs=0.2)
    assert scores[0.0] > scores[4.0] > scores[20.0]


def test_the_cells_around_a_peak_outvote_its_own_mistake() -> None:
    errors = {}
    for voters in (0, 2):
        maps = perfect_maps(person())
        cell = int(maps.keypoints[0, 9].argmax())
        row, column = divmod(cell, maps.keypoints.shape[3])
        maps.offsets[0, 9, 0, row, column] += 3.0
        detector = PoseNanoDetector(Fixed(maps), DecoderOptions(voters=voters, say=0))  # type: ignore[arg-type]  # as above
        _, keypoints = detector(torch.zeros(1, 3, HEIGHT, WIDTH))
        errors[voters] = float(keypoints[0, 0, 9, 0]) - person().keypoints[0, 9, 0]
    assert errors[0] == pytest.approx(3.0, abs=0.1)
    assert 0 < errors[2] < 1.0


def test_a_peak_of_somebody_else_is_left_to_them() -> None:
    people = Annotations.joined([person(x=60), person(x=180, scale=4)])
    maps = perfect_maps(people)
    maps.keypoints[:, 9, :, : 120 // POINT_STRIDE] = -9.0  # the left wrist of the person on the left is not seen
    dets, keypoints = PoseNanoDetector(Fixed(maps))(torch.zeros(1, 3, HEIGHT, WIDTH))  # type: ignore[arg-type]  # as above
    left = int(dets[0, :2, 0].argmin())
    np.testing.assert_allclose(keypoints[0, left, 9, :2], people.keypoints[0, 9], atol=0.1)
    assert float(keypoints[0, left, 9, 2]) < 0.1


def test_maps_of_people_and_of_key_points_have_their_own_grids_and_stay_exact_in_bfloat16() -> None:
    torch.manual_seed(2)
    network, image = PoseNano().eval(), torch.rand(2, 3, 64, 96) * 255
    with torch.inference_mode():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short = network(image)
    for field in fields(Maps):
        one, other = getattr(exact, field.name), getattr(short, field.name)
        stride = POINT_STRIDE if field.name in {"keypoints", "offsets"} else STRIDE
        assert one.shape[-2:] == (64 // stride, 96 // stride)
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0.05, atol=0.05 * float(one.abs().max()))


@pytest.mark.parametrize("people", [person(), Annotations.empty()])
def test_targets_fit_the_maps(people: Annotations) -> None:
    targets, maps = draw(people, 64, 96), PoseNano().eval()(torch.zeros(1, 3, 64, 96))
    assert targets.keypoints.shape == maps.keypoints.shape[1:]
    assert targets.offsets.shape == maps.offsets.shape[1:]
    assert targets.poses.shape == maps.poses.shape[1:]
    assert targets.centres.shape == maps.centres.shape[2:]


def test_an_untrained_network_sees_nobody() -> None:
    dets, _ = PoseNanoDetector(PoseNano().eval()).eval()(torch.full((2, 3, 64, 96), 114.0))
    assert float(dets.detach()[..., 4].max()) < 0.1


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of two pictures."""
    writer = ShardWriter(tmp_path / "shard", 2)
    for shade in (40, 200):
        writer.add(np.full((240, 320, 3), shade, np.uint8), person())
    writer.close()
    return tmp_path / "shard"


@pytest.fixture
def views(shard: Path) -> Views:
    """Drawn from at 64 x 64 px, two to a batch."""
    return Views([Mix({shard: 1.0}, Recipe(canvas=(64, 64)))], seed=5, batch=2)


def test_a_batch_is_of_one_mix_and_mixes_have_their_shares(shard: Path) -> None:
    small, large = (Recipe(canvas=(side, side)) for side in (32, 64))
    views = Views([Mix({shard: 1.0}, small, 3.0), Mix({shard: 1.0}, large, 1.0)], seed=1, batch=4)
    sides = np.array([views[number]["image"].shape[1] for number in range(400)]).reshape(100, 4)
    assert (sides == sides[:, :1]).all()
    assert 0.6 < (sides[:, 0] == 32).mean() < 0.9


def test_processes_share_a_batch(views: Views) -> None:
    views.batch = 4
    whole = batches(views, 4)
    parts = [batches(views, 4, part=(number, 2)) for number in range(2)]
    for _ in range(2):
        image, batch = next(whole)
        (first, first_batch), (second, second_batch) = (next(part) for part in parts)
        torch.testing.assert_close(image, torch.cat((first, second)))
        torch.testing.assert_close(batch.poses, torch.cat((first_batch.poses, second_batch.poses)))


def test_mixes_are_read_from_a_file(shard: Path) -> None:
    file = shard.parent / "mixes.toml"
    file.write_text("[[mix]]\nshare = 2\ncanvas = [64, 96]\nlying = 0.5\nsources = {shard = 0.3}\n")
    (mix,) = read_mixes(file, shard.parent)
    assert (mix.share, mix.recipe.canvas, mix.recipe.lying) == (2.0, (64, 96), 0.5)
    assert mix.sources == {shard: 0.3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[mix]]\nshare = 1\nsources = {gone = 1}", "no shard at .*gone"),
        ("[[mix]]\nshare = 1\nsources = {shard = 1}\nlaying = 1", "laying"),
        ("[[mix]]\nshare = 1\nsources = {shard = 1}\ncanvas = [100, 64]", "multiples of 32"),
        ("[[mix]]\nsources = {shard = 1}", "share"),
        ("[[mix]\n", "line 1"),
        ("", "mix"),
    ],
)
def test_a_wrong_file_of_mixes_says_what_is_wrong(shard: Path, text: str, said: str) -> None:
    file = shard.parent / "mixes.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mixes.toml.*{said}"):
        read_mixes(file, shard.parent)


def trainer(plan: Plan, *, bfloat16: bool = False) -> Trainer:
    return Trainer(plan, torch.device("cpu"), bfloat16=bfloat16)


def test_a_new_run_begins_with_the_averaged_weights_of_another(views: Views, tmp_path: Path) -> None:
    plan = Plan(rate=1e-3, finish_at=8, decay=0)
    first, second = trainer(plan), trainer(plan)
    first.step(*next(batches(views, 0)))
    first.save(tmp_path / "last.pt")
    second.start_from(tmp_path / "last.pt")
    assert second.seen == 0
    for learner in (second.network, second.average):
        for name, value in first.average.state_dict().items():
            torch.testing.assert_close(learner.state_dict()[name], value, msg=name)


def test_weights_kept_in_16_bits_begin_a_run_and_make_the_bundle(tmp_path: Path) -> None:
    first, second = trainer(Plan(1e-3, 8, 0)), trainer(Plan(1e-3, 8, 0))
    first.save(tmp_path / "last.pt")
    save_weights(tmp_path / "last.pt", tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size < 0.3 * (tmp_path / "last.pt").stat().st_size
    second.start_from(tmp_path / "weights.pt")
    kept = load_detector(tmp_path / "weights.pt").network.state_dict()
    for name, value in first.average.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, rtol=1e-3, atol=1e-6, msg=name)
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_larger_network_begins_with_the_answers_of_a_smaller_one(tmp_path: Path) -> None:
    torch.manual_seed(3)
    smaller = PoseNano(Shape(blocks=(0, 0, 1, 1)))
    for module in smaller.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not the untrained ones, with which blocks do nothing
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
    torch.save({"average": smaller.state_dict()}, tmp_path / "smaller.pt")
    larger = trainer(Plan(1e-3, 8, 0))
    assert parameter_count(larger.network) > parameter_count(smaller)
    larger.start_from(tmp_path / "smaller.pt")
    image = torch.rand(1, 3, 64, 64) * 255
    before, after = smaller.eval()(image), larger.average(image)
    for part in fields(Maps):
        torch.testing.assert_close(getattr(after, part.name), getattr(before, part.name), msg=part.name)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = PoseNano().state_dict()
    weights["stem.9.weight"] = weights.pop("stem.0.weight")
    torch.save({"average": weights}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: not weights of this network.*stem.9"):
        trainer(Plan(1e-3, 8, 0)).start_from(tmp_path / "other.pt")


def test_a_resumed_run_goes_on_exactly_where_it_was(views: Views, tmp_path: Path) -> None:
    plan = Plan(rate=1e-3, finish_at=8, decay=0)
    torch.manual_seed(1)
    whole, half = trainer(plan), trainer(plan)
    half.network.load_state_dict(whole.network.state_dict())
    half.average.load_state_dict(whole.average.state_dict())
    stream = batches(views, 0)
    for _ in range(2):
        whole.step(*next(stream))
    stream = batches(views, 0)
    half.step(*next(stream))
    half.save(tmp_path / "last.pt")
    resumed = trainer(plan)
    resumed.load(tmp_path / "last.pt")
    assert resumed.seen == 2
    stream = batches(views, resumed.seen)
    resumed.step(*next(stream))
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_learning_lowers_the_loss(views: Views, bfloat16: bool) -> None:
    torch.manual_seed(1)
    learner = trainer(Plan(rate=2e-3, finish_at=100, decay=0), bfloat16=bfloat16)
    views.batch = 4
    image, batch = next(batches(views, 0))
    first = learner.step(image, batch)["total"]
    learner.seen = 6_000  # past the warm-up
    for _ in range(8):
        last = learner.step(image, batch)["total"]
    assert last < 0.8 * first


def test_the_rate_warms_up_stays_and_decays() -> None:
    plan = Plan(rate=1.0, finish_at=20_000, decay=4_000)
    rates = [plan.at(seen) for seen in (0, 3_000, 10_000, 18_000, 20_000)]
    np.testing.assert_allclose(rates, [1 / 6000, 0.5, 1.0, 0.5, 0.0], atol=1e-3)


def test_the_parts_of_the_loss_are_weighed() -> None:
    parts = {name: torch.tensor(1.0) for name in ("centres", "keypoints", "left_right", "sides", "poses", "offsets")}
    assert float(total(parts)) == pytest.approx(5.8)
