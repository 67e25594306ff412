"""For people who only want the model: load() a checkpoint, export() it for open_clip.

Needs torch, open_clip and safetensors; neither deepspeed nor wandb, and faiss only for a memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from clipkit.checkpoint.files import flush, sha256, share, write_text
from clipkit.checkpoint.heads import heads_reader, write_heads
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import MANIFEST, checkpoint_step, find_checkpoint, read_json
from clipkit.contracts import Batch, Outputs
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.calibration import Centring, Shift, for_queries, load_calibration
from clipkit.retrieval.refined_model import refine_model
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.arch import read_arch
from clipkit.towers.build import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Towers,
    build_towers,
    download_tag,
    load_open_clip_state,
    load_pretrained,
    pretrained_preprocess,
)
from clipkit.towers.dual import DualEncoder, FeatureEncoder
from clipkit.towers.identity import facts_hash, weights_hash

Method = Literal["head", "prototype"]
Sides = Literal["both", "image", "text"]
Texts = Literal["document", "query"]


def is_export(path: str | Path) -> bool:
    """Whether `path` is a folder in open_clip's layout, ours or another's."""
    return (Path(path) / CONFIG_NAME).is_file() and (Path(path) / WEIGHTS_NAME).is_file()


def resolve(path: str | Path, arch: str | None = None) -> Path:
    """The checkpoint that a run folder stands for now, else the path itself.

    Raises:
        CheckpointError: Nothing there, or a folder without a valid checkpoint.
    """
    path = Path(path)
    if arch is not None and not path.exists():
        return path  # a pretrained tag
    if path.is_file() or is_export(path) or (path / MANIFEST).is_file():
        return path.resolve()
    return find_checkpoint(path).resolve()


def load_towers(
    path: str | Path, nonscalar_logit_scale: bool = False, arch: str | None = None
) -> Towers:
    """Towers with the weights of a run folder, a checkpoint folder or an exported folder.

    With `arch`, an open_clip architecture, `path` may also be a weights file of open_clip's (.pt or
    .safetensors) or one of its pretrained tags.

    Raises:
        CheckpointError: Nothing there, damaged, or weights that do not fit their config.
        ConfigError: Unknown architecture or tag, or a tag that cannot be fetched.
    """
    path = Path(path)
    if arch is not None or path.is_file():
        return _load_weights_file(path, nonscalar_logit_scale, arch)
    if is_export(path):
        if (path / MANIFEST).is_file():
            find_checkpoint(path)
        config = read_json(path / CONFIG_NAME)
        try:
            state = safetensors.torch.load_file(path / WEIGHTS_NAME)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path / WEIGHTS_NAME}: cannot be read: {error}") from None
        source = str(path)
    else:
        reader = CheckpointReader(find_checkpoint(path))
        config, state, source = reader.config, reader.towers_state(), str(reader.folder)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise CheckpointError(f"{source}: {CONFIG_NAME} has no model_cfg; export it again")
    towers = build_towers(
        config["model_cfg"],
        preprocess_cfg=config.get("preprocess_cfg"),
        nonscalar_logit_scale=nonscalar_logit_scale,
    )
    load_open_clip_state(towers.clip, state, source)
    towers.clip.eval()
    return towers


def _load_weights_file(path: Path, nonscalar_logit_scale: bool, arch: str | None) -> Towers:
    """Towers of a named architecture with open_clip's weights, from a file or by a tag."""
    if arch is None:
        raise CheckpointError(f"{path} is a weights file; name its architecture (--arch ViT-B-32)")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder and knows its architecture; leave --arch out")
    preprocess: dict[str, Any] = {}
    file = str(path)
    if not path.is_file():
        file, preprocess = download_tag(arch, str(path)), pretrained_preprocess(arch, str(path))
    towers = build_towers(
        read_arch(arch), preprocess_cfg=preprocess, nonscalar_logit_scale=nonscalar_logit_scale
    )
    load_pretrained(towers.clip, file)
    towers.clip.eval()
    return towers


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    calibration: bool | str | Path | None = None,
    memory: str | Path | Sequence[str] | None = None,
    fusion: Method = "head",
    refine: Sides | None = None,
    shift: float | None = None,
    texts: Texts = "document",
) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """Load a trained model for use.

    With a calibration or a memory, `encode_image` and `encode_text` of the model (and all of
    open_clip that calls them) give refined features: fp32, of unit length whatever is asked for.

    Args:
        path: A run folder, a checkpoint folder inside it, or an exported folder.
        device: Where the model goes.
        calibration, memory, shift: As in `refinements_of`.
        fusion: `method` of `refinements_of`.
        refine: `sides` of `refinements_of`.
        texts: Whose mean centring subtracts in `encode_text`: "document", that of texts that are
            searched or compared; "query", that of texts that are asked with, as `clipkit search`
            does. Load the model twice where there are both.

    Returns:
        (model, preprocess, tokenizer): an open_clip model in eval mode with `encode_image` and
        `encode_text`, a PIL image -> (3, H, W) transform, and list of str -> (n, L) tokens.

    Raises:
        CheckpointError: Nothing there, or damaged; names the file. As `refinements_of`.
        ConfigError: As `refinements_of`.
    """
    check_options(calibration, memory, fusion, refine, shift)
    if texts not in ("document", "query"):
        raise ConfigError(f"texts '{texts}': choose document or query")
    if not calibration and memory is None:
        towers = load_towers(path)
        return towers.clip.to(device), towers.preprocess, towers.tokenizer
    place = resolve(path)  # a run in training may get a newer checkpoint meanwhile
    towers = load_towers(place)
    model = towers.clip.to(device)
    found = refinements_of(
        place,
        calibration=calibration,
        memory=memory,
        method=fusion,
        sides=refine,
        shift=shift,
        weights=weights_hash(towers),
    )
    refine_model(model, for_queries(found) if texts == "query" else found)
    return model, towers.preprocess, towers.tokenizer


