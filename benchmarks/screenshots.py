"""Screenshots of every page in light and dark, wide and tall, for docs/img.

Run with `python benchmarks/screenshots.py`; needs a system Chromium and a run or a recording.
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from browser import browser, chromium, resolve, serve

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "advise": "?model=opt-13b&hardware=kvpr-a100",
    "timeline": "timeline",
    "plan": "plan",
    "what-if": "what_if?view=Crossover",
    "restore": "restore?policy=two-ended",
    "restore-layers": "restore",
    "restore-bandwidth": "restore?view=Against+bandwidth",
    "restore-availability": "restore?view=Availability&policy=two-ended",
    "restore-measured": "restore?of=a+measured+case",
    "traffic": "traffic",
    "accuracy": "accuracy",
    "machines": "machines?machine=cpu-xeon-opt-125m",
    "your-machine": "your_machine",
}
SIZES = {"wide": (1440, 900), "tall": (820, 1180)}
MAX_BYTES = 200_000


def small_png(picture: bytes) -> bytes:
    """The picture reduced to 256 colours."""
    out = BytesIO()
    image = Image.open(BytesIO(picture)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the dashboard starts")
    parser.add_argument("--run", help="label of the run to show; by default the first")
    parser.add_argument("--only", nargs="+", choices=PAGES, default=PAGES, help="pages to take")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    options = parser.parse_args()
    if chromium() is None:
        sys.exit("no Chromium found; install one to take pictures in it.")
    options.out.mkdir(parents=True, exist_ok=True)
    run = f"run={options.run}" if options.run else ""
    with serve(options.folder) as address, browser() as opened:
        for theme in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                view = {"width": width, "height": height}
                page = opened.new_page(viewport=view, color_scheme=theme)
                for name in options.only:
                    path = PAGES[name]
                    page.goto(f"{address}/{path}{'&' if '?' in path else '?'}{run}")
                    resolve(page)
                    page.wait_for_timeout(800)
                    target = options.out / f"{name}-{theme}-{size}.png"
                    target.write_bytes(small_png(page.screenshot()))
                    n_bytes = target.stat().st_size
                    print(f"{target} {n_bytes:,} bytes{' TOO LARGE' * (n_bytes > MAX_BYTES)}")
                page.close()


if __name__ == "__main__":
    main()
