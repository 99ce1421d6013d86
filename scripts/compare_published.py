"""Compare the detectors with pytorch-ood's on one PyTorch network, score by score, and their time.

python scripts/compare_published.py
python scripts/compare_published.py --detectors odin nac

Needs `pip install "si-jax[torch]" pytorch-ood`. A small residual network is trained on the digits
by PyTorch. pytorch-ood takes the module, or its logits and features as PyTorch computes them; this
library the module itself, by torchax; no weight is converted. Both are fitted on the same training
digits, and score test digits, letters and noise. Prints for each detector the rank correlation and
the largest difference of the scores, relative to their spread; a line's note says where the two
differ on purpose. Then the seconds of all detectors from the images on: there one by one, here in
one pass.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import si_jax
from si_jax import cli
from si_jax.checks import check_choice
from si_jax.data import digits
from si_jax.evaluation.scoring import Scorer

EPOCHS = 6

NOTES = {
    "gen": "pytorch-ood clamps probabilities at 1e-7, which changes small ones' entropy",
    "entropy": "pytorch-ood clamps probabilities at 1e-7",
    "vra": "pytorch-ood raises small features to the percentile, the paper sets them to 0;"
    " percentiles of each feature there, of all here",
    "temperature-scaling": "pytorch-ood stops after 50 steps",
    "openmax": "pytorch-ood takes all images of a class, the paper those that are classified right",
    "kl-matching": "pytorch-ood averages by label, the paper and this library by predicted class",
    "gram": "pytorch-ood takes labels for predicted classes, and another tenth to normalise by",
    "nac": "pytorch-ood averages the products over the positions, and has wide bins in the middle,"
    " where nearly all of them lie",
}

OF_IMAGES = (
    "odin",
    "gradnorm",
    "grad-uncertainty",
    "rankfeat",
    "multi-mahalanobis",
    "gram",
    "nac",
)
"""pytorch-ood's detectors that run the network themselves."""


