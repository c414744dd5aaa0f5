"""`gst:` sources through an OpenCV that has GStreamer: the system's (Debian's python3-opencv), in a process of its own.

The package index's OpenCV has none, so what is tested here is the adapter alone, without the agent around it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"
HAS_GSTREAMER = "import re, sys, cv2; sys.exit(not re.search(r'GStreamer:\\s+YES', cv2.getBuildInformation()))"
READ_ALL = """
import json, sys
from agent.capture.devices import gstreamer_source
from agent.errors import SourceError

source, said = gstreamer_source(sys.argv[1], 3.0), {"frames": 0, "times": []}
try:
    said["size"] = (lambda info: [info.width, info.height, info.fps, info.live])(source.open())
    while True:
        image, pts_ns = source.read()
        said["frames"] += 1
        said["times"].append(pts_ns)
        said["shape"] = image.shape
except SourceError as error:
    said["error"] = str(error)
finally:
    source.close()
print(json.dumps(said))
"""


@pytest.fixture(scope="module", autouse=True)
def gstreamer() -> None:
    """Skips where the system has no OpenCV with GStreamer."""
    command = [SYSTEM_PYTHON, "-c", HAS_GSTREAMER]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the system's python3-opencv, built with GStreamer")


def read_all(pipeline: str) -> dict[str, object]:
    """What a source over `pipeline` gives until it fails."""
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", READ_ALL, pipeline], cwd=REPO, capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_pipeline_gives_its_frames_and_then_says_that_it_ended() -> None:
    caps = "video/x-raw,width=320,height=240,framerate=30/1 ! videoconvert ! video/x-raw,format=BGR"
    said = read_all(f"videotestsrc num-buffers=12 ! {caps} ! appsink")
    assert said["size"] == [320, 240, 30.0, True]
    assert (said["frames"], said["shape"]) == (12, [240, 320, 3])
    assert said["times"] == [index * 33_333_333 for index in range(12)]
    assert said["error"] == "gst pipeline: no picture (unplugged, timed out or ended)"


@pytest.mark.parametrize(
    "pipeline", ["nonsense ! appsink", "videotestsrc ! fakesink", "filesrc location=/none ! appsink"]
)
def test_a_pipeline_that_cannot_run_is_a_source_error(pipeline: str) -> None:
    said = read_all(pipeline)
    assert (said["frames"], said["error"]) == (0, "gst pipeline: cannot be opened")
