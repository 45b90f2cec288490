"""Run many cases and print the tally: ``make fuzz``.

FUZZ_CASES (10000), FUZZ_SEED (0) and FUZZ_FIRST (0) say which; each failure prints its number,
which ``python -m tests.fuzz NUMBER`` runs alone.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter

from .cases import draw
from .check import outcome


def main() -> int:
    """Run the cases; the status is 1 if any is neither correct nor a named error."""
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    first, count = (
        int(os.environ.get("FUZZ_FIRST", "0")),
        int(os.environ.get("FUZZ_CASES", "10000")),
    )
    numbers = [int(n) for n in sys.argv[1:]] or range(first, first + count)
    tally: Counter[str] = Counter()
    began, slowest = time.process_time(), []
    spent: dict[str, list[float]] = {}
    for number in numbers:
        start = time.process_time()
        case = draw(number, seed)
        try:
            tally[outcome(case)] += 1
        except KeyboardInterrupt:
            break
        except Exception as error:
            what = f"DEFECT {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
            tally[what[:120]] += 1
            print(f"{case}\n  {what[:400]}", flush=True)
            if len(numbers) < 10:
                traceback.print_exc()
        took = time.process_time() - start
        slowest.append((round(took, 1), number))
        for name, value in case.words.items():
            spent.setdefault(f"{name}={value}", []).append(took)
    done = sum(tally.values())
    seconds = time.process_time() - began
    print(f"{done} cases of seed {seed} from {numbers[0]}: {seconds:.0f} s of processor time")
    print(f"slowest (seconds, number): {sorted(slowest, reverse=True)[:8]}")
    means = {kind: sum(t) / len(t) for kind, t in spent.items() if len(t) * 50 > done}
    dear = sorted(means, key=lambda kind: -means[kind])[:6]
    print("seconds a case: " + ", ".join(f"{kind} {means[kind]:.1f}" for kind in dear))
    for what, times in tally.most_common():
        print(f"{times:7d}  {what}")
    return int(any(what.startswith("DEFECT") for what in tally))


if __name__ == "__main__":
    sys.exit(main())
