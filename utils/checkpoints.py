"""Checkpoint folders: loaded whole or refused, and compared with the frozen models that they were trained with."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import torch

from utils.errors import InputError, reason, say

LARGEST_SIZE = 1_000_000  # of any number in a configuration: words, channels, tokens, time steps
LARGEST_DEPTH = 1_000  # layers
_CONSTANTS = {  # what a sampler reads of a training's constants
    "BASE_MODEL": str, "REFERENCE_ENCODER": str, "BART_CHECKPOINT": str, "DATA_ROOT": str, "CACHE_DIR": str,
    "REPORTS_ROOT": str, "PROMPT": str, "TEXT_ENCODER": str, "VIEWS": list, "HOLD_OUT": list, "IMAGE_SIZE": int,
}  # fmt: skip
_OLDER = {"PROMPT": "findings", "TEXT_ENCODER": "", "REPORTS_ROOT": ""}  # what stands for a constant that came later
_WAYS_OUT = {  # frozen model => what to do about another one than the checkpoint was trained with
    "vae": "set BASE_MODEL to the one it was trained with",
    "text_encoder": "set BASE_MODEL, or TEXT_ENCODER where it was trained with one, to the one it was trained with",
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
    """`model_class.from_pretrained(folder)`, but whatever does not fit is an InputError that names the folder.

    That is: no such folder, a weight that is missing, left over, misshapen or no number, a file that is damaged or that
    holds code (it is not run), impossible sizes in config.json.
    """
    try:
        check_config(folder, options.get("subfolder", ""))
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=Path(folder).exists(), **options
        )
    except Exception as error:  # a broken file fails in whatever reads it
        raise InputError(
            f"cannot load a {model_class.__name__} from {folder}: {why_unloaded(folder, error)}"
        ) from error
    check_loaded(info, folder)
    check_finite(model, folder)
    return model


def why_unloaded(folder, error):
    """Why a model could not be loaded from a folder (or hub id), in words that end no sentence."""
    if not Path(folder).exists():
        is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(folder))
        return "there is no such folder here" + (
            f", nor could it be had from the hub: {reason(error)}" * bool(is_hub_id)
        )
    if _is_of_pickle(error):  # torch's own words are how to run it all the same
        return "a file of its weights holds code, or is no file of tensors; nothing of it was run"
    return reason(error)


def _is_of_pickle(error):
    """Whether an error, or one that it came from, is torch's refusal to unpickle anything but tensors."""
    while error is not None:
        if isinstance(error, pickle.UnpicklingError):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_config(folder, subfolder="", file="config.json"):
    """InputError if a folder has no configuration (a library would take its own), or one with sizes of no model.

    Building a network of such a size would fill the memory. What does not exist here may be a hub id, and passes.
    """
    path = Path(folder) / subfolder / file
    if not Path(folder).is_dir():
        return
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    for name, number in _numbers(config):
        if not abs(number) <= (LARGEST_DEPTH if "layers" in name or name == "depth" else LARGEST_SIZE):
            raise InputError(f"{path} states {name} = {number}: that is no size of a model")


def _numbers(value, name=""):
    """The numbers in a tree of JSON, each with the name that it stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, (int, float)):
        yield name, value


def check_finite(module, where):
    """InputError if a weight is NaN or infinite; where: what the weights were loaded from."""
    broken = [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise InputError(
            f"the weights in {where} are damaged: {len(broken)} tensors hold NaN or infinity, e.g. {broken[0]}; take "
            "another checkpoint"
        )


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
    """The training.json of a checkpoint: step, losses, constants and facts. InputError if it is absent or damaged.

    A constant that it does not have is an InputError when it is asked for.
    """
    path = Path(checkpoint) / "training.json"
    if not Path(checkpoint).exists():
        raise InputError(f"there is no checkpoint {checkpoint}: set CHECKPOINT to a folder such as runs/clipUViT/best")
    try:
        training = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{checkpoint} is no checkpoint of this project (no readable training.json in it: {reason(error)}): "
            "set CHECKPOINT to a folder such as runs/clipUViT/best"
        ) from error
    constants = training.get("constants") if isinstance(training, dict) else None
    if not isinstance(constants, dict) or not isinstance(training.get("encoders", {}), dict):
        raise InputError(f"{path} is damaged: it has no table of constants, or of encoders; take another checkpoint")
    for name, value in constants.items():
        if name in _CONSTANTS and (not isinstance(value, _CONSTANTS[name]) or value is True):
            raise InputError(f"{path} is damaged: it says {name} = {value!r}; take another checkpoint")
    training["constants"] = _Constants(path, {**_OLDER, **constants})
    return training


class _Constants(dict):
    """The constants of a training; one that is missing is an InputError."""

    def __init__(self, path, constants):
        super().__init__(constants)
        self.path = path

    def __missing__(self, name):
        raise InputError(f"{self.path} does not say {name}: set {name}, or take another checkpoint")


def check_encoders(training, **found):
    """InputError unless the frozen models are those that a checkpoint was trained with.

    training: its training.json; found: a fingerprint by the name of each frozen model at hand (those of _WAYS_OUT).
    """
    if "source" in training:  # an authors' file
        say(f"{training['source']} does not say what it was trained with: {', '.join(found)} taken unchecked")
        return
    for name, fingerprint in found.items():
        expected = training.get("encoders", {}).get(name)
        if not isinstance(expected, str):
            raise InputError(
                f"the checkpoint's training.json does not say which {name} it was trained with; take another checkpoint"
            )
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


def encoder_fingerprints(vae, text_encoder, reference_encoder):
    """Which frozen encoders a checkpoint was trained with; kept in it and compared when it is sampled."""
    return {
        "vae": weights_fingerprint(vae),
        "text_encoder": text_encoder.fingerprint(),
        "reference_encoder": reference_encoder.fingerprint(),
    }