def calibration_path(path: str | Path) -> Path:
    """Where the calibration of a run (whichever of its checkpoints) or of an export lies.

    Raises:
        ConfigError: A weights file or a tag, which has no folder of its own.
    """
    place = Path(path)
    if not place.is_dir():
        raise ConfigError(f"{place}: is no folder that keeps a calibration; name the file")
    if checkpoint_step(place) is not None and place.resolve().parent.name == "checkpoints":
        place = place.resolve().parent.parent
    return place / "calibration.safetensors"


def refinements_of(
    path: str | Path,
    *,
    calibration: bool | str | Path | None = None,
    memory: str | Path | Sequence[str] | None = None,
    method: Method = "head",
    sides: Sides | None = None,
    shift: float | None = None,
    arch: str | None = None,
    weights: str | None = None,
) -> list[Refinement]:
    """What is to be done to a checkpoint's features: a memory's evidence first, then centring.

    Args:
        path: As in `load_towers`.
        calibration: File of `clipkit calibrate`; True or "auto": the one beside the checkpoint.
        memory: Folder of `clipkit-data memory build`, or several.
        method: With a memory, "head": as the trained heads of the checkpoint do; "prototype":
            a feature becomes the mean of its neighbours, nothing trained.
        sides: Features that the memory refines; None: both by heads, texts by prototypes.
        shift: Weight of a shift along the gap, in place of centring.
        arch: As in `load_towers`.
        weights: The model's weights hash, where it is known; else the weights are read for it.

    Raises:
        CheckpointError: Calibration or memory of other weights, or no heads in the checkpoint.
        ConfigError: An option without what it is for.
    """
    check_options(calibration, memory, method, sides, shift)
    if not calibration and memory is None:
        return []
    place = resolve(path, arch)
    if weights is None:
        weights = weights_hash(load_towers(place, arch=arch))
    found: list[Refinement] = []
    if memory is not None:
        found.append(_from_memory(place, memory, weights, method, sides))
    if calibration:
        beside = calibration in (True, "auto")
        file = calibration_path(place) if beside else Path(str(calibration))
        fitted = load_calibration(file, weights)
        fitted.check(weights, [refinement.name for refinement in found], str(file))
        found.append(Centring(fitted) if shift is None else Shift(fitted, shift))
    return found


