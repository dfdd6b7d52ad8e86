"""Checkpoint folders: loaded completely or refused, and compared with the frozen models that they were trained with."""

import hashlib
import json
import pickle
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError, as_input_error, reason, say

_ADDED_LATER = {"PROMPT": "findings", "TEXT_ENCODER": "", "REPORTS_ROOT": ""}  # constants that older checkpoints lack
_CONSTANTS = {  # frozen model => the constant that names it
    "vae": "BASE_MODEL", "text_encoder": "BASE_MODEL (or TEXT_ENCODER)", "reference_encoder": "REFERENCE_ENCODER",
    "bart": "BART_CHECKPOINT", "pooling": "BART_CHECKPOINT",
}  # fmt: skip


def load_strictly(model_class: type, folder: str | Path, **options) -> nn.Module:
    """`model_class.from_pretrained(folder)`, but an InputError that names the folder if anything does not fit.

    That is: no such folder or configuration, a weight that is missing, left over, misshapen or not finite, a file that
    is damaged or that holds code (which is not run).
    """
    failed = f"cannot load {model_class.__name__} from {folder}"
    # libraries raise errors of any type for a broken file
    with as_input_error(lambda error: f"{failed}: {why_unloaded(folder, error)}"):
        check_config(folder, options.get("subfolder", ""))
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=Path(folder).exists(), **options
        )
    check_loaded(model, info, folder)
    return model


def why_unloaded(folder: str | Path, error: Exception) -> str:
    """Why a model could not be loaded from a folder (or hub id), as a clause for a message."""
    if not Path(folder).exists():
        is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(folder))
        from_hub = f", nor could it be loaded from the hub: {reason(error)}" if is_hub_id else ""
        return f"there is no such folder here{from_hub}"
    cause = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:  # torch's own message explains how to load it all the same
        return "a file of its weights holds code, or is not a file of tensors; nothing of it was run"
    return reason(error)


def check_config(folder: str | Path, subfolder: str = "", file: str = "config.json") -> None:
    """InputError if a folder (a hub id passes) has no configuration, in whose place a library would use its own."""
    path = Path(folder) / subfolder / file
    if Path(folder).is_dir() and not path.is_file():
        raise InputError(f"there is no file {path}")


def check_finite(module: nn.Module, where: str | Path) -> None:
    """InputError if a weight is NaN or infinite; where: the place that the weights were loaded from."""
    weights = {name: own for name, own in module.state_dict().items() if own.is_floating_point() and not own.is_meta}
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        what = f"{len(broken)} tensors hold NaN or infinity, e.g. {broken[0]}"
        raise InputError(f"the weights in {where} are damaged: {what}; take another checkpoint")


def check_loaded(model: nn.Module, info: dict, folder: str | Path) -> None:
    """InputError unless file and model have the same weights, all finite; info: the loading info of from_pretrained."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            keys = f"{len(info[problem])} {problem.replace('_', ' ')}, e.g. {sorted(map(str, info[problem]))[:3]}"
            raise InputError(f"the weights in {folder} are not of the architecture in its config.json: {keys}")
    check_finite(model, folder)


def load_weights(module: nn.Module, state: dict, what: str, way_out: str) -> None:
    """module.load_state_dict(state); an InputError with what it was and the way out if names or shapes differ."""
    other = f"{what} is a checkpoint of another architecture"
    with as_input_error(lambda error: f"{other} ({reason(error)}); {way_out}", RuntimeError):
        module.load_state_dict(state)


def read_training(checkpoint: str | Path) -> dict:
    """The training.json of a checkpoint: step, losses, constants and facts. InputError if it is absent or damaged."""
    way_out = "set CHECKPOINT to a folder such as runs/clipUViT/best"
    if not Path(checkpoint).exists():
        raise InputError(f"there is no checkpoint {checkpoint}: {way_out}")
    with as_input_error(lambda error: f"{checkpoint} has no readable training.json ({reason(error)}): {way_out}"):
        training = json.loads(Path(checkpoint, "training.json").read_text())
        return {**training, "constants": {**_ADDED_LATER, **training["constants"]}}


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) over the shapes and values of a module's weights, wherever they were loaded from.

    Names do not count, since libraries rename them; a tensor under several names counts once; a tensor of whole numbers
    (positions, counters), which some versions of a library save and others do not, does not count.
    """
    digests = {}
    for tensor in module.state_dict().values():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.is_floating_point() and place not in digests:
            digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            digests[place] = digest.digest()
    return hashlib.sha256(b"".join(sorted(digests.values()))).hexdigest()


def encoder_fingerprints(vae: nn.Module, text_encoder, reference_encoder) -> dict[str, str]:
    """The fingerprints of the frozen encoders, which a checkpoint keeps and `check_encoders` compares."""
    models = {"vae": vae, "text_encoder": text_encoder.model, "reference_encoder": reference_encoder.tower}
    return {name: weights_fingerprint(model) for name, model in models.items()}


def check_encoders(training: dict, **fingerprints: str) -> None:
    """InputError unless frozen models (names of _CONSTANTS) have the fingerprints that a training.json states."""
    if "source" in training:  # an authors' file
        say(f"{training['source']} does not say what it was trained with: {', '.join(fingerprints)} taken unchecked")
        return
    for name, fingerprint in fingerprints.items():
        expected = str(training.get("encoders", {}).get(name))
        if expected != fingerprint:
            other = f"another {name} (fingerprint {expected[:12]}, this one has {fingerprint[:12]})"
            way_out = f"set {_CONSTANTS[name]} to the one it was trained with"
            raise InputError(f"the checkpoint was trained with {other}: {way_out}")


def check_hold_out(hold_out: Collection[str], **checkpoints: str | Path) -> None:
    """InputError unless the patient groups in hold_out are those that were held out of each checkpoint's training.

    checkpoints: folders by the name of their constant. An authors' file does not state its groups and is not compared.
    """
    for name, checkpoint in checkpoints.items():
        if not (Path(checkpoint) / "training.json").exists():
            continue
        training = read_training(checkpoint)
        found = training["constants"].get("HOLD_OUT")
        if "source" in training or found is None:
            say(f"{name} {checkpoint} does not say which patient groups were held out of its training: taken unchecked")
        elif {*found} != {*hold_out}:
            trained = f"{name} {checkpoint} was trained with {tuple(found)} held out"
            way_out = f"set HOLD_OUT to {tuple(found)}, or train again"
            raise InputError(f"HOLD_OUT is {tuple(hold_out)}, and {trained}: {way_out}")


def check_hold_out_of_tree(hold_out: Collection[str], tree: str | Path, checkpoints: Iterable[str]) -> None:
    """`check_hold_out` for a synthetic tree; checkpoints: of its images, "" for one that has none."""
    for checkpoint in sorted({*checkpoints} - {""}):
        check_hold_out(hold_out, **{f"the checkpoint of {tree},": checkpoint})
