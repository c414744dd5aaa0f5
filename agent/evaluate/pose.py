"""`evaluate pose`: a pose estimator against COCO key-point annotations. The images are read by `runs.images`.

Figures are COCO's (Lin et al. 2014; object key-point similarity, at most 20 people an image), computed by pycocotools, the
reference implementation.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import DataError, ModelError
from agent.types import NUM_KEYPOINTS, People

PERSON = 1
"""COCO's category of people; annotations of other categories are left out."""
CURVE_OKS = (0.5, 0.75)
"""Thresholds whose precision-recall curves stand in the report."""
_NAMED = 10
_CURVE_STEP = 5  # COCO's 101 recall points, thinned for the report
_NOWHERE_PX = -1e4


@dataclass(frozen=True, slots=True)
class CocoTruth:
    """Annotated images. paths: the file of each image id.

    dataset: COCO's dictionary, image ids renumbered from 1; file names of several folders start at what these have in
    common, so that `fight-1/img1/000001.jpg` and `fall-1/img1/000001.jpg` can be told apart.
    """

    dataset: dict[str, Any]
    paths: dict[int, Path]

    @property
    def names(self) -> dict[int, str]:
        """What the report calls each image."""
        return {image["id"]: image["file_name"] for image in self.dataset["images"]}

    @property
    def people(self) -> int:
        """Annotated people with at least one key point; the others are neither wanted nor held against the estimator."""
        return sum(_wanted(item) for item in self.dataset["annotations"])

    def without(self, image_ids: set[int]) -> CocoTruth:
        """The same without some images."""
        dataset = self.dataset | {
            "images": [image for image in self.dataset["images"] if image["id"] not in image_ids],
            "annotations": [item for item in self.dataset["annotations"] if item["image_id"] not in image_ids],
        }
        return replace(
            self, dataset=dataset, paths={key: path for key, path in self.paths.items() if key not in image_ids}
        )


def read_coco(sets: Sequence[tuple[Path, Path]]) -> CocoTruth:
    """Annotation files, each with the folder of its images, as one set.

    Raises DataError: a file that is no COCO key-point annotation, images that are not there (named), nobody to find.
    """
    dataset: dict[str, Any] = {
        "info": {}, "images": [], "annotations": [], "categories": [{"id": PERSON, "name": "person"}],
    }  # fmt: skip
    paths: dict[int, Path] = {}
    for (file, folder), name in zip(sets, _names([folder for _, folder in sets]), strict=True):
        content = _read_json(file)
        try:
            _append(dataset, paths, content, folder, name)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise DataError(f"{file}: not COCO key-point annotations ({what})") from error
    absent = [str(path) for path in paths.values() if not path.is_file()]
    if absent:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        hint = "--images is the folder that the file names of the annotations start from"
        raise DataError(f"{len(absent)} images are not there: {', '.join(absent[:_NAMED])}{more} (hint: {hint})")
    truth = CocoTruth(dataset, paths)
    if not truth.people:
        raise DataError(f"{', '.join(str(path) for path, _ in sets)}: no person with key points in them")
    return truth


def _wanted(item: Mapping[str, Any]) -> bool:
    """Whether the estimator is asked to find this annotated person."""
    return item["num_keypoints"] > 0 and not item["iscrowd"]


