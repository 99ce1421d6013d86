"""Choose a detector's options on validation images made from the training split.

si-jax tune ash-s                     # on the offline default, `digits`
si-jax tune react --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax tune knn --grid k=1,5,20,50
si-jax tune scale --ood-val iso=photos/iso --ood-val art=photos/art

Out-of-distribution images are noise and shuffled patches of training images that the detector is
not fitted on, or those given by --ood-val. No test set is tuned on: an image of --ood-val that is
also in a test set of the benchmark is refused.
"""

from functools import partial

from si_jax.commands.options import command
from si_jax.evaluation import tuning
from si_jax.evaluation.job import benchmark_model
from si_jax.evaluation.tuning import tune_on_benchmark


@command("si-jax tune", tune_on_benchmark, benchmark_model, ood="ood_val")
def main(tune: partial, load: partial, detector: str, /, *, benchmark: str = "digits") -> None:
    """Search and print.

    Args:
        detector: one with a grid of its own (a wrong one lists them), or with --grid any that has
            options.
        benchmark: digits, cifar10, cifar100 or imagenet.
        grid: OPTION=VALUE,VALUE to search; default: the detector's own.
        ood: NAME=PATH of a folder, .npz or .mat file of out-of-distribution images to choose by;
            default: noise and shuffled patches.
        seed: of the subsets, the validation sets and fresh weights.
    """
    next(tuning.candidates(detector, tune.keywords.get("grid")))  # refuses before all is loaded
    model, _ = load(benchmark)()
    tuned = tune(detector, benchmark, model)
    print(tuned)
    print(f"\nchosen: --set {tuning.describe(detector, tuned.best)}")
