"""What the denoising loop leaves out changes no number, and is left out indeed."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pipeline import VideoAsPromptPipeline
from pipeline.conditioning import Conditions
from pipeline.denoise import denoise, prepare_scheduler
from pipeline.transformer import VideoAsPromptTransformer3DModel
from tests.pipeline.conftest import GOLDEN, read_golden
from tests.pipeline.plain_path import denoise_plainly

STEPS = 3
CPU = torch.device("cpu")
FIRST_EXPERT, LAST_EXPERT = "blocks.0.", "blocks.2."  # of the tiny checkpoint


@dataclass(frozen=True)
class Case:
    """A request on the tiny checkpoint."""

    pipe: VideoAsPromptPipeline
    conditions: Conditions
    noise: Tensor

    def run(self, guidance_scale: float = 5.0) -> Tensor:
        """Give the final latents."""
        scheduler = prepare_scheduler(self.pipe.scheduler, STEPS, CPU)
        with torch.no_grad():
            return list(denoise(self.pipe.transformer, scheduler, self.conditions, self.noise, guidance_scale))[
                -1
            ].latents


@pytest.fixture
def case(tiny_pipe: VideoAsPromptPipeline) -> Case:
    """The golden request."""
    golden = read_golden("pipeline_a")
    sizes = {name: golden.case[name] for name in ("height", "width", "num_frames")}
    conditions = tiny_pipe.encode_conditions(
        image=golden.picture(),
        reference_video=golden.clip(),
        texts=("a horse floats away, slowly", "a sneaker floats away"),
        negative_texts=("blurred", None),
        **sizes,
    )
    noise = torch.randn(1, 16, *conditions.condition_latents.shape[2:], generator=torch.Generator().manual_seed(1))
    return Case(tiny_pipe, conditions, noise)


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """Count how often each module that holds weights of its own is called."""
    calls: Counter[str] = Counter()
    own = [(name, part) for name, part in model.named_modules() if part._parameters]
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: calls.update([name])) for name, part in own]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_all_savings_together_change_no_number(case: Case, guidance_scale: float) -> None:
    """The loop gives the latents of the plain network, run branch by branch on 512 text rows, to 2e-5."""
    conditions = case.conditions
    if guidance_scale == 1:
        conditions = Conditions(**{**vars(conditions), "negative": None})
    scheduler = prepare_scheduler(case.pipe.scheduler, STEPS, CPU)

    plain = denoise_plainly(case.pipe.transformer, scheduler, conditions, case.noise, guidance_scale)

    fast = Case(case.pipe, conditions, case.noise).run(guidance_scale)
    torch.testing.assert_close(fast, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_blocks_can_be_compiled_whole(case: Case, guidance_scale: float) -> None:
    """As one graph each, by diffusers' own method."""
    plain = case.run(guidance_scale)

    case.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(case.run(guidance_scale), plain, rtol=0, atol=2e-5)


def test_branches_one_after_the_other_give_the_same(case: Case) -> None:
    """Splitting guidance, for small cards, changes no number: every block sees one row, twice a step."""
    together = case.run()
    rows: list[int] = []
    case.pipe.transformer.blocks[3].register_forward_hook(lambda module, args, out: rows.append(len(out[0])))

    scheduler = prepare_scheduler(case.pipe.scheduler, STEPS, CPU)
    with torch.no_grad():
        *_, last = denoise(case.pipe.transformer, scheduler, case.conditions, case.noise, 5.0, splits_guidance=True)

    assert rows == [1] * (2 * STEPS)
    torch.testing.assert_close(last.latents, together, atol=2e-5, rtol=0)


def test_several_videos_of_one_request_are_those_of_several_requests(case: Case) -> None:
    """Rows of videos and of guidance branches do not mix."""
    noise = torch.cat([case.noise, case.noise.flip(2), case.noise.flip(3)])

    together = Case(case.pipe, case.conditions, noise).run()

    alone = torch.cat([Case(case.pipe, case.conditions, one[None]).run() for one in noise])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_a_guided_step_passes_over_the_weights_once(case: Case) -> None:
    """Every layer of the loop is called once a step, for both guidance branches."""
    with counted_calls(case.pipe.transformer) as calls:
        case.run()

    assert set(calls.values()) == {1, STEPS}
    assert calls["blocks.3.ffn.net.2"] == calls["blocks.0.ffn_mot_ref.net.2"] == STEPS


