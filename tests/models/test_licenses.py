"""The licence of the backbone: found, stated, carried on, and checked against the stated use."""

import pytest

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.licenses import RANDOM, UNKNOWN, demanded_license, derivative_notice
from stage1_pro.core.models.stage1 import Stage1Model, save_model
from stage1_pro.core.training.fit import build_model

DINOV3 = "dinov3-license"


def config(**settings: object) -> Stage1ProConfig:
    return merge_configs([("a.yaml", {"dataset_params": {"image_size": 32}, **settings})])


@pytest.mark.parametrize(
    "license", ["cc-by-nc-4.0", "CC-BY-NC-4.0", "fair-noncommercial-research-license", "apple-amlr"]
)
def test_a_licence_that_forbids_the_stated_use_is_refused(license: str) -> None:
    for use in ("unstated", "research"):
        assert demanded_license(license, config(intended_use=use)) == license
    with pytest.raises(UserError, match=rf"its licence, {license}, forbids commercial use. .*intended_use: research"):
        demanded_license(license, config(intended_use="commercial"))


@pytest.mark.parametrize("license", ["apache-2.0", "Apache-2.0", "mit", DINOV3, RANDOM])
def test_licences_that_allow_it_pass_in_silence(license: str, capsys: pytest.CaptureFixture) -> None:
    assert demanded_license(license, config(intended_use="commercial")) == license
    assert capsys.readouterr().out == ""


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture) -> None:
    for license in (UNKNOWN, "some-license"):
        demanded_license(license, config(intended_use="commercial"))
        assert f"warning: whether the backbone's licence ({license}) allows" in capsys.readouterr().out


def test_a_stated_licence_fills_a_gap_and_contradicts_nothing() -> None:
    stated = config(backbone_license="cc-by-nc-4.0")
    assert demanded_license(UNKNOWN, stated) == "cc-by-nc-4.0"
    assert demanded_license("CC-BY-NC-4.0", stated) == "CC-BY-NC-4.0"
    with pytest.raises(UserError, match="but the weights are under 'apache"):
        demanded_license("apache-2.0", stated)
    with pytest.raises(UserError, match="forbids commercial use"):
        demanded_license(UNKNOWN, config(backbone_license="cc-by-nc-4.0", intended_use="commercial"))


def test_what_training_wrote_of_weights_that_say_nothing_states_nothing(capsys: pytest.CaptureFixture) -> None:
    for written in (UNKNOWN, RANDOM):
        assert demanded_license("apache-2.0", config(backbone_license=written)) == "apache-2.0"
    demanded_license(UNKNOWN, config(backbone_license="mit"))
    assert "$.backbone_license (mit) is taken for it" in capsys.readouterr().out


def test_dinov3_covers_derivatives_and_the_bundle_says_so() -> None:
    words = derivative_notice(DINOV3)
    assert "covers derivatives" in words
    assert "https://ai.meta.com/resources/models-and-libraries/dinov3-license/" in words
    assert "licence of others" in derivative_notice(RANDOM)
    assert "Find out" in derivative_notice("some-license")


def test_weights_taken_from_a_run_keep_their_licence(tmp_path) -> None:
    """A random backbone that is filled from a DINOv3 run is a derivative of DINOv3."""
    backbone, spec = load_backbone("random:test_vit", 32)
    covered = type(spec)(spec.arch, spec.kwargs, spec.preprocessing, DINOV3)
    save_model(Stage1Model.new(backbone, covered, ("no", "yes"), 0.3), tmp_path / "model_best.pth")

    class Source:
        path, model_path = tmp_path, tmp_path / "model_best.pth"

    settings = config(model_path="random:test_vit")
    assert build_model(settings, ("no", "yes")).spec.license == RANDOM
    assert build_model(settings, ("no", "yes"), Source()).spec.license == DINOV3  # pyright: ignore