def peers(network: Any) -> dict[str, tuple[Callable[[], Any], dict]]:
    """Detector -> how pytorch-ood's is made, and the options of this library's."""
    import torch
    from pytorch_ood import detector as p

    head = network.linear
    stem = torch.nn.Sequential(network.conv1, network.bn1, network.relu)
    stages = [stem, network.layer1, network.layer2, network.layer3]
    taps = {"taps": ["relu", "layer1/0", "layer2/0", "layer3/0"]}

    def pooled(maps):
        return head(maps.flatten(1))

    def mapped(kind, **options):
        return lambda: kind(backbone=lambda x: x, head=pooled, **options)

    w, b = head.weight, head.bias
    return {
        "msp": (lambda: p.MaxSoftmax(None), {}),
        "entropy": (lambda: p.Entropy(None), {}),
        "max-logit": (lambda: p.MaxLogit(None), {}),
        "energy": (lambda: p.EnergyBased(None), {}),
        "gen": (lambda: p.GEN(None, gamma=0.1), {}),
        "temperature-scaling": (lambda: p.TemperatureScaling(None), {}),
        "kl-matching": (lambda: p.KLMatching(None), {}),
        "ash-p": (mapped(p.ASH, variant="ash-p", percentile=0.65), {}),
        "ash-b": (mapped(p.ASH, variant="ash-b", percentile=0.65), {}),
        "ash-s": (mapped(p.ASH, variant="ash-s", percentile=0.65), {}),
        "scale": (mapped(p.SCALE, percentile=0.85), {}),
        "react": (mapped(p.ReAct, percentile=0.9), {}),
        "vra": (mapped(p.VRA, lower_percentile=0.6, upper_percentile=0.95), {}),
        "lts": (lambda: p.LTS(None, head, p=0.1), {"percentile": 90}),
        "dice": (lambda: p.DICE(None, w=w, b=b, p=0.9), {}),
        "knn": (lambda: p.KNN(None, k=50), {}),
        "nnguide": (lambda: p.NNGuide(None, head, k=10), {}),
        "she": (lambda: p.SHE(None, head), {}),
        "fdbd": (lambda: p.fDBD(None, head), {}),
        "nci": (lambda: p.NCI(None, head, alpha=0.0001), {}),
        "mahalanobis": (lambda: p.Mahalanobis(None), {}),
        "relative-mahalanobis": (lambda: p.RMD(None), {}),
        "openmax": (lambda: p.OpenMax(None, tailsize=20), {}),
        "mcm": (lambda: p.MCM(None, w), {}),
        "gmm": (lambda: p.GMM(None), {}),
        "pnml": (lambda: p.PNML(None, head), {}),
        "vim": (lambda: p.ViM(None, d=head.in_features // 2, w=w, b=b), {}),
        "odin": (lambda: p.ODIN(network, norm_std=[0.5] * 3), {}),
        "gradnorm": (lambda: p.GradNorm(network, lambda name: name == "linear.weight"), {}),
        "grad-uncertainty": (lambda: p.GradUncertainty(network, lambda n: "linear" in n), {}),
        "rankfeat": (
            lambda: p.RankFeat(torch.nn.Sequential(*stages), lambda x: head(x.mean((2, 3)))),
            {"taps": taps["taps"][-1:]},
        ),
        "multi-mahalanobis": (lambda: p.MultiMahalanobis(stages), taps),
        "gram": (
            lambda: p.Gram(lambda x: head(x.mean((2, 3))), stages, 10),
            {"orders": len(stages), **taps},
        ),
        "nac": (lambda: p.NACUE(network, stages[1:]), {"taps": taps["taps"][1:]}),
    }


def trained(images: np.ndarray, labels: np.ndarray) -> Any:
    """A small PyTorch network, trained on uint8 images."""
    import torch

    from benchmarks.torch_networks import CifarResNet

    torch.manual_seed(0)
    network = CifarResNet(10, (1, 1, 1), (16, 32, 64), "conv")
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    x, y = as_tensor(images), torch.tensor(labels).long()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def as_tensor(images: np.ndarray) -> Any:
    """uint8 images, channels first, scaled to [-1, 1] as the model here has them."""
    import torch

    return torch.tensor((images.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def outputs(network: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of images, by PyTorch, in batches of 64."""
    features: list[Any] = []
    hook = network.linear.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    logits = [network(x) for x in as_tensor(images).split(64)]
    hook.remove()
    return np.concatenate(logits), np.concatenate(features)


def published(
    detector: Any, network: Any | None, fit: tuple[np.ndarray, np.ndarray], images: np.ndarray
) -> tuple[np.ndarray, float]:
    """Scores of pytorch-ood's detector, higher = in-distribution, and the seconds that they took.

    Args:
        detector: the detector.
        network: gives the logits and features of images; None for a detector that runs it itself.
        fit: images and labels to fit on.
        images: images to score.
    """
    import torch

    labels = torch.tensor(fit[1]).long()
    if network is None:
        known, new = (as_tensor(x).requires_grad_().split(64) for x in (fit[0], images))
        if detector.requires_fit:
            detector.fit([*zip(known, labels.split(64), strict=True)])
        start = time.perf_counter()
        scores = torch.cat([detector.predict(x) for x in new])
    else:
        maps = hasattr(detector, "predict_feature_maps")
        kinds = ("feature_maps", "features", "logits")
        kind = next(kind for kind in kinds if hasattr(detector, f"predict_{kind}"))

        def given(x):
            logits, features = (torch.tensor(array) for array in outputs(network, x))
            return logits if kind == "logits" else features[:, :, None, None] if maps else features

        if hasattr(detector, f"fit_{kind}"):
            getattr(detector, f"fit_{kind}")(given(fit[0]), labels)
        start = time.perf_counter()
        scores = getattr(detector, f"predict_{kind}")(given(images))
    return -scores.detach().double().numpy(), time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", metavar="NAME", help="all that both have")
    wanted = parser.parse_args(argv).detectors
    try:
        import pytorch_ood  # noqa: F401
    except ImportError as error:
        raise ValueError('pytorch-ood is missing: run `pip install "pytorch-ood"`') from error
    train, held = digits.load("train"), digits.load("test")
    new = np.concatenate([held[0], digits.letters(), digits.noise(300)])
    network = trained(*train)
    model = si_jax.Model(network, input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    accuracy = np.mean(outputs(network, held[0])[0].argmax(1) == held[1])
    print(f"accuracy {accuracy:.1%} of the test digits")
    off = np.abs(model.logits(new) - outputs(network, new)[0]).max()
    print(f"largest difference of the logits {off:.1e}\n")
    print(f"{'detector':22}{'rank correlation':>18}{'largest difference':>20}")
    made, seconds = {}, 0.0
    known = peers(network)
    for name in wanted or known:
        check_choice(known, detectors=name)
        make, options = known[name]
        fit = held if name == "temperature-scaling" else train  # it learns from mistakes
        made[name] = si_jax.make_detector(name, model, **options).fit(*fit)
        ours = made[name].score(new).astype(np.float64)
        theirs, taken = published(make(), None if name in OF_IMAGES else network, fit, new)
        seconds += taken
        rank = spearmanr(ours, theirs).statistic
        scaled = [(x - x.mean()) / x.std() for x in (ours, theirs)]
        difference = np.abs(scaled[0] - scaled[1]).max()
        note = f"  {NOTES[name]}" if name in NOTES else ""
        print(f"{name:22}{rank:18.6f}{difference:20.1e}{note}", flush=True)
    scorer = Scorer(made)
    scorer(new)  # compiles
    start = time.perf_counter()
    scorer(new)
    together = time.perf_counter() - start
    print(f"\n{len(made)} detectors of {len(new)} images: {seconds:.1f} s by pytorch-ood, one by")
    print(f"one; {together:.1f} s by this library, in one pass")


if __name__ == "__main__":
    cli.run(main)
