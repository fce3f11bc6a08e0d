"""Videos: as many positions as placeholders, and proved by painting on one frame."""

from __future__ import annotations

import os
import random
from datetime import date

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from support.image_families import lens

from lensplug import views
from lensplug.errors import LensplugError
from lensplug.media import Video, load_video
from lensplug.positions.groups import group_positions

QUESTION = "What is this ?"
QWEN = [
    *(
        (name, 5)
        for name in (
            "qwen2.5-vl",
            "qwen3-vl",
            "qwen2.5-omni",
            "glm4v",
            "qwen3.5",
            "exaone4.5",
            "glm4v-moe",
            "hyperclovax",
            "qwen3-omni",
        )
    ),
    ("qwen2-vl", 6),
]
OF_PAIRS = [
    ("glm46v", 4),
    ("glm-ocr", 3),
    ("qwen3.5-moe", 3),
    ("cosmos3-omni", 4),
    ("glmga", 3),
    ("cohere-compass", 3),
    ("lfm3-vl", 3),
]
NESTED = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.24"), reason="SmolVLM's processor takes nested videos"
)
ONE_BY_ONE = [
    *((name, 3) for name in ("llava-onevision", "video-llama-3", "llava-next-video", "video-llava", "internvl")),
    *((name, 3) for name in ("perception-lm", "cosmos3-edge")),
    pytest.param("smolvlm", 3, marks=NESTED),
]
PAIRS = int(os.environ.get("LENSPLUG_PAIRS", "16"))
"""(frame, patch) pairs of a family; this was first shown with 200."""
SEED = os.environ.get("LENSPLUG_SEED", str(date.today().toordinal()))
LONGEST = 300


def clip(n_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, (n_frames, height, width, 3), dtype=np.uint8)


