"""A checkpoint is loaded whole or not at all, and the sentence says which part is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import VideoAsPromptPipeline
from pipeline.errors import ModelError
from tests.pipeline.conftest import GOLDEN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(GOLDEN / "tiny_vap", tmp_path / "model"))


def change_tensors(file: Path, *, drop: str | None = None, add: str | None = None) -> None:
    tensors = load_file(file)
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = torch.zeros(4)
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_released_layout_loads(folder: Path) -> None:
    """Class names that only the reference's fork has, two shards with an index, `*_mot_ref` keys: all is read."""
    pipe = VideoAsPromptPipeline.from_pretrained(folder)

    assert "WanTransformer3DMOTModel" in (folder / "model_index.json").read_text()
    assert [block.has_expert for block in pipe.transformer.blocks] == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_number_formats_are_the_references(folder: Path, dtype: torch.dtype) -> None:
    """Transformer and text encoder take the type asked for; VAE and CLIP stay in float32."""
    pipe = VideoAsPromptPipeline.from_pretrained(folder, dtype=dtype)

    assert (pipe.transformer.dtype, pipe.text_encoder.dtype) == (dtype, dtype)
    assert (pipe.vae.dtype, pipe.image_encoder.dtype) == (torch.float32, torch.float32)


def test_a_given_part_is_used_as_it_is(folder: Path, tiny_pipe: VideoAsPromptPipeline) -> None:
    """A part handed in is not loaded."""
    shutil.rmtree(folder / "vae")

    pipe = VideoAsPromptPipeline.from_pretrained(folder, vae=tiny_pipe.vae)

    assert pipe.vae is tiny_pipe.vae


def test_an_argument_of_other_pipelines_is_refused_with_what_there_is(folder: Path) -> None:
    """Most write `torch_dtype` for what is `dtype` here."""
    with pytest.raises(TypeError, match=r"no argument torch_dtype\. It takes dtype, .*: .*transformer.*\.$"):
        VideoAsPromptPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)


DAMAGES = [
    ("transformer", "diffusion_pytorch_model-00001-of-00002.safetensors", "blocks.0.attn1_mot_ref.to_q.weight"),
    ("vae", "diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
    ("text_encoder", "model.safetensors", "encoder.final_layer_norm.weight"),
    ("image_encoder", "model.safetensors", "vision_model.post_layernorm.bias"),
]


@pytest.mark.parametrize(("part", "file", "tensor"), DAMAGES)
# transformers and diffusers report the fault as a warning too, before we make it an error
@pytest.mark.filterwarnings("ignore")
def test_a_missing_tensor_is_named(folder: Path, part: str, file: str, tensor: str) -> None:
    """One tensor gone from any part is an error that names part and tensor."""
    change_tensors(folder / part / file, drop=tensor)

    with pytest.raises(ModelError, match=rf"The model's {part} lacks .*{tensor.split('.', 1)[-1]}"):
        VideoAsPromptPipeline.from_pretrained(folder)


@pytest.mark.parametrize(("part", "file", "tensor"), DAMAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_surplus_tensor_is_named(folder: Path, part: str, file: str, tensor: str) -> None:
    """A tensor the class does not know is an error: the file is another model's."""
    change_tensors(folder / part / file, add="blocks.0.stranger")
    index = folder / part / "diffusion_pytorch_model.safetensors.index.json"
    if index.exists():
        listing = json.loads(index.read_text())
        listing["weight_map"]["blocks.0.stranger"] = file
        index.write_text(json.dumps(listing))

    with pytest.raises(ModelError, match=rf"The model's {part} has tensors it should not have: .*stranger"):
        VideoAsPromptPipeline.from_pretrained(folder)


def test_the_one_known_surplus_is_let_pass(folder: Path) -> None:
    """`norm_added_q`, which some exporters of the base model store, is read by no Wan network."""
    file = folder / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    change_tensors(file, add="blocks.0.attn2.norm_added_q.weight")

    assert VideoAsPromptPipeline.from_pretrained(folder).transformer is not None


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def break_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def remove_part(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def remove_shard(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def cut_file(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def rename_scheduler(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("UniPCMultistepScheduler", "StrangerScheduler"))


FOLDER_FAULTS = [
    (remove_index, "holds no model_index.json"),
    (break_index, "is not valid JSON"),
    (remove_part, "has no folder “scheduler”"),
    (remove_shard, "The model's transformer could not be loaded"),
    (cut_file, "The model's vae could not be loaded"),
    (rename_scheduler, "scheduler “StrangerScheduler” is not known"),
]


@pytest.mark.parametrize(("damage", "sentence"), FOLDER_FAULTS)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, damage: object, sentence: str) -> None:
    """Missing, broken or cut files end in a sentence that names the part."""
    damage(folder)

    with pytest.raises(ModelError, match=sentence):
        VideoAsPromptPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no/such-model", "not a repository", "/no/such/folder"])
def test_a_model_that_is_nowhere_is_told_at_once(name: str, tmp_path: Path) -> None:
    """Neither a folder nor to be had from the hub: a sentence, and no connection when told to stay offline."""
    with pytest.raises(ModelError, match="neither a folder"):
        VideoAsPromptPipeline.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)
