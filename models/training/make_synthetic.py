"""Windows of synthetic falls and near-falls for train.py --synthetic.

python models/training/make_synthetic.py --mocap DATA/mocap --out runs/mocap.npz --count 4000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from recipes import WINDOW
from synthetic import load_mocap, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mocap", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    clips = load_mocap(arguments.mocap)
    tensor = np.zeros((arguments.count, WINDOW.people, WINDOW.length, 17, 3), np.float16)
    label = np.zeros(arguments.count, np.int8)
    made = 0
    while made < arguments.count:
        window, value = sample(rng, clips, WINDOW.length)
        if (window[..., 2] > 0).any(axis=1).sum() >= 3 * WINDOW.min_track_frames:
            tensor[made, 0], label[made] = window, value
            made += 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, tensor=tensor, label=label)
    print(f"{made} windows from {len(clips)} movements, {int(label.sum())} falls")


if __name__ == "__main__":
    main()
