"""Compare the detectors with pytorch-ood's on one PyTorch network, score by score, and their time.

python scripts/compare_published.py

Needs `pip install "si-jax[torch]" pytorch-ood`. A small residual network is trained on the digits
by PyTorch. pytorch-ood takes its logits and features as PyTorch computes them, this library the
module itself, by torchax; no weight is converted. Both are fitted on the same training digits, and
score test digits, letters and noise. Prints for each detector the rank correlation and the largest
difference of the scores, relative to their spread; a line's note says where the two differ on
purpose. Then the seconds of all detectors from the images on: there one by one, here in one pass.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import si_jax
from si_jax import cli
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
}


def peers(weights: np.ndarray, bias: np.ndarray) -> dict[str, tuple[Callable[[], Any], dict]]:
    """Detector -> how pytorch-ood's is made, and the options of this library's."""
    import torch
    from pytorch_ood import detector as p

    head = torch.nn.Linear(*weights.shape)
    head.weight.data, head.bias.data = torch.tensor(weights.T.copy()), torch.tensor(bias.copy())
    head.requires_grad_(False)

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
        "vim": (lambda: p.ViM(None, d=weights.shape[0] // 2, w=w, b=b), {}),
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
    network.head = network.linear
    return network.eval().requires_grad_(False)


def as_tensor(images: np.ndarray) -> Any:
    """uint8 images, channels first, scaled to [-1, 1] as the model here has them."""
    import torch

    return torch.tensor((images.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def outputs(network: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of images, by PyTorch, in batches of 64."""
    features: list[Any] = []
    hook = network.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    logits = [network(x) for x in as_tensor(images).split(64)]
    hook.remove()
    return np.concatenate(logits), np.concatenate(features)


def published(
    make: Callable[[], Any], fit: tuple, run: Callable[[], tuple]
) -> tuple[np.ndarray, float]:
    """Scores of pytorch-ood's detector, higher = in-distribution, and the seconds that they took.

    Args:
        make: makes the detector.
        fit: logits, features and labels to fit on.
        run: gives the logits and features to score, of the images.
    """
    import torch

    logits, features, labels = (torch.tensor(x) for x in fit)
    detector = make()
    maps = hasattr(detector, "predict_feature_maps")
    kind = (
        "feature_maps"
        if maps
        else "features"
        if hasattr(detector, "predict_features")
        else "logits"
    )
    shape = {"logits": logits, "features": features, "feature_maps": features[:, :, None, None]}
    if hasattr(detector, f"fit_{kind}"):
        getattr(detector, f"fit_{kind}")(shape[kind], labels.long())
    start = time.perf_counter()
    new = run()
    given = torch.tensor(new[0] if kind == "logits" else new[1])
    scores = getattr(detector, f"predict_{kind}")(given[:, :, None, None] if maps else given)
    return -scores.detach().double().numpy(), time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        import pytorch_ood  # noqa: F401
    except ImportError as error:
        raise ValueError('pytorch-ood is missing: run `pip install "pytorch-ood"`') from error
    train, held = digits.load("train"), digits.load("test")
    new = np.concatenate([held[0], digits.letters(), digits.noise(300)])
    network = trained(*train)
    model = si_jax.Model(network, input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    known = {part: outputs(network, x) for part, x in (("train", train[0]), ("held", held[0]))}
    print(f"accuracy {np.mean(known['held'][0].argmax(1) == held[1]):.1%} of the test digits")
    off = np.abs(model.logits(new) - outputs(network, new)[0]).max()
    print(f"largest difference of the logits {off:.1e}\n")
    print(f"{'detector':22}{'rank correlation':>18}{'largest difference':>20}")
    made, seconds = {}, 0.0
    weights = network.head.weight.detach().numpy().T, network.head.bias.detach().numpy()
    for name, (make, options) in peers(*weights).items():
        part = "held" if name == "temperature-scaling" else "train"  # it learns from mistakes
        labels = held[1] if part == "held" else train[1]
        made[name] = si_jax.make_detector(name, model, **options)
        made[name].fit(held[0] if part == "held" else train[0], labels)
        ours = made[name].score(new).astype(np.float64)
        theirs, taken = published(make, (*known[part], labels), partial(outputs, network, new))
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