def check_options(
    calibration: object, memory: object, method: str, sides: str | None, shift: float | None
) -> None:
    """See that options of `refinements_of` go together, before anything is loaded.

    Raises:
        ConfigError: They do not.
    """
    if method not in ("head", "prototype"):
        raise ConfigError(f"fusion '{method}': choose head or prototype")
    if sides not in (None, "both", "image", "text"):
        raise ConfigError(f"refine '{sides}': choose both, image or text")
    if memory is None and (method != "head" or sides):
        raise ConfigError("fusion and refine are done with a memory; give --memory (memory=...)")
    if shift is not None and not calibration:
        raise ConfigError("a shift needs means; give --calibration (calibration=...)")


def _from_memory(
    place: Path,
    memory: str | Path | Sequence[str],
    weights: str,
    method: str,
    sides: Sides | None,
) -> Refinement:
    from clipkit.addons.retrieval_fusion import Fusion, Prototype, heads_of
    from clipkit.retrieval.memory import open_memory

    opened = open_memory(memory, weights)
    if method == "prototype":
        return Prototype(opened, sides=sides or "text")
    reader = heads_reader(place)
    heads = heads_of(reader) if reader else None
    if heads is None:
        raise CheckpointError(
            f"{place}: has no fusion heads; train with the retrieval_fusion add-on, or give "
            f"--fusion prototype (fusion='prototype')"
        )
    return Fusion(heads, opened, sides=sides or "both")


def load_encoder(
    path: str | Path,
    *,
    device: torch.device | None = None,
    arch: str | None = None,
    precision: str = "fp32",
) -> FeatureEncoder:
    """The model as evaluation wants it, with the hashes its features are stored under.

    Args:
        path: As in `load_towers`.
        device: Where it goes.
        arch: As in `load_towers`.
        precision: "fp32", or "bf16" for autocast inside the towers; features are fp32 either way.
    """
    device = device or torch.device("cpu")
    towers = load_towers(path, nonscalar_logit_scale=True, arch=arch)
    autocast = torch.bfloat16 if precision == "bf16" else None
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std, autocast=autocast)
    model.to(device).eval()

    @torch.no_grad()
    def forward(batch: Batch) -> Outputs:
        return model(batch)

    return FeatureEncoder(
        forward,
        towers.preprocess,
        towers.tokenizer,
        device,
        weights_hash=weights_hash(towers),
        transform_hash=facts_hash(towers.config["preprocess_cfg"]),
        tokenizer_hash=facts_hash(towers.config["model_cfg"]["text_cfg"]),
        precision=precision,
    )


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Write a checkpoint in open_clip's layout.

    Read it with `open_clip.create_model_and_transforms("local-dir:OUT")`. Trained heads of add-ons
    lie beside, for clipkit alone.

    Args:
        checkpoint: A run folder or a checkpoint folder.
        out: A new or empty folder.

    Returns:
        `out`.

    Raises:
        CheckpointError: The checkpoint is damaged, or `out` already holds files.
    """
    out = new_folder(out)
    reader = CheckpointReader(find_checkpoint(checkpoint))
    state = reader.towers_state()
    out.mkdir(parents=True, exist_ok=True)
    write_export(out, state, reader.config, beside=write_heads(reader, out))
    return out


def new_folder(out: str | Path) -> Path:
    """`out` as a path.

    Raises:
        CheckpointError: It already holds files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} already exists and is not empty; export into a new folder")
    return out


def write_export(
    out: Path, state: dict[str, Tensor], config: dict[str, Any], beside: Sequence[Path] = ()
) -> None:
    """Write weights and config in open_clip's layout, and a manifest of them and of `beside`."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / WEIGHTS_NAME
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in state.items()}, weights, {"format": "pt"}
    )
    share(weights)
    flush(weights)
    write_text(out / CONFIG_NAME, json.dumps(config, indent=1))
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in (weights, out / CONFIG_NAME, *beside)
    }
    write_text(out / MANIFEST, json.dumps({"format": "clipkit-1", "files": files}, indent=1))
