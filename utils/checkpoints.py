"""Checkpoint folders: loaded whole or refused, and compared with the frozen models that they were trained with."""

import hashlib
import json
from pathlib import Path

import torch

from utils.errors import InputError, reason, say

_WAYS_OUT = {  # frozen model => what to do about another one than the checkpoint was trained with
    "vae": "set BASE_MODEL to the one it was trained with",
    "text_encoder": "set BASE_MODEL to the one it was trained with",
    "reference_encoder": "set REFERENCE_ENCODER to the one it was trained with",
    "bart": "set BART_CHECKPOINT to the one it was trained with, or train the prior again",
    "pooling": "set BART_CHECKPOINT to the one it was trained with",
}


def weights_fingerprint(module):
    """SHA-256 (hex) over the shapes and values of a module's weights: the same wherever they were loaded from.

    Names take no part, since libraries rename them; a tensor under several names counts once, and one of whole numbers
    (positions, counters), which some versions of a library save and others do not, not at all.
    """
    digests = {}
    for tensor in module.state_dict().values():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.is_floating_point() and place not in digests:
            digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            digests[place] = digest.digest()
    return hashlib.sha256(b"".join(sorted(digests.values()))).hexdigest()


def load_strictly(model_class, folder, **options):
    """`model_class.from_pretrained(folder)`, but a missing, left-over or misshapen weight is an InputError."""
    try:
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=Path(folder).exists(), **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load a {model_class.__name__} from {folder}: {reason(error)}") from error
    check_loaded(info, folder)
    return model


def check_loaded(info, folder):
    """InputError unless every weight found its place and every place its weight; info: what from_pretrained reports."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise InputError(
                f"the weights in {folder} are not of the architecture in its config.json: "
                f"{len(info[problem])} {problem.replace('_', ' ')}, e.g. {sorted(map(str, info[problem]))[:3]}"
            )


def load_weights(module, state, what, way_out):
    """module.load_state_dict(state), but other names or shapes are an InputError: `what` does not fit, and the way out."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{what} is a checkpoint of another architecture ({reason(error)}); {way_out}") from error


def read_training(checkpoint):
    """The training.json of a checkpoint: step, losses, constants and facts. InputError if there is none."""
    path = Path(checkpoint) / "training.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{checkpoint} is no checkpoint of this project (no readable training.json in it): "
            "set CHECKPOINT to a folder such as runs/clipUViT/best"
        ) from error


def check_encoders(training, **found):
    """InputError unless the frozen models are those that a checkpoint was trained with.

    training: its training.json; found: a fingerprint by the name of each frozen model at hand (those of _WAYS_OUT).
    """
    if "source" in training:  # an authors' file
        say(f"{training['source']} does not say what it was trained with: {', '.join(found)} taken unchecked")
        return
    for name, fingerprint in found.items():
        expected = training.get("encoders", {}).get(name, "unknown")
        if expected != fingerprint:
            raise InputError(
                f"the checkpoint was trained with another {name} (fingerprint {expected[:12]}, this one has "
                f"{fingerprint[:12]}): {_WAYS_OUT[name]}"
            )


def check_hold_out(hold_out, **checkpoints):
    """InputError unless the patient groups in hold_out are those that were held out of each checkpoint's training.

    checkpoints: folders by the name of their constant. An authors' file, whose hold-out nobody wrote down, is not compared.
    """
    for name, checkpoint in checkpoints.items():
        if not (Path(checkpoint) / "training.json").exists():
            continue
        training = read_training(checkpoint)
        found = training["constants"].get("HOLD_OUT")
        if "source" in training or found is None:
            say(f"{name} {checkpoint} does not say which patient groups were held out of its training: taken unchecked")
        elif {*found} != {*hold_out}:
            raise InputError(
                f"HOLD_OUT is {tuple(hold_out)}, and {name} {checkpoint} was trained with {tuple(found)} held out, so that "
                f"test patients of one were training patients of the other: set HOLD_OUT to {tuple(found)}, or train again"
            )
