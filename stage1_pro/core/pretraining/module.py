"""ExploraModule: the Lightning module of both objectives."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from stage1_pro.core.data.batches import Batch
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.devices import mean_of_ranks
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import Backbone
from stage1_pro.core.models.parameters import trainable
from stage1_pro.core.optim.schedule import warmup_cosine
from stage1_pro.core.pretraining import views
from stage1_pro.core.pretraining.dino import LAST_LAYER_FROZEN, Average, DinoHead, DinoLoss, teacher_temperature
from stage1_pro.core.pretraining.mae import MaskedReconstruction
from stage1_pro.core.pretraining.settings import Pretraining
from stage1_pro.core.seeds import seed_of

WARMUP = 0.1
BOTTLENECK = 256


class Student(nn.Module):
    """Backbone and projection head: views → prototype scores, one pass for each size of view."""

    def __init__(self, backbone: Backbone, width: int, prototypes: int):
        super().__init__()
        self.backbone = backbone
        self.head = DinoHead(width, 4 * width, BOTTLENECK, prototypes)

    def forward(self, seen: list[Tensor]) -> list[Tensor]:
        large = [view for view in seen if view.shape[-1] == seen[0].shape[-1]]
        small = seen[len(large) :]
        return [scores for group in (large, small) if group for scores in self._scores(group)]

    def _scores(self, group: list[Tensor]) -> tuple[Tensor, ...]:
        return self.head(self._summary(torch.cat(group))).chunk(len(group))

    def _summary(self, images: Tensor) -> Tensor:
        """(B, D): the class token, or what the net pools where it has none."""
        net: Any = self.backbone.net
        return net.forward_features(images)[:, 0] if self.backbone.prefix_tokens else net(images)


class ExploraModule(pl.LightningModule):
    """Trains what `adapt` left trainable, and the objective's own head or decoder.

    Views, masks and order are drawn by seed and step, so that a resumed training goes on as if it had never stopped.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, preprocessing: Preprocessing, settings: Pretraining, seed: int, weight_decay: float
    ):
        super().__init__()
        self.strict_loading = False  # checkpoints leave out what is frozen; on_load_checkpoint checks the rest
        self.settings, self.seed, self.weight_decay, self.size = settings, seed, weight_decay, preprocessing.size
        net: Any = backbone.net
        self.patch = net.patch_embed.patch_size[0]
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        if settings.objective == "dino":
            self.student = Student(backbone, net.embed_dim, settings.prototypes)
            self.loss, self.average = DinoLoss(settings.prototypes), Average(dict(trainable(self.student)))
        else:
            self.student = nn.ModuleDict({"backbone": backbone})
            self.reconstruction = MaskedReconstruction(backbone, self.size)

    @property
    def backbone(self) -> Backbone:
        found = self.student.backbone if isinstance(self.student, Student) else self.student["backbone"]
        assert isinstance(found, Backbone)
        return found

    @property
    def adapted(self) -> dict[str, Tensor]:
        """The backbone's trained tensors as they are judged and exported: the teacher's, where there is one."""
        if self.settings.objective == "dino":
            prefix = "backbone."
            return {n.removeprefix(prefix): t for n, t in self.average.tensors.items() if n.startswith(prefix)}
        return {name: parameter.detach() for name, parameter in trainable(self.backbone)}

    def judged(self, images: Tensor) -> Tensor:
        """(B, D) features of normalised images by the adapted weights."""
        return functional_call(self.backbone, self.adapted, (images,))

    # ---- one step

    def training_step(self, batch: Batch, _: int) -> Tensor:
        key = self.seed, "views", self.global_step, self.global_rank
        draw = torch.Generator().manual_seed(seed_of(*key))
        with torch.autocast(batch.inputs.device.type, enabled=False):  # half precision would misplace crops by pixels
            seen = [self._normalised(view) for view in self._views(batch.inputs.to(torch.float32) / 255, draw)]
        loss = self._distilled(seen) if self.settings.objective == "dino" else self._painted(seen[0], draw)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def _views(self, images: Tensor, draw: torch.Generator) -> list[Tensor]:
        settings = self.settings
        if settings.objective == "mae":
            return [views.crops(images, self.size, views.MAE_SCALE, draw)]
        small = views.local_side(self.size, self.patch)
        return views.multi_crop(images, self.size, small, settings.local_crops, settings.colour, draw)

    def _distilled(self, seen: list[Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = functional_call(self.student, self.average.tensors, (seen[:2],))
        loss, entropy = self.loss(self.student(seen), teacher, teacher_temperature(self.done))
        self.centre = mean_of_ranks(torch.stack([scores.float() for scores in teacher]).mean(dim=(0, 1)))
        self.log("teacher_entropy", entropy, on_step=False, on_epoch=True, batch_size=len(seen[0]))
        return loss

    def _painted(self, images: Tensor, draw: torch.Generator) -> Tensor:
        return self.reconstruction(self.backbone, images, draw)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    # ---- the optimizer and what follows it

    @property
    def done(self) -> float:
        """Share of the steps that is over."""
        return self.global_step / self.settings.steps

    def configure_optimizers(self) -> Any:
        steps = self.settings.steps
        schedule = warmup_cosine(max(1, round(WARMUP * steps)), steps)
        optimizer = torch.optim.AdamW(self._groups(), lr=self.settings.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms, biases, tokens and the prototypes, whose length does not count, do not."""
        decaying, still = [], []
        for name, parameter in trainable(self):
            fixed = parameter.ndim < 2 or name.endswith(
                ("cls_token", "reconstruction.decoder.hidden", "last_layer.weight")
            )
            (still if fixed else decaying).append(parameter)
        groups = [{"params": decaying, "weight_decay": self.weight_decay}, {"params": still, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.settings.objective == "dino" and self.done < LAST_LAYER_FROZEN:
            self.student.head.last_layer.weight.grad = None  # pyright: ignore

    def on_train_batch_end(self, *_: Any) -> None:
        if self.settings.objective == "dino":
            rise = 0.5 * (1 + math.cos(math.pi * min(1.0, self.done)))
            self.average.follow(dict(trainable(self.student)), 1 - (1 - self.settings.ema_momentum) * rise)
            self.loss.follow(self.centre)

    # ---- checkpoints hold what is trained

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n not in frozen}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        expected: dict[str, Any] = {"state_dict": self.state_dict()}
        self.on_save_checkpoint(expected)
        if set(expected["state_dict"]) != set(checkpoint["state_dict"]):
            raise UserError("the checkpoint holds other tensors than these settings train. Begin in a new --out.")
