"""Play seeds: `python -m tests.simulator 17`, or a range, `python -m tests.simulator 300 600`."""

import gc
import sys

from tests.simulator.scenario import SeedFailed, run_seed

COLLECT_EVERY = 8


def main(arguments):
    numbers = [int(argument) for argument in arguments]
    seeds = range(numbers[0], numbers[1] if len(numbers) > 1 else numbers[0] + 1)
    failed = 0
    # Each world is a heap of cycles that dies at once; looking for them meanwhile takes a tenth of the time.
    gc.disable()
    for seed in seeds:
        if seed % COLLECT_EVERY == 0:
            gc.collect()
        try:
            outcome = run_seed(seed)
        except SeedFailed as error:
            failed += 1
            print(error, flush=True)
            if len(seeds) == 1:
                raise
        else:
            print(
                f"seed {seed}: {outcome.events} events, healed {outcome.healed_after_s:.0f} s, cpu {outcome.cpu_s:.2f} s",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
