"""Random settings of all pages: answers, refusals, and their buttons.

Run with `python benchmarks/random_settings.py`. Every button of a refusal must lead to an answer.
It prints each fault with its seed and link, and how long answers took; pages show a progress bar
after 0.8 s.
"""

import argparse
import sys
from pathlib import Path
from random import Random
from statistics import median
from urllib.parse import urlencode

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from random_links import random_link, try_link

SLOW_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first of as many")
    asked = parser.parse_args()
    tried = []
    for seed in range(asked.seed, asked.seed + asked.number):
        one = try_link(*random_link(Random(seed)))  # noqa: S311
        tried.append(one)
        link = f"/{one.page}?{urlencode(one.query, doseq=True)}"
        if one.fault is not None:
            print(f"FAULT of seed {seed}: {one.fault}: {link}", flush=True)
        elif one.seconds > SLOW_S:
            print(f"slow: {one.seconds:.1f} s: {link}", flush=True)
    refused = [one for one in tried if one.refusals]
    faults = sum(one.fault is not None for one in tried)
    buttons = sum(len(one.after) for one in refused)
    print(f"{len(tried)} settings, {len(refused)} refused, {buttons} buttons, {faults} faults")
    print(f"  to an answer         {median(one.seconds for one in tried):6.2f} s median")
    if refused:
        print(f"  to buttons           {median(one.seconds for one in refused):6.2f} s median")
    print(f"  server by itself     {max(one.server_s for one in tried):6.2f} s at most")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
