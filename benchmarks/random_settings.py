"""Random settings of all pages: answers, refusals, and their buttons.

Run with `python benchmarks/random_settings.py`. Every refusal must offer a button that leads to an
answer. It prints each fault with its link, and how long answers took; pages show a progress bar
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
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random = Random(asked.seed)  # noqa: S311
    tried = []
    for _ in range(asked.number):
        one = try_link(*random_link(random))
        tried.append(one)
        link = f"/{one.page}?{urlencode(one.query)}"
        if one.fault is not None:
            print(f"FAULT {one.fault}: {one.refusal}; buttons {one.buttons}: {link}", flush=True)
        elif max(one.seconds) > SLOW_S:
            first_s, then_s = one.seconds
            print(f"slow: {first_s:.1f} s, after a button {then_s:.1f} s: {link}", flush=True)
    refused = [one for one in tried if one.refusal is not None]
    faults = sum(one.fault is not None for one in tried)
    print(f"{len(tried)} settings, {len(refused)} refused, {faults} faults")
    print(f"  to an answer         {median(one.seconds[0] for one in tried):6.2f} s median")
    if refused:
        print(f"  to buttons           {median(one.seconds[0] for one in refused):6.2f} s median")
        print(f"  button to answer     {median(one.seconds[1] for one in refused):6.2f} s median")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