@pytest.mark.parametrize(
    "constant",
    [
        "condition_embedder.time_proj",
        "condition_embedder_mot_ref.time_embedder.linear_1",
        "patch_embedding_mot_ref",
        "blocks.0.attn2.to_k",
        "blocks.3.attn2.add_v_proj",
        "blocks.0.attn2_mot_ref.to_v",
        FIRST_EXPERT + "attn1_mot_ref.to_q",
        FIRST_EXPERT + "attn1_mot_ref.to_v",
    ],
)
def test_what_is_constant_is_computed_once_a_request(case: Case, constant: str) -> None:
    """Embedders, keys and values of the contexts, and the reference's part in its first block run once."""
    with counted_calls(case.pipe.transformer) as calls:
        case.run()

    assert calls[constant] == 1


def test_rotary_tables_are_made_once_a_request(case: Case) -> None:
    """Both streams' tables, in single precision."""
    made = []
    for rope in (case.pipe.transformer.rope, case.pipe.transformer.rope_mot_ref):
        rope.register_forward_hook(lambda module, args, table: made.append(table))

    case.run()

    assert len(made) == 2
    assert {table.dtype for table in made} == {torch.complex64}


@pytest.mark.parametrize("dead", ["attn1_mot_ref.to_q", "attn1_mot_ref.to_out.0", "attn2_mot_ref", "ffn_mot_ref.net"])
def test_the_dead_parts_of_the_last_expert_are_never_called(case: Case, dead: str) -> None:
    """Of the last expert only keys and values of the joint attention matter."""
    with counted_calls(case.pipe.transformer) as calls:
        case.run()

    assert calls[LAST_EXPERT + "attn1_mot_ref.to_k"] == STEPS
    assert not [name for name in calls if name.startswith(LAST_EXPERT + dead)]


def test_the_branches_share_the_first_self_attention(case: Case) -> None:
    """Until the first cross-attention there is one row for both branches, then two."""
    rows = {}
    for index in (0, 1):
        attention = case.pipe.transformer.blocks[index].attn1.to_q
        attention.register_forward_hook(lambda module, args, out, index=index: rows.update({index: len(out)}))

    case.run()

    assert rows == {0: 1, 1: 2}


def test_the_14b_streams_little_more_than_a_third_a_step() -> None:
    """On the released model in bfloat16, a guided step reads at most 0.37 of the bytes that two plain passes read."""
    manifest = json.loads(gzip.decompress((GOLDEN / "wan21_14b_vap_manifest.json.gz").read_bytes()))
    with torch.device("meta"):
        model = VideoAsPromptTransformer3DModel.from_config(manifest["config"]).to(torch.bfloat16)
        keep = VideoAsPromptTransformer3DModel._keep_in_fp32_modules
        for name, weight in model.named_parameters():
            if set(name.split(".")) & set(keep):
                weight.data = weight.data.float()
        latents = torch.zeros(1, 36, 3, 8, 8, dtype=torch.bfloat16)
        texts = [torch.zeros(1, rows, 4096, dtype=torch.bfloat16) for rows in (20, 127)]
        image = torch.zeros(1, 257, 1280, dtype=torch.bfloat16)
        request = model.prepare(torch.zeros(50), texts, image, latents, texts, image)
        with counted_calls(model) as calls:
            model(latents, request.times.at(0), request)

    own_bytes = {
        name: sum(weight.nbytes for weight in part._parameters.values() if weight is not None)
        for name, part in model.named_modules()
    }
    streamed = sum(own_bytes[name] * count for name, count in calls.items())
    plain = 2 * sum(own_bytes.values())
    assert plain > 80e9
    assert streamed / plain <= 0.37
