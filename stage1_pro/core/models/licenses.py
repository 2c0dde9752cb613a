"""Licences of backbones: which uses they are known to forbid, and what must be said of weights made from them.

A short list, not legal advice: what is not in it is neither allowed nor forbidden here.
"""

from dataclasses import dataclass

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.errors import UserError

UNKNOWN = "unknown"
RANDOM = "none: random weights"


@dataclass(frozen=True, slots=True)
class License:
    """One row of the table."""

    name: str
    """As timm and Hugging Face write it."""
    commercial: bool
    """Whether commercial use is allowed, be it under conditions."""
    derivatives: str = ""
    """What to say to whoever gets weights that were trained from these."""


LICENSES = {
    row.name: row
    for row in (
        License("apache-2.0", True, "Keep its text and the notices of the original with what you pass on."),
        License("mit", True, "Keep its text with what you pass on."),
        License("bsd-3-clause", True, "Keep its text with what you pass on."),
        License("cc-by-4.0", True, "Name the authors of the original in what you pass on."),
        License(
            "dinov3-license",
            True,
            "The DINOv3 License covers derivatives: fine-tuned and merged weights, these among them, stay under it. "
            "Pass a copy of it on with them, and keep to the uses that it allows: "
            "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        ),
        License("cc-by-nc-4.0", False, "Derivatives may not be used commercially either."),
        License("cc-by-nc-sa-4.0", False, "Derivatives stay under it, and may not be used commercially either."),
        License("fair-noncommercial-research-license", False, "Derivatives stay under it: research, not commerce."),
        License("apple-amlr", False, "Derivatives stay under it: research only."),
    )
}


def demanded_license(found: str, config: Stage1ProConfig) -> str:
    """The licence of the weights: what they say of themselves, or what the config says where they say nothing.

    Raises UserError where the two differ, and where the licence forbids the stated use.
    """
    stated = None if config.backbone_license in (UNKNOWN, RANDOM) else config.backbone_license
    if stated and found != UNKNOWN and stated.lower() != found.lower():
        raise UserError(
            f"$.backbone_license is {stated!r}, but the weights are under {found!r}. Set backbone_license: null."
        )
    license = stated or found if found == UNKNOWN else found
    if license != found:
        say(f"warning: the weights say nothing of their licence; $.backbone_license ({license}) is taken for it")
    row = LICENSES.get(license.lower())
    if config.intended_use == "commercial" and row is not None and not row.commercial:
        raise UserError(
            f"model_path {config.model_path}: its licence, {license}, forbids commercial use. Choose another backbone, "
            "or set intended_use: research if that is what it is for."
        )
    if config.intended_use == "commercial" and row is None and license != RANDOM:
        say(f"warning: whether the backbone's licence ({license}) allows commercial use is not known here: read it")
    return license


def derivative_notice(license: str) -> str:
    """Return the words of a bundle on the licence of the weights in it."""
    if license == RANDOM:
        return "The backbone began with random weights: no licence of others covers this model."
    row = LICENSES.get(license.lower())
    words = row.derivatives if row else "Find out what it asks of derivatives before you pass this model on."
    return f"The model is made from weights under {license}. {words}".strip()
