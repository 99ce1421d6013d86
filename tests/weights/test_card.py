"""Cards: whatever a card holds, it is read or refused in one sentence, at once."""

import json
import os

import pytest

import si_jax
from si_jax.weights.card import read_card

CARD = {
    "model": "resnet8",
    "options": {"blocks": [1, 1, 1], "widths": [16, 32, 64]},
    "num_classes": 10,
    "input_size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "sha256": "0" * 64,
}


def written(path, card):
    path.write_text(card if isinstance(card, str) else json.dumps(card))
    return path


def test_a_card_is_read(tmp_path):
    card = {**CARD, "accuracy": 0.9, "note": [1, None]}
    assert read_card(written(tmp_path / "card.json", card)) == card


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "must be an object"),
        ("[" + "1," * 500_000 + "1]", "larger than 1000000 bytes"),
        (CARD | {"model": 3}, r"model \(=3\) must be the name"),
        (CARD | {"mean": [float("nan")] * 3}, "NaN or infinite"),
        (json.dumps(CARD).replace("0.2", "1e999"), "NaN or infinite"),
        (CARD | {"accuracy": float("inf")}, "NaN or infinite"),
        (CARD | {"std": [0.2, 0, 0.2]}, r"std \(=\[0.2, 0, 0.2\]\) must be a list.*positive"),
        (CARD | {"std": [0.2]}, "one number a channel each"),
        (CARD | {"num_classes": True}, r"num_classes \(=True\) must be a whole number"),
        (CARD | {"num_classes": 10**30}, "num_classes"),
        (CARD | {"input_size": [32]}, "input_size"),
        (CARD | {"input_size": [0, 32]}, "input_size"),
        (CARD | {"input_size": 10**9}, "input_size"),
        (CARD | {"options": {"blocks": [[1]]}}, "options"),
        (CARD | {"options": {"blocks": [10**9, 1, 1]}}, "options"),
        (CARD | {"sha256": None}, "sha256"),
        ({k: v for k, v in CARD.items() if k != "mean"}, "mean is missing; it must be"),
    ],
)
def test_what_is_no_card(card, message, tmp_path):
    with pytest.raises(ValueError, match=rf"card\.json is no checkpoint card.*{message}") as info:
        read_card(written(tmp_path / "card.json", card))
    assert len(str(info.value).splitlines()) == 1 and len(str(info.value)) < 500


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [1_000_000, 1, 1]}, r"blocks \(=\(1000000, 1, 1\)\) must be"),
        ({"blocks": [0, 1, 1]}, "must be"),
        ({"blocks": [1, 1]}, "must be"),
        ({"blocks": 3}, "must be"),
        ({"widths": ["a", "b", "c"]}, "must be"),
        ({"widths": [-4, 4, 4]}, "must be"),
        ({"shortcut": 3}, "must be"),
        ({"colour": "red"}, "does not take these options"),
        ({"dtype": "text"}, "options"),
    ],
)
def test_options_that_make_no_network(options, message, tmp_path):
    card = CARD | {"options": {**CARD["options"], **options}}
    written(tmp_path / "card.json", card)
    with pytest.raises(ValueError, match=message):
        si_jax.load_model(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "card.json")
    with pytest.raises(ValueError, match="it is no file"):
        read_card(tmp_path / "card.json")
    with pytest.raises(ValueError, match="unknown checkpoint"):
        si_jax.load_model(tmp_path)
