"""Compare the detectors with pytorch-ood's, score by score, on the bundled digits network.

python scripts/compare_published.py

Needs `pip install pytorch-ood`, which si_jax itself never does. Both get the same logits and
features, of test digits, letters and noise, and are fitted on the same training digits. Prints for
each detector the rank correlation and the largest difference of the scores, relative to their
spread; a line's note says where the two differ on purpose.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import si_jax
from si_jax import cli
from si_jax.data import digits

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


def published(make: Callable[[], Any], fit: tuple, new: tuple) -> np.ndarray:
    """Scores of pytorch-ood's detector, higher = in-distribution.

    Args:
        make: makes the detector.
        fit: logits, features and labels to fit on.
        new: logits and features to score.
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
    given = torch.tensor(new[0] if kind == "logits" else new[1])
    scores = getattr(detector, f"predict_{kind}")(given[:, :, None, None] if maps else given)
    return -scores.detach().double().numpy()


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        import pytorch_ood  # noqa: F401
    except ImportError as error:
        raise ValueError('pytorch-ood is missing: run `pip install "pytorch-ood"`') from error
    model = si_jax.load_model("digits")
    train, held = digits.load("train"), digits.load("test")
    new = np.concatenate([held[0], digits.letters(), digits.noise(300)])
    outputs = model.logits(new), model.features(new)
    node = model.variables["params"][model.head]
    print(f"{'detector':22}{'rank correlation':>18}{'largest difference':>20}")
    for name, (make, options) in peers(
        np.asarray(node["kernel"]), np.asarray(node["bias"])
    ).items():
        held_out = name == "temperature-scaling"  # it learns from what is classified wrong
        given = held if held_out else train
        detector = si_jax.make_detector(name, model, **options).fit(*given)
        ours = detector.score(new).astype(np.float64)
        theirs = published(
            make, (model.logits(given[0]), model.features(given[0]), given[1]), outputs
        )
        rank = spearmanr(ours, theirs).statistic
        scaled = [(x - x.mean()) / x.std() for x in (ours, theirs)]
        difference = np.abs(scaled[0] - scaled[1]).max()
        note = f"  {NOTES[name]}" if name in NOTES else ""
        print(f"{name:22}{rank:18.6f}{difference:20.1e}{note}", flush=True)


if __name__ == "__main__":
    cli.run(main)
