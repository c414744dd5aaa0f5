"""COCO key-point AP of a pose estimator plug-in and its speed.

    python benchmarks/pose_coco.py --estimator posenet --model posenet_481_641.tflite \
        --annotations person_keypoints.json --images train2017 [--annotations more.json --images more] [--report out.json]

Needs pycocotools. AP is COCO's (OKS, at most 20 people an image); images of the annotation file that are absent are left
out and counted. Times are of `estimate` alone, decoding of the JPEG excluded, the first picture excluded (warm-up).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agent.config.schema import PoseConfig
from agent.errors import RecognizerError
from agent.ports import PoseEstimator
from agent.types import People

GROUP = "recognizer_agent.pose_estimators"


def load_truth(annotations: list[Path], folders: list[Path]) -> tuple[dict[str, Any], dict[int, Path], int]:
    """One COCO dictionary of all annotation files, the path of each image that is there, and how many are not."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    paths: dict[int, Path] = {}
    absent = 0
    for file, folder in zip(annotations, folders, strict=True):
        content = json.loads(file.read_text())
        there = {image["id"]: folder / image["file_name"] for image in content["images"]}
        absent += sum(not path.is_file() for path in there.values())
        there = {key: path for key, path in there.items() if path.is_file()}
        paths |= there
        truth["images"] += [image for image in content["images"] if image["id"] in there]
        truth["annotations"] += [item for item in content["annotations"] if item["image_id"] in there]
        truth["categories"] = content["categories"]
    return truth, paths, absent


def as_results(people: People, image_id: int) -> list[dict[str, Any]]:
    """COCO's result records of one image."""
    triples = np.concatenate([people.keypoints, people.keypoint_scores[..., None]], axis=2)
    return [
        {"image_id": image_id, "category_id": 1, "keypoints": triple.ravel().tolist(), "score": float(score)}
        for triple, score in zip(triples, people.scores, strict=True)
    ]


def estimate_all(estimator: PoseEstimator, paths: dict[int, Path]) -> tuple[list[dict[str, Any]], list[float]]:
    """Result records of all images and the time of each in ms."""
    results: list[dict[str, Any]] = []
    times_ms: list[float] = []
    for image_id, path in paths.items():
        image = cv2.imread(str(path))
        if image is None:
            raise SystemExit(f"{path} is no image that OpenCV reads")
        if not times_ms:
            estimator.estimate([image])
        start = time.perf_counter()
        people = estimator.estimate([image])[0]
        times_ms.append((time.perf_counter() - start) * 1e3)
        results += as_results(people, image_id)
    return results, times_ms


def average_precision(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """AP, AP50, AP75, AR as fractions."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]  # it ships no types
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]  # it ships no types

    if not results:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    return {"AP": float(stats[0]), "AP50": float(stats[1]), "AP75": float(stats[2]), "AR": float(stats[5])}


def create_estimator(arguments: argparse.Namespace) -> PoseEstimator:
    """The plug-in that the command line names."""
    known = {point.name: point for point in entry_points(group=GROUP)}
    if arguments.estimator not in known:
        raise SystemExit(f"no pose estimator {arguments.estimator!r}; installed are {sorted(known)}")
    config = PoseConfig(
        estimator=arguments.estimator,
        model=arguments.model,
        threads=arguments.threads,
        device=arguments.device,
        score_threshold=0.0,  # AP ranks all people by score
        options=dict(arguments.option),
    )
    estimator: PoseEstimator = known[arguments.estimator].load()(config)
    return estimator


def option(text: str) -> tuple[str, object]:
    """`key=value` with a JSON value."""
    key, _, value = text.partition("=")
    return key, json.loads(value)


def main() -> int:
    """Command line; prints the report as JSON."""
    parser = argparse.ArgumentParser(description="COCO key-point AP and speed of a pose estimator.")
    parser.add_argument("--estimator", default="posenet", help="name of an installed pose estimator plug-in")
    parser.add_argument("--model", type=Path, required=True, help="its model file or bundle")
    parser.add_argument("--annotations", type=Path, action="append", required=True, help="COCO JSON; may be repeated")
    parser.add_argument("--images", type=Path, action="append", required=True, help="its folder of images")
    parser.add_argument("--threads", type=int, default=0, help="0 = one per core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--option", type=option, action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--report", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    if len(arguments.annotations) != len(arguments.images):
        parser.error("as many --images as --annotations are needed")
    truth, paths, absent = load_truth(arguments.annotations, arguments.images)
    try:
        estimator = create_estimator(arguments)
        results, times_ms = estimate_all(estimator, paths)
    except RecognizerError as error:
        print(error, file=sys.stderr)
        return 1
    report = {
        "estimator": estimator.name,
        "images": len(paths),
        "images_absent": absent,
        "people": sum(item["num_keypoints"] > 0 for item in truth["annotations"]),
        **average_precision(truth, results),
        "ms_per_image": float(np.median(times_ms)),
    }
    estimator.close()
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.report:
        arguments.report.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
