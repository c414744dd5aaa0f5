"""Which clip belongs where: label, split, source and fold of every clip of a set of windows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from clips import Samples
from numpy.typing import NDArray

FOLDS = 5


class Clips:
    """What is known about each clip of `samples`: label, split, group and fold, as arrays over `samples.files`."""

    def __init__(self, service: str, samples: Samples, data: Path, *, dev_too: bool = False) -> None:
        """dev_too: the folds hold the development clips as well, for figures over all clips; never for what ships."""
        with (data / "fight" / "sources.csv").open(newline="") as stream:
            groups = {f"fight/{row['file']}": f"fight:{row['source']}" for row in csv.DictReader(stream)}
        with (data / "fight" / "clips.csv").open(newline="") as stream:
            rows = {f"fight/{row['file']}": row for row in csv.DictReader(stream)}
        with (data / "fall" / "clips.csv").open(newline="") as stream:
            falls = {f"fall/{row['file']}": row for row in csv.DictReader(stream)}
        groups |= {file: f"fall:{row['subject']}" for file, row in falls.items()}
        self.group = np.array([groups[file] for file in samples.files])
        self.split = np.array([rows[file]["split"] if file in rows else "train" for file in samples.files])
        positive = {file for file, row in rows.items() if row["label"] == "fight"} if service == "fight" else {
            file for file, row in falls.items() if row["kind"] == "fall"
        }  # fmt: skip
        self.label = np.array([file in positive for file in samples.files]).astype(int)
        use = np.ones(len(self.split), bool) if dev_too else self.split == "train"
        self.fold = folds_by_subject(self.group) if service == "fall" else folds_by_source(self.group, self.label, use)


def folds_by_subject(group: NDArray[np.str_]) -> NDArray[np.int64]:
    """Two subjects, two folds; the fight data set's sources are negatives, spread over both."""
    names = sorted(set(group.tolist()))
    number = {name: (0 if name.endswith("subject2") else 1) if name.startswith("fall:") else index % 2
              for index, name in enumerate(names)}  # fmt: skip
    return np.array([number[name] for name in group])


def folds_by_source(group: NDArray[np.str_], label: NDArray[np.integer], use: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) 0 to FOLDS - 1, -1 outside `use`: the largest groups first, each to where the labels stay evenest."""
    fold = np.full(len(group), -1)
    names, counts = np.unique(group[use], return_counts=True)
    load = np.zeros((FOLDS, 2))
    for name in names[np.lexsort((names, -counts))]:
        rows = use & (group == name)
        content = np.bincount(label[rows], minlength=2)
        cost = ((load + content) ** 2).sum(axis=1) - (load**2).sum(axis=1)
        best = int(np.argmin(cost))
        fold[rows] = best
        load[best] += content
    return fold