def annotated_people(truth: CocoTruth, image_id: int) -> People:
    """Those who are to be found in an image, as people with scores of 1; key points that are not labelled score 0."""
    rows = [item for item in truth.dataset["annotations"] if item["image_id"] == image_id and _wanted(item)]
    if not rows:
        return People.empty()
    triples = np.array([item["keypoints"] for item in rows], np.float32).reshape(-1, NUM_KEYPOINTS, 3)
    boxes = np.array([item["bbox"] for item in rows], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    labelled = (triples[..., 2] > 0).astype(np.float32)
    return People(boxes, np.ascontiguousarray(triples[..., :2]), labelled, np.ones(len(rows), np.float32))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8, and what is nested without end
        raise DataError(f"{path}: not JSON: {error}") from error


def _names(folders: Sequence[Path]) -> list[Path]:
    """What tells the folders apart: their paths from the last one that holds all of them, `.` for a single one."""
    absolute = [Path(os.path.normpath(folder.absolute())) for folder in folders]
    common = os.path.commonpath(absolute) if absolute else ""
    return [folder.relative_to(common) for folder in absolute]


def _append(dataset: dict[str, Any], paths: dict[int, Path], content: Any, folder: Path, name: Path) -> None:
    """Add one annotation file; ids are renumbered, since files of different origin use the same ones.

    name: what file names in the report begin with.
    """
    new_ids: dict[int, int] = {}
    for image in content["images"]:
        new_ids[image["id"]] = number = len(paths) + 1
        paths[number] = folder / image["file_name"]
        dataset["images"].append({"id": number, "file_name": (name / image["file_name"]).as_posix()})
    for item in content["annotations"]:
        if item.get("category_id", PERSON) != PERSON:
            continue
        keypoints = [float(value) for value in item.get("keypoints") or [0] * NUM_KEYPOINTS * 3]
        if len(keypoints) != NUM_KEYPOINTS * 3:
            raise ValueError(f"annotation {item.get('id')}: {len(keypoints)} key-point values, not {NUM_KEYPOINTS * 3}")
        x, y, width, height = (float(value) for value in item["bbox"])
        area = float(item.get("area", width * height))
        if not all(map(math.isfinite, (*keypoints, x, y, width, height, area))):
            raise ValueError(f"annotation {item.get('id')}: a value that is not finite")
        dataset["annotations"].append({
            "id": len(dataset["annotations"]) + 1,
            "image_id": new_ids[item["image_id"]],
            "category_id": PERSON,
            "iscrowd": int(item.get("iscrowd", 0)),
            "keypoints": keypoints,
            "num_keypoints": sum(flag > 0 for flag in keypoints[2::3]),
            "bbox": [x, y, width, height],
            "area": area,
        })  # fmt: skip


def pose_report(truth: CocoTruth, found: Mapping[int, People]) -> dict[str, Any]:
    """`AP`, `AP50`, `AP75`, `AR` (fractions) of the people `found` per image id, and what the pictures show.

    AP_medium, AP_large: of people between 32^2 and 96^2 px and larger ones, None where there are none. precision: curves
    at `CURVE_OKS` over recall. missed: per image the annotated people without a match at OKS 0.5, worst first.
    Raises ModelError when pycocotools is not installed.
    """
    evaluation = _evaluated(truth, [row for image_id, people in found.items() for row in _rows(image_id, people)])
    stats = [float(value) for value in evaluation.stats]
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # (T, R) of everybody
    thresholds = np.round(evaluation.params.iouThrs, 2).tolist()
    recall = evaluation.params.recThrs[::_CURVE_STEP]
    curves = {
        f"{oks:g}": np.maximum(precision[thresholds.index(oks), ::_CURVE_STEP], 0).round(4).tolist()
        for oks in CURVE_OKS
    }
    return {
        "AP": stats[0], "AP50": stats[1], "AP75": stats[2], "AR": stats[5],
        "AP_medium": _or_none(stats[3]), "AP_large": _or_none(stats[4]), "AR50": stats[6], "AR75": stats[7],
        "images": len(truth.paths), "people": truth.people, "found": sum(map(len, found.values())),
        "ap_by_oks": dict(zip(map(str, thresholds), precision.mean(axis=1).round(4).tolist(), strict=True)),
        "precision": {"recall": recall.round(4).tolist(), **curves},
        "missed": _missed(truth, evaluation),
    }  # fmt: skip


def _evaluated(truth: CocoTruth, rows: list[dict[str, Any]]) -> Any:
    """pycocotools' evaluation with its statistics, silent."""
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]  # it ships no types
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise ModelError("evaluate pose needs pycocotools (hint: pip install 'recognizer-agent[evaluate]')") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        reference = COCO()
        reference.dataset = truth.dataset
        reference.createIndex()
        if rows:
            results = reference.loadRes(rows)
        else:  # `loadRes` refuses an empty list
            results = COCO()
            results.dataset = truth.dataset | {"annotations": []}
            results.createIndex()
        evaluation = COCOeval(reference, results, "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _rows(image_id: int, people: People) -> list[dict[str, Any]]:
    """COCO's result records of one image, without people whose score is no number."""
    triples = np.concatenate([people.keypoints, people.keypoint_scores[..., None]], axis=2).astype(np.float64)
    # pycocotools takes a distance that is no number for a perfect hit.
    triples[~np.isfinite(triples).all(axis=2)] = _NOWHERE_PX, _NOWHERE_PX, 0.0
    return [
        {"image_id": image_id, "category_id": PERSON, "keypoints": triple.ravel().tolist(), "score": float(score)}
        for triple, score in zip(triples, people.scores, strict=True)
        if math.isfinite(score)
    ]


def _missed(truth: CocoTruth, evaluation: Any) -> list[dict[str, Any]]:
    """Per image with people: how many are annotated and how many of them nobody found at OKS 0.5."""
    files = truth.names
    everybody = evaluation.params.areaRng[0]
    rows = []
    for result in evaluation.evalImgs:
        if result is None or result["aRng"] != everybody:
            continue
        counted = ~np.asarray(result["gtIgnore"], bool)
        missed = int((np.asarray(result["gtMatches"])[0][counted] == 0).sum())
        if counted.any():
            image_id = int(result["image_id"])  # NumPy's
            row = {"image_id": image_id, "file": files[image_id], "people": int(counted.sum()), "missed": missed}
            rows.append(row)
    return sorted(rows, key=lambda row: (-row["missed"], row["file"]))


def _or_none(value: float) -> float | None:
    """pycocotools says -1 where there is nothing to measure."""
    return None if value < 0 else value
