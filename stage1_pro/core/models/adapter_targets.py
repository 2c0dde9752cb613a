"""Where adapters can go: the blocks of a timm backbone, and the layers of them that a setting names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from stage1_pro.core.errors import UserError

BLOCK = re.compile(r"(?:(?:stages|layers)\.\d+\.blocks|layer\d+|blocks)\.\d+(?:\.\d+)?(?=\.)")
"""The path of a block: blocks.3 (ViT), blocks.2.0 (EfficientNet), stages.1.blocks.0 (ConvNeXt), layer2.1 (ResNet)."""

GROUPS: dict[str, Callable[[str], bool]] = {
    "attention": lambda path: ".attn." in path,
    "mlp": lambda path: ".mlp." in path,
    "all_linear": lambda path: True,
}
"""Words for layers, by their path within the backbone."""


@dataclass(frozen=True, slots=True)
class Places:
    """What a backbone offers. layers: paths of layers that can be adapted; blocks: paths of its blocks, in order."""

    layers: tuple[str, ...]
    blocks: tuple[str, ...]

    def chosen(self, targets: str, last: int | None) -> tuple[str, ...]:
        """Paths of the layers that `targets` names in the last blocks.

        targets: words of GROUPS or names of layers, joined by commas. Raises UserError for what is not there.
        """
        if not self.layers:
            raise UserError(
                "$.peft_type: adapters go into blocks of linear layers or ungrouped convolutions, and this backbone "
                "has none under a known name. Set peft_type: none, or choose a ViT, ConvNeXt, EfficientNet or ResNet."
            )
        if last is not None and last > len(self.blocks):
            raise UserError(
                f"$.peft_blocks is {last}; this backbone has {len(self.blocks)} blocks: allowed 1 to "
                f"{len(self.blocks)}, or null for all."
            )
        wanted = [word.strip() for word in targets.split(",")]
        unknown = [word for word in wanted if not any(_named(word, path) for path in self.layers)]
        if unknown:
            raise UserError(
                f"$.peft_targets: this backbone has no {', '.join(unknown)}; it has {', '.join(self._words())}."
            )
        adapted = self.blocks[-last if last else 0 :]
        inside = [path for path in self.layers if block_of(path) in adapted]
        found = [path for path in inside if any(_named(word, path) for word in wanted)]
        if not found:
            raise UserError(f"$.peft_targets: no {targets} in the last {last} blocks. Raise peft_blocks.")
        return tuple(found)

    def _words(self) -> Iterator[str]:
        """The groups and the names of layers that exist here."""
        yield from (group for group in GROUPS if any(_named(group, path) for path in self.layers))
        yield from dict.fromkeys(path.rpartition(".")[2] for path in self.layers)


def places(net: nn.Module) -> Places:
    """The layers of a backbone that can be adapted.

    Grouped (depthwise) convolutions are left out: their adapters cannot be merged. So are dilated ones: peft forgets
    the dilation.
    """
    leaves = [name for name, module in net.named_modules() if not list(module.children())]
    blocks = dict.fromkeys(block for name in leaves if (block := block_of(name)))
    layers = [name for name, layer in net.named_modules() if block_of(name) and _adaptable(layer)]
    return Places(tuple(layers), tuple(blocks))


def block_of(path: str) -> str | None:
    """The path of the block that a module or parameter belongs to; None for what is in none."""
    found = BLOCK.match(path)
    return found[0] if found else None


def _named(word: str, path: str) -> bool:
    return GROUPS[word](path) if word in GROUPS else path.rpartition(".")[2] == word


def _adaptable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.dilation == (1, 1)
    return isinstance(layer, nn.Linear)