def test_a_video_has_its_frames_and_their_times():
    inputs = lens("llava-onevision").prepare(QUESTION, videos=[(clip(5, 90, 160), 2.5)])
    grid = inputs.modality.video_grid()
    assert grid is not None and grid.times_s is not None and grid.time_s is not None
    assert inputs.modality.names == ("text", "video")
    assert len(grid) == int(inputs.modality.mask("video").sum()) == 5 * 14 * 14 + 1
    assert (grid.n_frames, grid.height, grid.width) == (5, 90, 160)
    assert grid.times_s.tolist() == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert grid.newline.tolist() == [False] * 980 + [True] and int(grid.frame[-1]) == -1
    assert grid.time_s[:-1].tolist() == pytest.approx([0.4 * (i // 196) for i in range(980)])
    assert bool(grid.time_s[-1].isnan())
    assert inputs.videos[0][0].frames.shape == (5, 90, 160, 3)


@pytest.mark.parametrize(("name", "n_frames"), [*ONE_BY_ONE, *QWEN, *OF_PAIRS])
def test_painting_a_patch_of_a_frame_changes_the_positions_of_that_frame_whose_boxes_meet_it(name, n_frames):
    rng, trials = random.Random(f"{name} {SEED}"), 0
    wrapped = lens(name, attention=False)
    for seed in range(max(PAIRS // 20, 1)):
        frames = clip(n_frames, rng.randint(60, LONGEST), rng.randint(60, LONGEST), seed)
        inputs = wrapped.prepare(QUESTION, videos=[frames])
        grid, at = inputs.modality.video_grid(), inputs.modality.video_positions()
        assert grid is not None and grid.times_s is None and grid.time_s is None
        assert (grid.n_frames, grid.height, grid.width) == frames.shape[:3]
        placed = ~grid.boxes.isnan().any(dim=1)
        for token in rng.choices(placed.nonzero()[:, 0].tolist(), k=min(PAIRS, 20)):
            box = torch.cat([grid.boxes[token, :2].ceil(), grid.boxes[token, 2:].floor()]).int().tolist()
            frame = int(grid.frame[token]) + rng.randrange(int(grid.frames_seen[token]))
            painted = frames.copy()
            painted[frame, box[1] : box[3], box[0] : box[2]] += 130
            change = (wrapped.prepare(QUESTION, videos=[painted]).embeds - inputs.embeds)[0, at].norm(dim=1)
            overlap = grid.overlap(box, frame=frame)
            assert float(overlap[change.argmax()]) > 0
            assert bool((change[overlap > 0.5] > 0.02 * change.max()).all())
            assert bool((overlap[change > 0.7 * change.max()] > 0).all())
            assert not bool(change[~grid.tokens_of_frame(frame)].any())
            trials += 1
    assert trials >= PAIRS


@pytest.mark.parametrize(("name", "n_frames"), QWEN)
def test_a_position_of_qwen_2_vl_sees_two_frames_the_last_of_an_odd_number_one(name, n_frames):
    inputs = lens(name).prepare(QUESTION, videos=[(clip(n_frames, 90, 160), 2.5)])
    grid = inputs.modality.video_grid()
    assert grid is not None and grid.time_s is not None and grid.last_time_s is not None
    assert grid.n_frames == n_frames and len(grid) == int(inputs.modality.mask("video").sum())
    each = len(grid) // -(-n_frames // 2)
    assert grid.frame.tolist() == [2 * (token // each) for token in range(len(grid))]
    assert grid.frames_seen[::each].tolist() == [min(2, n_frames - frame) for frame in range(0, n_frames, 2)]
    assert torch.allclose(grid.last_time_s - grid.time_s, (grid.frames_seen - 1) * 0.4, atol=1e-6)
    values = torch.rand(len(grid), generator=torch.Generator().manual_seed(0))
    heat = grid.to_pixels(values, preserve_mass=True)
    assert heat.shape == (n_frames, 90, 160)
    assert float(heat.sum()) == pytest.approx(float(values.sum()), rel=1e-5)
    assert torch.equal(heat[0], heat[1]) and not torch.equal(heat[1], heat[2])
    assert torch.equal(grid.to_pixels(values)[0], grid.image_grid(0).to_pixels(values[:each]))
    names = group_positions(inputs).names
    assert "[frames 0-1]" in names and ("[frame 4]" in names) == (n_frames == 5)
    fig = views.video_overlay(torch.rand(inputs.tokens.shape[1]), inputs)
    assert len(fig.data) == n_frames


@pytest.mark.parametrize("name", ["qwen2-vl"])
def test_a_video_of_another_number_of_frames_has_no_grid(name):
    outputs = dict(lens(name).prepare(QUESTION, videos=[clip(6, 90, 160)]).model_inputs)
    with pytest.warns(UserWarning, match="the videos are not those.*its sizes differ"):
        modality = lens(name).encode(outputs, videos=[clip(4, 90, 160)]).modality
    assert len(modality.video_positions()) and modality.video_grid() is None


def test_values_are_painted_on_their_frames_and_keep_their_mass():
    grid = lens("llava-onevision").prepare(QUESTION, videos=[clip(3, 50, 70)]).modality.video_grid()
    assert grid is not None
    values = torch.rand(len(grid), generator=torch.Generator().manual_seed(0))
    heat = grid.to_pixels(values, preserve_mass=True)
    assert heat.shape == (3, 50, 70)
    for frame in range(3):
        mass = float(values[grid.tokens_of_frame(frame)].sum())
        assert float(heat[frame].sum()) == pytest.approx(mass, rel=1e-5)
    constant = grid.to_pixels(torch.ones(len(grid)))
    seen = 27 * 14 / 384
    assert set(constant[:, : int(50 * seen), : int(70 * seen)].unique().tolist()) == {1.0}
    everywhere = grid.overlap([0, 0, 70, 50])
    assert torch.equal(everywhere, (~grid.newline).float())
    assert torch.equal(grid.overlap(torch.ones(50, 70, dtype=torch.bool)) > 0.999, ~grid.newline)
    assert set(grid.frame[grid.overlap([0, 0, 70, 50], frame=1) > 0].tolist()) == {1}
    with pytest.raises(LensplugError, match=r"frame 3 is asked for, the model sees 3 \(0 to 2\)"):
        grid.image_grid(3)
    with pytest.raises(LensplugError, match=r"\[5\] values for 589 video tokens"):
        grid.to_pixels(torch.ones(5))


def test_videos_and_images_of_a_batch_stay_apart():
    short, long = clip(4, 64, 48), clip(4, 80, 80, 1)
    picture = Image.new("RGB", (200, 100), (90, 50, 30))
    inputs = lens("llava-onevision").prepare(
        [QUESTION, "one", "two"], images=[[picture], [], []], videos=[[short, long], [], [long]]
    )
    found = {key: (grid.n_frames, grid.height) for key, grid in inputs.modality.video_grids.items()}
    assert found == {(0, 0): (4, 64), (0, 1): (4, 80), (2, 0): (4, 80)}
    assert [span.modality for span in inputs.modality.spans if span.example == 0 and span.media_index is not None] == [
        "image", "video", "video",
    ]  # fmt: skip
    assert len(inputs.modality.video_positions(1, 0)) == 4 * 196 + 1


def test_videos_of_unequal_numbers_of_frames_are_refused():
    with pytest.raises(LensplugError, match="videos of 2, 4 frames in one call"):
        lens("llava-onevision").prepare(["one", "two"], videos=[[clip(2, 64, 48)], [clip(4, 80, 80)]])


def test_without_the_video_its_positions_are_known_and_its_grid_is_not():
    wrapped = lens("llava-onevision")
    outputs = wrapped.processor(text="<video>" + QUESTION, videos=[clip(2, 64, 48)], return_tensors="pt")
    modality = wrapped.encode(outputs).modality
    assert len(modality.video_positions()) == 2 * 196 + 1 and modality.video_grid() is None
    grid = wrapped.encode(outputs, videos=[clip(2, 64, 48)]).modality.video_grid()
    assert grid is not None and grid.height == 64
    with pytest.raises(LensplugError, match="video 0 of example 0 has 393 positions, its geometry 589"):
        wrapped.encode(outputs, videos=[clip(3, 64, 48)])


def test_a_file_given_to_encode_is_refused_for_its_frames_are_not_known(tmp_path):
    write(tmp_path / "clip.mp4", 20, rate=10)
    wrapped, frames = lens("llava-onevision"), clip(4, 48, 64)
    outputs = wrapped.processor(text="<video>" + QUESTION, videos=[frames], return_tensors="pt")
    with pytest.raises(LensplugError, match="which of its frames the processor saw is not known"):
        wrapped.encode(outputs, videos=[tmp_path / "clip.mp4"])
    for given in ([frames], [[frames]], frames):
        grid = wrapped.encode(outputs, videos=given).modality.video_grid()
        assert grid is not None and grid.n_frames == 4


def test_a_picture_is_no_video(tmp_path):
    for name in ("png", "jpg", "webp", "bmp", "tiff"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"picture.{name}")
        with pytest.raises(LensplugError, match="is a picture, not a video: give it as images="):
            load_video(tmp_path / f"picture.{name}")
    Image.new("RGB", (64, 48)).save(tmp_path / "picture.gif")
    with pytest.raises(LensplugError, match="holds 1 frame.s.: if it is a picture, give it as images="):
        load_video(tmp_path / "picture.gif")


@pytest.mark.parametrize(("name", "side"), [("internvl", 16), pytest.param("smolvlm", 2, marks=NESTED)])
def test_frames_that_are_written_as_images_are_a_video(name, side):
    wrapped = lens(name)
    inputs = wrapped.prepare(QUESTION, videos=[(clip(3, 90, 160), 1.0)])
    grid = inputs.modality.video_grid()
    assert inputs.modality.names == ("text", "video") and not inputs.modality.grids and grid is not None
    assert (len(grid), grid.n_frames, grid.height, grid.width) == (3 * side**2, 3, 90, 160)
    assert grid.times_s is not None and grid.times_s.tolist() == [0, 1, 2]
    assert torch.equal(inputs.modality.mask("video"), inputs.tokens == wrapped.core.placeholder_ids["image"])
    assert len(views.video_overlay(torch.rand(inputs.tokens.shape[1]), inputs).data) == 3
    outputs = dict(inputs.model_inputs)
    assert wrapped.encode(outputs).modality.names == ("text", "image")
    several = wrapped.prepare(QUESTION, videos=[clip(3, 90, 160), clip(3, 60, 30)])
    assert {place: grid.height for place, grid in several.modality.video_grids.items()} == {(0, 0): 90, (0, 1): 60}


def test_frames_and_images_of_internvl_in_one_prompt_have_geometries_of_their_own():
    wrapped, picture = lens("internvl"), Image.new("RGB", (80, 60))
    inputs = wrapped.prepare([QUESTION, "one"], videos=[[clip(2, 90, 160)], []], images=[[picture], [picture] * 2])
    sizes = {place: (grid.height, grid.width) for place, grid in inputs.modality.grids.items()}
    assert sizes == {(0, 0): (60, 80), (1, 0): (60, 80), (1, 1): (60, 80)}
    assert {place: grid.n_frames for place, grid in inputs.modality.video_grids.items()} == {(0, 0): 2}
    changed = wrapped.prepare([QUESTION, "one"], videos=[[clip(2, 90, 160, 1)], []], images=[[picture], [picture] * 2])
    moved = ((changed.embeds - inputs.embeds).norm(dim=-1) > 0).nonzero()
    assert moved[:, 0].unique().tolist() == [0]
    assert moved[:, 1].tolist() == inputs.modality.video_positions().tolist()
    assert len(views.video_overlay(torch.rand(inputs.tokens.shape[1]), inputs).data) == 2
    assert views.image_overlay(torch.rand(inputs.tokens.shape[1]), inputs).data


def test_what_stays_the_same_from_frame_to_frame_has_no_position_in_video_llama_3():
    frames = clip(1, 112, 168).repeat(4, axis=0)
    frames[2, :56, :56] += 100
    inputs = lens("video-llama-3").prepare(QUESTION, videos=[(frames, 2.0)])
    grid = inputs.modality.video_grid()
    assert grid is not None and grid.n_frames == 4 and len(grid) == int(inputs.modality.mask("video").sum())
    assert bool((grid.overlap([0, 0, 168, 112], frame=0) > 0).sum() > 10)
    assert int((grid.frame == 1).sum()) == 1, "one stays in every frame"
    assert bool((grid.overlap([0, 0, 56, 56])[grid.frame == 2] > 0).all())
    assert int((grid.frame == 2).sum()) >= 4


def test_the_time_of_a_frame_is_the_one_that_the_model_is_told():
    """A processor that is told nothing takes 24 frames a second to be seen, and the prompt says so."""
    for times, expected in (((0.0, 0.5, 1.0, 1.5), ["<0.2", "<1.2"]), ((0.0, 0.4, 2.0, 3.0), ["<0.2", "<2.5"])):
        video = Video(torch.from_numpy(clip(4, 90, 160)), torch.tensor(times))
        inputs = lens("qwen3-vl").prepare(QUESTION, videos=[video])
        assert [text.split()[0] for text in inputs.str_tokens[0] if "seconds" in text] == expected
        grid = inputs.modality.video_grid()
        assert grid is not None and grid.time_s is not None
        assert grid.time_s.unique().tolist() == pytest.approx([times[0], times[2]])
    every = [lens("qwen2.5-vl").prepare(QUESTION, videos=[(clip(4, 90, 160), rate)]) for rate in (2, 8)]
    assert [float(torch.as_tensor(inputs.model_inputs["second_per_grid_ts"])[0]) for inputs in every] == [1.0, 0.25]


def test_a_model_that_takes_no_videos_says_so():
    with pytest.raises(LensplugError, match="video is given, but LlavaProcessor takes none"):
        lens("llava").prepare(QUESTION, videos=[clip(2, 64, 48)])


def write(path, n_frames: int, rate: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(n_frames):
            pixels = np.full((48, 64, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_is_sampled_evenly_with_the_time_of_each_frame(tmp_path, ending):
    write(tmp_path / f"clip.{ending}", 41, rate=10)
    video = load_video(tmp_path / f"clip.{ending}", num_frames=5)
    assert video.frames.shape == (5, 48, 64, 3)
    assert video.times_s is not None and video.times_s.tolist() == pytest.approx([0, 1, 2, 3, 4], abs=0.01)
    assert video.frames.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([0, 50, 100, 150, 200], abs=6)
    assert len(load_video(tmp_path / f"clip.{ending}")) == 16
    assert len(load_video(tmp_path / f"clip.{ending}", num_frames=100)) == 41
    grid = lens("llava-onevision").prepare(QUESTION, videos=[tmp_path / f"clip.{ending}"]).modality.video_grid()
    assert grid is not None and grid.n_frames == 16


PICTURES = [Image.new("RGB", (64, 48), (value, 0, 0)) for value in (0, 100, 200)]


@pytest.mark.parametrize("source", [PICTURES, clip(3, 48, 64), torch.from_numpy(clip(3, 48, 64)), (PICTURES, 2)])
def test_frames_come_in_many_forms(source):
    video = load_video(source)
    assert video.frames.shape == (3, 48, 64, 3) and video.frames.dtype == torch.uint8
    assert load_video(video) is video
    assert (video.times_s is None) != isinstance(source, tuple)
    inputs = lens("llava-onevision").prepare(QUESTION, videos=[source])
    assert len(inputs.videos[0]) == 1 and len(inputs.videos[0][0]) == 3
    if isinstance(source, list):
        assert np.asarray(video.image(1))[0, 0].tolist() == [100, 0, 0]
        assert len(lens("llava-onevision").prepare(QUESTION, videos=source).videos[0]) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((3, 48, 64, 3), 200, np.float32), "frames is float32 from 200 to 200, expected uint8"),
        (np.zeros((3, 48, 64, 4), np.uint8), r"uint8 of the shape \[3, 48, 64, 4\], expected uint8"),
        (np.zeros((48, 64, 3), np.uint8), r"expected uint8 \[frame, height, width, 3\]"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], "differ in size"),
        (7, "a video is a int, expected a path"),
        ([], "a video is a list"),
        ((PICTURES, 0), "0 frames in a second"),
        ((PICTURES, float("inf")), "inf frames in a second"),
        ("nowhere.mp4", "there is no file 'nowhere.mp4'"),
        (__file__, "is not a video that can be read"),
    ],
)
def test_what_is_no_video_is_refused(source, message):
    with pytest.raises(LensplugError, match=message):
        load_video(source)
