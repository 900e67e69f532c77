"""Screenshots of every page in light and dark, on a screen and on a phone, for docs/img.

Run with `python benchmarks/screenshots.py`; needs a system Chromium and a run or a recording.
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from browser import browser, chromium, resolve, serve

ROOT = Path(__file__).resolve().parent.parent
PINNED = (
    "model=opt-13b&hardware=kvpr-a100&batch_size=32&prompt_tokens=1024&gen_tokens=1&n_batches=1"
    "&schedule=row&tp=1&ep=1&keep=true&policy=lp"
)
"""The answer that the page Plan compares with its own."""

DOCUMENTS = (
    "trace=long+documents&model=longalpaca-7b&link_of_h100-sxm=pcie4-x16"
    "&sizes=0,64GB,128GB,256GB,512GB&policies=load-only&policies=two-ended&policies=joint"
)
"""Much cache for each token behind a slow link, where the policies of the page Traffic differ."""

PAGES = {
    "advise": "?model=opt-13b&hardware=kvpr-a100",
    "timeline": "timeline",
    "plan": "plan",
    "compare": f"plan?batch=64&a={quote(PINNED)}",
    "what-if": "what_if?view=Crossover",
    "restore": "restore?policy=two-ended",
    "restore-layers": "restore",
    "restore-bandwidth": "restore?view=Against+bandwidth",
    "restore-availability": "restore?view=Availability&policy=two-ended",
    "restore-measured": "restore?of=a+measured+case",
    "traffic": f"traffic?{DOCUMENTS}",
    "accuracy": "accuracy",
    "machines": "machines?machine=cpu-xeon-opt-125m",
    "your-machine": "your_machine",
    "glossary": "glossary",
}
SHOWN = {"timeline": ".st-key-lanes", "compare": ".st-key-compared"}
"""What a page is scrolled to, if not its top."""

SCROLL = """
shown => {
  const head = document.querySelector(".st-key-headline").getBoundingClientRect();
  const sticky = innerWidth < 1000 ? head.height : 0;
  const main = document.querySelector("[data-testid=stMain]");
  main.scrollTop += shown.getBoundingClientRect().top - sticky - 70;
}
"""
"""To below the header, and on a phone below the headline, which stays in sight."""

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
PHONE = "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/130.0 Mobile Safari/537.36"
MAX_BYTES = 200_000


def small_png(picture: bytes) -> bytes:
    """The picture reduced to 256 colours, of which small marks keep theirs."""
    out = BytesIO()
    image = Image.open(BytesIO(picture)).convert("RGB")
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the dashboard starts")
    parser.add_argument("--run", help="label of the run to show; by default the first")
    parser.add_argument("--only", nargs="+", choices=PAGES, default=PAGES, help="pages to take")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    parser.add_argument("--refresh", action="store_true", help="only pictures that --out has")
    options = parser.parse_args()
    wanted = {name: PAGES[name] for name in options.only}
    if chromium() is None:
        sys.exit("no Chromium found; install one to take pictures in it.")
    options.out.mkdir(parents=True, exist_ok=True)
    run = f"run={options.run}" if options.run else ""
    with serve(options.folder) as address, browser() as opened:
        for theme in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                view = {"width": width, "height": height}
                agent = PHONE if size == "phone" else None
                page = opened.new_page(viewport=view, color_scheme=theme, user_agent=agent)
                page.set_default_timeout(90_000)
                for name, path in wanted.items():
                    target = options.out / f"{name}-{theme}-{size}.png"
                    if options.refresh and not target.is_file():
                        continue
                    page.goto(f"{address}/{path}{'&' if '?' in path else '?'}{run}")
                    resolve(page)
                    if name in SHOWN:
                        page.locator(SHOWN[name]).evaluate(SCROLL)
                    page.wait_for_timeout(800)
                    target.write_bytes(small_png(page.screenshot()))
                    n_bytes = target.stat().st_size
                    print(f"{target} {n_bytes:,} bytes{' TOO LARGE' * (n_bytes > MAX_BYTES)}")
                page.close()


if __name__ == "__main__":
    main()
