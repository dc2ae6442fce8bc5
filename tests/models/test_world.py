import numpy as np
import pytest

from models.tiny.evaluate import draw_cases, tally_ground_truth, through_h264
from models.tiny.sampler import Settings
from models.tiny.scores import ATTRIBUTES, Tally, wilson
from models.tiny.world.caption import canonical_caption, draw_caption
from models.tiny.world.clip import Clip, Mixture, draw_clip
from models.tiny.world.render import render
from models.tiny.world.vocabulary import LANGUAGES, MINIMUM_CONTRAST, visible_colours, vocabulary


def test_the_same_clip_renders_to_the_same_bits_at_any_size_and_length(red_ball: Clip) -> None:
    for width, height, count in ((64, 64, 17), (96, 48, 5), (33, 70, 1)):
        first = render(red_ball, width=width, height=height, num_frames=count)
        assert first.shape == (count, height, width, 3)
        assert first.dtype == np.float32
        assert 0.0 <= first.min() <= first.max() <= 1.0
        np.testing.assert_array_equal(first, render(red_ball, width=width, height=height, num_frames=count))


def test_an_object_is_painted_in_its_palette_colour_where_the_ground_truth_says(red_ball: Clip) -> None:
    frames = render(red_ball, width=96, height=96, num_frames=17)
    np.testing.assert_allclose(frames[0, 48, 72], vocabulary().colours["red"], atol=1e-6)
    np.testing.assert_allclose(frames[-1, 48, 24], vocabulary().colours["red"], atol=1e-6)


@pytest.mark.parametrize("mixture", [Mixture(), Mixture(two_objects=1.0), Mixture(moving_camera=1.0)])
def test_every_attribute_of_rendered_clips_is_read_back(mixture: Mixture) -> None:
    cases = draw_cases(24, mixture, seed=8)
    for change in (lambda frames: frames, through_h264):
        tally = tally_ground_truth(cases, Settings(), change)
        for attribute in ATTRIBUTES:
            assert tally.hits[attribute] >= tally.total - 1, attribute


def test_the_checker_tells_a_wrong_clip_from_a_right_one() -> None:
    still = draw_cases(12, Mixture(), seed=5)
    tally = tally_ground_truth(still, Settings(), lambda frames: np.ascontiguousarray(frames[::-1]))
    moving = sum(case.clip.actors[0].action != "still" for case in still)
    assert tally.hits["action"] == len(still) - moving
    assert tally.hits["colour"] == len(still)


def test_training_never_draws_a_held_out_combination_and_evaluation_does() -> None:
    numbers = np.random.default_rng(0)
    mixture = Mixture(two_objects=0.5, moving_camera=0.5)
    assert not any(draw_clip(numbers, mixture).held_out for _ in range(2000))
    assert all(draw_clip(numbers, mixture, held_out=True).held_out for _ in range(50))


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_and_evaluation_share_no_full_prompt(language: str) -> None:
    numbers = np.random.default_rng(1)

    def prompts(*, unseen: bool) -> set[str]:
        clips = [draw_clip(numbers, Mixture()) for _ in range(400)]
        return {draw_caption(numbers, clip, language, unseen=unseen).text for clip in clips}

    assert not prompts(unseen=False) & prompts(unseen=True)


def test_a_canonical_caption_follows_subject_action_scene_camera_mood(red_ball: Clip) -> None:
    assert canonical_caption(red_ball, "en") == "a red circle moves left over the blue sea"
    assert canonical_caption(red_ball, "zh") == "一个红色的圆形向左移动，在蓝色大海上"
    assert canonical_caption(red_ball, "ja") == "赤い円が青い海の上で左へ動く"


def test_objects_stand_out_from_their_scene() -> None:
    words = vocabulary()
    for name, scene in words.scenes.items():
        colours = visible_colours(name)
        assert len(colours) >= 4
        for colour in colours:
            for background in (scene.base, scene.texture):
                distance = np.linalg.norm(np.subtract(words.colours[colour], background))
                assert distance > MINIMUM_CONTRAST


def test_intervals_are_wilsons() -> None:
    low, high = wilson(95, 100)
    assert low == pytest.approx(0.8883, abs=1e-3)
    assert high == pytest.approx(0.9785, abs=1e-3)
    assert Tally().share("colour") == 0.0
