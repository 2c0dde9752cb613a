"""What a server is: its state, the images that it has taken on, and how one is decided."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.bundle.contents import MANIFEST, BundleContents
from stage1_pro.core.cli import lasting
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.records import UNCOVERED, Decision
from stage1_pro.core.metrics.views import views_of
from stage1_pro.core.serving.engine import Engine, Expired
from stage1_pro.core.serving.health import COMPUTING, FAILURES, LOG, Health, said
from stage1_pro.core.serving.log import DecisionLog
from stage1_pro.core.serving.metrics import Metrics
from stage1_pro.core.serving.refusals import INTERNAL, Refusal, refusal_of
from stage1_pro.core.serving.rows import Unwatched, Watch, row_of, unreadable
from stage1_pro.core.serving.settings import Limits

_logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "draining", "failing"]
_NOT_READY = {"starting": "the model is being loaded", "draining": "the server is about to end"}


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as a client sent it; id, group, certificate_group: the client's words."""

    content: bytes
    id: str
    group: str | None
    certificate_group: str | None = None


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class GroupUpload:
    """The images of one group as a client sent them, in their order; id, group: the client's words."""

    contents: tuple[bytes, ...]
    id: str
    group: str | None


class Service:
    """One bundle at work. All but decoding and computing happens on the event loop, so nothing is locked."""

    def __init__(
        self,
        contents: BundleContents,
        limits: Limits,
        *,
        device: str = "auto",
        token: str | None = None,
        log: DecisionLog | None = None,
        watch: Watch | None = None,
        now: Callable[[], datetime] = utc_now,
    ):
        self.contents, self.limits, self.device = contents, limits, device
        self.token, self.log, self.now = token, log, now
        self.watch: Watch = watch or Unwatched()
        self.bundle = digest_file(contents.path / MANIFEST)
        self.views = views_of(contents.manifest)
        self.certificate_groups: str | None = contents.manifest.get("certificate_groups")
        self.metrics = Metrics()
        self.health = Health({COMPUTING: self._computes, LOG: self._logs}, self.metrics)
        self.metrics.ready.set_function(lambda: self.state == "ready")
        self.metrics.inflight.set_function(lambda: self.inflight)
        self._state: State = "starting"
        self.inflight = 0
        self.coming = 0  # requests whose images are about to be admitted
        self.engine: Engine | None = None

    async def start(self) -> None:
        """Load the model and check the golden inputs. Raises UserError."""
        # one thread computes: a second one's team would outnumber the cores, and OpenMP puts threads to sleep then
        model = ThreadPoolExecutor(1, "model")
        predictor, self._golden = await asyncio.get_running_loop().run_in_executor(model, self._loaded)
        self.engine = Engine(predictor, model, self.limits, lambda: self.inflight, self.health, self.metrics)
        if self._state == "starting":  # a signal may have come first
            self._state = "ready"

    def _loaded(self):
        with lasting():  # else a second of the start, and later stopped answers
            from stage1_pro.core.inference.golden import read_golden
            from stage1_pro.core.inference.predictor import Stage1Predictor

            predictor = Stage1Predictor.of_verified(self.contents, self.device)
            golden = read_golden(self.contents)  # kept: the folder may be another one by the time of a later check
            golden.check(predictor)
        return predictor, golden

    async def _computes(self) -> None:
        """Raise where the golden inputs do not come out as they must."""
        assert self.engine is not None
        await self.engine.check(self._golden)

    async def _logs(self) -> None:
        """Raise OSError where no row can be logged."""
        if self.log is not None:
            self.log.check()

    async def drain(self) -> None:
        """Take nothing on any more, and return when all that was taken on is decided."""
        self._state = "draining"
        while self.inflight:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.health.close()
        if self.engine is not None:
            await self.engine.close()
        if self.log is not None:
            self.log.close()

    def admit(self, images: int) -> None:
        """Take so many images on, before any of their bytes is looked at. Raises Refusal."""
        if refusal := self.no_room(images):
            raise refusal
        self.inflight += images

    def no_room(self, images: int) -> Refusal | None:
        """Why so many images cannot be taken on; None where they can."""
        if (state := self.state) != "ready":
            return Refusal(state, _NOT_READY.get(state) or self.trouble)
        if self.inflight + images > self.limits.max_inflight:
            return Refusal("overloaded", f"{self.inflight} of at most {self.limits.max_inflight} images are in flight")
        return None

    @property
    def state(self) -> State:
        return "failing" if self._state == "ready" and self.trouble else self._state

    @property
    def trouble(self) -> str:
        """Why no decision can be given, though the server is up; "" where one can."""
        computes_s = 0.0 if self.engine is None else self.engine.computes_s
        if computes_s > FAILURES * self.limits.deadline_s:  # then nobody has waited for its images for long
            return f"a forward pass has not ended for {computes_s:.0f} s"
        return self.health.reason

    @property
    def certificate(self) -> str:
        """What holds now, as the monitor stands."""
        return self.watch.certificate(int(self.now().timestamp()))

    def release(self, images: int) -> None:
        self.inflight -= images

    async def decide(self, uploads: Sequence[Upload], expires: float) -> list[dict[str, Any] | Refusal]:
        """The row of each image, or why it has none, in their order; the images were admitted, and are released here.

        Rows are logged before they are returned. expires: time.monotonic() after which nobody waits.
        """
        images = [self._begun(upload.content, expires, upload.certificate_group) for upload in uploads]
        await _ended(images, expires)
        return [self._outcome(upload, [image]) for upload, image in zip(uploads, images, strict=True)]

    async def decide_group(self, upload: GroupUpload, expires: float) -> dict[str, Any] | Refusal:
        """The row of one group, or why it has none; its images were admitted, and are released here."""
        seen = self._seen(upload)
        self.release(len(upload.contents) - len(seen))
        images = [self._begun(upload.contents[at], expires) for at in seen]
        await _ended(images, expires)
        return self._outcome(upload, images)

    def _begun(self, content: bytes, expires: float, certificate_group: str | None = None) -> "asyncio.Future[Any]":
        """The future of one image, which is released when its work is done, not when its client has gone."""
        assert self.engine is not None
        named = None if self.certificate_groups is None else certificate_group or ""
        image = self.engine.decide(content, expires, named)
        image.add_done_callback(self._over)
        return image

    def _over(self, image: "asyncio.Future[Any]") -> None:
        image.exception()  # else it is reported where nobody waited for it
        self.release(1)

    def _outcome(
        self, upload: Upload | GroupUpload, images: Sequence["asyncio.Future[Any]"]
    ) -> dict[str, Any] | Refusal:
        try:
            return self._row(upload, images)
        except Refusal as refusal:
            return refusal
        except Exception:
            _logger.exception("no decision on %s", upload.id)
            return Refusal("internal", INTERNAL)

    def _row(self, upload: Upload | GroupUpload, images: Sequence["asyncio.Future[Any]"]) -> dict[str, Any] | Refusal:
        if not all(image.done() for image in images):
            return _late(self.limits)  # what nobody hears is not logged
        # looked at and never raised: the trace would hold the bytes of the images until a collection of garbage
        error, refusal = next(filter(None, (image.exception() for image in images)), None), None
        if isinstance(error, Expired):
            return _late(self.limits)
        if error is None:
            decision = self._decision(upload, [image.result() for image in images])
        elif isinstance(error, BadImage):
            decision, refusal = unreadable(error), refusal_of(error)
        else:
            _logger.error("no decision on %s", upload.id, exc_info=error)
            return Refusal("internal", INTERNAL)
        row = row_of(decision, id=upload.id, group=upload.group, now=self.now(), bundle=self.bundle, watch=self.watch)
        if isinstance(upload, GroupUpload):
            row |= {"frames": len(upload.contents), "views": len(images)}
        elif self.certificate_groups is not None:
            row |= {"certificate_group": upload.certificate_group}
            self.metrics.uncovered.inc(decision.reason == UNCOVERED)
        self._log(row)
        self.metrics.decided(decision.decision, decision.answer)
        return refusal or row

    def _log(self, row: dict[str, Any]) -> None:
        """Raises Refusal where the log cannot be written."""
        if self.log is None:
            return
        try:
            self.log.write([row])
        except OSError as error:
            self.health.failed(LOG, error)
            _logger.error("no decision on %s, which cannot be logged: %s", row["id"], said(error))
            raise Refusal("internal", INTERNAL) from None
        self.health.worked(LOG)

    def _decision(self, upload: Upload | GroupUpload, made: list[Any]) -> Decision:
        """made: what passes made of the images that are looked at."""
        assert self.engine is not None
        return made[0] if isinstance(upload, Upload) else self.engine.group_decision(made)

    def _seen(self, upload: GroupUpload) -> list[int]:
        """Places of the images that are looked at."""
        assert self.views is not None
        return self.views.positions(len(upload.contents))


async def _ended(images: Sequence["asyncio.Future[Any]"], expires: float) -> None:
    """Wait for all of them, but no longer than anybody waits."""
    await asyncio.wait(images, timeout=max(0.0, expires - time.monotonic()))


def _late(limits: Limits) -> Refusal:
    return Refusal("deadline", f"no decision within {limits.deadline_s:g} s")
