"""Makes docs/live-page.png: the live page of `recognizer-agent demo` while something happens in its simulated scene.

python docs/make_live_page.py        # needs Chromium; nobody's picture is in this repository
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
PORT, MQTT_PORT = 18080, 18083
PATIENCE_S = 120.0
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1240,760", "--virtual-time-budget=3000",
)  # fmt: skip


def something_happens() -> bool:
    """Whether an incident is open; False while the demo is not up."""
    try:
        with urlopen(f"http://127.0.0.1:{PORT}/api/v1/state", timeout=5) as answer:
            return bool(json.load(answer)["active"])
    except (URLError, OSError):
        return False


def main() -> int:
    """Start the demo, wait for an incident, take the picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("needs Chromium", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "agent", "demo", "--port", str(PORT), "--mqtt-port", str(MQTT_PORT)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as demo,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not something_happens():
                if time.monotonic() > deadline:
                    print(f"nothing was recognised within {PATIENCE_S:.0f} s", file=sys.stderr)
                    return 1
                time.sleep(0.3)
            shot = f"--screenshot={ROOT / 'docs' / 'live-page.png'}"
            page = f"http://127.0.0.1:{PORT}/"
            subprocess.run([chromium, *CHROMIUM_FLAGS, f"--user-data-dir={folder}", shot, page], check=True, timeout=90)
        finally:
            demo.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
