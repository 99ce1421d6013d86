"""Run the hostile trial and print its counts; exit status 1 if anything happened that must not.

python tests/hostile/long.py --rounds 200 --kills 20
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import trial


def main() -> None:
    """Damage every kind of file, kill evaluations and trainings, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="damages of each kind of file, a"
        " quarter of it where a whole command reads it; default 200")  # fmt: skip
    parser.add_argument("--kills", type=int, default=20, help="evaluations, and trainings, killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="only these kinds of files")
    parser.add_argument("--json", help="file to write the counts to")
    args = parser.parse_args()
    forks = trial.context()
    import world

    began, counts, faults = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory(prefix="si_jax_hostile_") as scratch:
        root = Path(scratch) / "world"
        process = forks.Process(target=trial.make_world, args=(root,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit((root.parent / "make.log").read_text())
        os.environ["SI_JAX_CACHE"] = str(root.parent / "cache")
        killed = ("evaluation", "training") if args.kills else ()
        for name in (*(args.kinds or world.KINDS), *killed):
            if name in killed:
                found = trial.kills(forks, root, name, args.seed, args.kills)
            else:
                share = 4 if name.startswith("si-jax") else 1  # whole commands take longer
                found = trial.damage_kind(forks, root, name, args.seed, -(-args.rounds // share))
            counts[name] = found[0]
            faults += found[1]
            text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found[0].items()))
            print(f"{name:22} {text}  ({time.monotonic() - began:.0f} s)", flush=True)
        cpu = sum(map(float, (root.parent / "seconds").read_text().split()))
    if args.json:
        Path(args.json).write_text(json.dumps(counts, indent=2))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults; {cpu:.0f} s of CPU time")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
