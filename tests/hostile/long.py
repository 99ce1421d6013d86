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
    both = ["evaluation", "training"]
    parser.add_argument("--killed", nargs="+", choices=both, default=both, help="default: both")
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
        for kind in args.kinds or world.KINDS:
            share = 4 if kind.startswith("si-jax") else 1  # whole commands take longer
            rounds = -(-args.rounds // share)
            counts[kind], bad = trial.damage_kind(forks, root, kind, args.seed, rounds)
            faults += bad
            _tell(kind, counts[kind], began)
        for which in args.killed if args.kills else ():
            counts[which], bad = trial.kills(forks, root, which, args.seed, args.kills)
            faults += bad
            _tell(which, counts[which], began)
        cpu = sum(map(float, (root.parent / "seconds").read_text().split()))
    if args.json:
        Path(args.json).write_text(json.dumps(counts, indent=2))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults; {cpu:.0f} s of CPU time")
    sys.exit(bool(faults))


def _tell(name: str, counts: dict[str, int], began: float) -> None:
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"{name:22} {text}  ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
